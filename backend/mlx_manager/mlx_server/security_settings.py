"""The settings that say who may use the server, from where and how often. Knows nothing of how that is enforced."""

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from mlx_manager.addresses import header_key

_NAMED_KEY = re.compile(r"([\w.-]+)=(.*[^=].*)")
"""`name=key`; a key that ends in the padding of base64 is no name with an empty key."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`name` is what logs and metrics call its owner."""

    name: str
    key: SecretStr


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))  # Path.expanduser raises for the home of nobody


def _none_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


UserPath = Annotated[Path, AfterValidator(_absolute)]
"""As a user writes it: `~` is the home folder."""
BLANK_IS_NONE = BeforeValidator(_none_if_blank)
"""For a path that may be left out."""


def _entries(value: object) -> object:
    """A text is comma-separated or a JSON list, as in the environment; anything else is for the type to check."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        return json.loads(value)
    return [entry.strip() for entry in value.split(",") if entry.strip()]


def _api_keys(value: object) -> object:
    entries = _entries(value.get_secret_value() if isinstance(value, SecretStr) else value)
    if not isinstance(entries, list | tuple):
        raise ValueError("give a list of keys, each as KEY or NAME=KEY")
    return _distinct([_api_key(entry, number) for number, entry in enumerate(entries, 1)])


def _distinct(keys: list[ApiKey]) -> list[ApiKey]:
    """Two names for one key would leave it open who asks. Raises ValueError."""
    names: dict[str, str] = {}
    for key in keys:
        other = names.setdefault(key.key.get_secret_value(), key.name)
        if other != key.name:
            raise ValueError(f"{other} and {key.name} are the same key: give each its own")
    return keys


def _api_key(entry: object, number: int) -> ApiKey:
    """Raises ValueError, which does not show the key."""
    if isinstance(entry, ApiKey):
        return entry
    if not isinstance(entry, str):
        raise ValueError(f"key {number} is no text: give each as KEY or NAME=KEY")
    named = _NAMED_KEY.fullmatch(entry.strip())
    name, text = (named[1], named[2]) if named is not None else (f"key-{number}", entry)
    key = header_key(SecretStr(text))
    if key is None or " " in key.get_secret_value():
        raise ValueError(f"key {number} is empty or has a space in it: give each as KEY or NAME=KEY")
    return ApiKey(name, key)


def _admin_key(key: SecretStr | None) -> SecretStr | None:
    usable = header_key(key)
    if key is not None and usable is None:
        raise ValueError("the key is blank: leave the setting out, or give a key")
    return usable


def _readable_keys(path: Path) -> Path:
    read_keys_file(path)
    return path


def read_keys_file(path: Path) -> list[ApiKey]:
    """A `key` or `name=key` on each line; `#` begins a comment line. Raises ValueError, which shows no key."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no UTF-8 text"
        raise ValueError(f"{path} cannot be read: {reason}") from exc
    entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not entries:
        raise ValueError(f"{path} holds no key: write a KEY or NAME=KEY on each line")
    return _distinct([_api_key(entry, number) for number, entry in enumerate(entries, 1)])


def is_readable_by_all(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)


_ORIGIN = re.compile(r"(?P<origin>[a-z][a-z0-9+.-]*://[^/\s,]*)/?", re.IGNORECASE)


def _origin(entry: str) -> str:
    """As browsers write it: without the port that is its scheme's own. Raises ValueError."""
    if entry in ("*", "null"):
        return entry
    written = _ORIGIN.fullmatch(entry)
    if written is None:
        raise ValueError(f"{entry[:100]!r} is not an origin: give one like https://chat.example:8443, null, or *")
    return re.sub(r"^(http://.+):80$|^(https://.+):443$", r"\1\2", written["origin"].lower())


Entries = Annotated[list[str], NoDecode, BeforeValidator(_entries)]
"""Comma-separated in the environment."""
Origins = Annotated[Entries, AfterValidator(lambda entries: [_origin(entry) for entry in entries])]


class SecuritySettings(BaseModel):
    """Who may use the server"""

    model_config = ConfigDict(use_attribute_docstrings=True)

    api_keys: Annotated[list[ApiKey], NoDecode, BeforeValidator(_api_keys)] = []
    """Keys that requests may come with: `KEY` or `NAME=KEY`, comma-separated. Without any, requests need no key."""
    api_keys_file: Annotated[Annotated[UserPath, AfterValidator(_readable_keys)] | None, BLANK_IS_NONE] = None
    """A file with more of them, one on each line."""
    admin_key: Annotated[SecretStr | None, AfterValidator(_admin_key)] = None
    """The key for `/admin`. It opens all other endpoints too."""
    insecure_no_auth: bool = False
    """Whether the server may listen beyond this machine without API keys; `--insecure-no-auth` sets it too."""
    allowed_hosts: Entries = []
    """Names that the Host header may have, comma-separated; `*` for any. When empty, a loopback address answers to the
    names of this machine (`localhost`, `host.docker.internal`, ...) and any other address to every name."""
    cors_origins: Origins = []
    """Origins of web pages and desktop apps that may use the server, comma-separated: `https://chat.example`,
    `app://obsidian.md`, `vscode-webview://*`, `null`; `*` for all."""
    rate_limit_requests_per_minute: int = Field(default=0, ge=0, le=10**9)
    """Generations that each key may ask for in a minute, or each address where there are no keys; `0` for no limit."""
    rate_limit_tokens_per_minute: int = Field(default=0, ge=0, le=10**9)
    """Tokens of prompts and answers that each key may use in a minute; `0` for no limit."""

    def all_api_keys(self) -> list[ApiKey]:
        """Those of the file too. Raises ValueError when it has become unreadable."""
        return [*self.api_keys, *(read_keys_file(self.api_keys_file) if self.api_keys_file is not None else [])]
