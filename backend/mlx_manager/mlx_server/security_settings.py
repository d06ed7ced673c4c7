"""The settings of access: keys, hosts, origins and rates. Does not know how they are enforced."""

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
"""`name=key`, but not a key that ends in base64 padding."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`name` identifies the key in logs and metrics."""

    name: str
    key: SecretStr


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))  # Path.expanduser raises for an unknown user


def _none_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


UserPath = Annotated[Path, AfterValidator(_absolute)]
"""A path in which `~` is the home folder."""
BLANK_IS_NONE = BeforeValidator(_none_if_blank)
"""For an optional path."""


def _entries(value: object) -> object:
    """Splits a text, which is comma-separated or a JSON list. Other values are returned for the type to check."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        return json.loads(value)
    return [entry.strip() for entry in value.split(",") if entry.strip()]


def _api_keys(value: object) -> object:
    entries = _entries(value.get_secret_value() if isinstance(value, SecretStr) else value)
    if not isinstance(entries, list | tuple):
        raise ValueError("the value is not a list of keys. Use a list of KEY or NAME=KEY.")
    return _distinct([_api_key(entry, number) for number, entry in enumerate(entries, 1)])


def _distinct(keys: list[ApiKey]) -> list[ApiKey]:
    """Raises ValueError for a key with two names."""
    names: dict[str, str] = {}
    for key in keys:
        other = names.setdefault(key.key.get_secret_value(), key.name)
        if other != key.name:
            raise ValueError(f"{other} and {key.name} have the same key. Use a different key for each.")
    return keys


def _api_key(entry: object, number: int) -> ApiKey:
    """Raises ValueError, which does not contain the key."""
    if isinstance(entry, ApiKey):
        return entry
    if not isinstance(entry, str):
        raise ValueError(f"key {number} is not text. Write it as KEY or NAME=KEY.")
    named = _NAMED_KEY.fullmatch(entry.strip())
    name, text = (named[1], named[2]) if named is not None else (f"key-{number}", entry)
    key = header_key(SecretStr(text))
    if key is None or " " in key.get_secret_value():
        raise ValueError(f"key {number} is empty or contains a space. Write it as KEY or NAME=KEY.")
    return ApiKey(name, key)


def _admin_key(key: SecretStr | None) -> SecretStr | None:
    usable = header_key(key)
    if key is not None and usable is None:
        raise ValueError("the key is blank. Set a key, or remove the setting.")
    return usable


def _readable_keys(path: Path) -> Path:
    read_keys_file(path)
    return path


def read_keys_file(path: Path) -> list[ApiKey]:
    """Reads a `key` or `name=key` per line; `#` begins a comment line. Raises ValueError, which contains no key."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ValueError(f"{path} cannot be read: {reason}. Correct the path or the file.") from exc
    entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not entries:
        raise ValueError(f"{path} contains no key. Write a KEY or NAME=KEY on each line.")
    return _distinct([_api_key(entry, number) for number, entry in enumerate(entries, 1)])


def is_readable_by_all(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IROTH)


_ORIGIN = re.compile(r"(?P<origin>[a-z][a-z0-9+.-]*://[^/\s,]*)/?", re.IGNORECASE)


def _origin(entry: str) -> str:
    """The origin as browsers write it, without the default port of its scheme. Raises ValueError."""
    if entry in ("*", "null"):
        return entry
    written = _ORIGIN.fullmatch(entry)
    if written is None:
        raise ValueError(f"{entry[:100]!r} is not an origin. Use one such as https://chat.example:8443, or null, or *.")
    return re.sub(r"^(http://.+):80$|^(https://.+):443$", r"\1\2", written["origin"].lower())


Entries = Annotated[list[str], NoDecode, BeforeValidator(_entries)]
"""A list that is comma-separated in the environment."""
Origins = Annotated[Entries, AfterValidator(lambda entries: [_origin(entry) for entry in entries])]


class SecuritySettings(BaseModel):
    """Access"""

    model_config = ConfigDict(use_attribute_docstrings=True)

    api_keys: Annotated[list[ApiKey], NoDecode, BeforeValidator(_api_keys)] = []
    """API keys, as `KEY` or `NAME=KEY`, comma-separated. Without any, requests need no key."""
    api_keys_file: Annotated[Annotated[UserPath, AfterValidator(_readable_keys)] | None, BLANK_IS_NONE] = None
    """A file with more API keys, one per line."""
    admin_key: Annotated[SecretStr | None, AfterValidator(_admin_key)] = None
    """The key for `/admin`. All other endpoints accept it too."""
    insecure_no_auth: bool = False
    """Whether the server may run without API keys on addresses that other machines can reach; `--insecure-no-auth` sets
    it too."""
    allowed_hosts: Entries = []
    """Accepted names of the Host header, comma-separated; `*` for any. When empty, a loopback address accepts the names
    of this machine (`localhost`, `host.docker.internal`, ...), and any other address accepts every name."""
    cors_origins: Origins = []
    """Origins of allowed web pages and desktop apps, comma-separated: `https://chat.example`,
    `app://obsidian.md`, `vscode-webview://*`, `null`; `*` for all."""
    ui: bool = True
    """Whether the server serves its page at `/` and `/ui`."""
    rate_limit_requests_per_minute: int = Field(default=0, ge=0, le=10**9)
    """Generation requests per minute for each key, or for each client address without keys; `0` for no limit."""
    rate_limit_tokens_per_minute: int = Field(default=0, ge=0, le=10**9)
    """Prompt and answer tokens per minute for each key; `0` for no limit."""

    def all_api_keys(self) -> list[ApiKey]:
        """The keys of the setting and of the file. Raises ValueError if the file cannot be read."""
        return [*self.api_keys, *(read_keys_file(self.api_keys_file) if self.api_keys_file is not None else [])]
