"""The `[[models]]` entries of the settings file, and durations. Knows no models."""

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.rank_settings import RankSettings
from mlx_manager.mlx_server.security_settings import BLANK_IS_NONE, UserPath
from mlx_manager.utf8 import is_utf8, shown

KEEP_FOREVER = -1.0
MAX_DURATION_SECONDS = 10 * 365 * 86_400
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")


def duration_seconds(value: object) -> float:
    """Seconds of a number or a text such as "5m" or "1h30m". Negative ones become -1, no limit. Raises ValueError."""
    number: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an int larger than any float
            number = float(value)
    elif isinstance(value, str):
        text = value.strip().removeprefix("-")
        sign = -1 if value.strip().startswith("-") else 1
        if re.fullmatch(r"\d+(\.\d+)?", text):
            number = sign * float(text)
        elif _DURATION.fullmatch(text):
            parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
            number = sign * sum(float(amount) * _UNIT_SECONDS[unit] for amount, unit in parts)
    if number is None or not abs(number) < MAX_DURATION_SECONDS:
        raise ValueError(f"{str(value)[:50]!r} is not a duration. Use seconds, text such as '5m', or -1 for no limit.")
    return number if number >= 0 else KEEP_FOREVER


Duration = Annotated[float, BeforeValidator(duration_seconds)]
"""Seconds; -1 means no limit."""


def why_no_folder(path: str | Path) -> str | None:
    """Why `path` is not a readable folder, without a full stop; None if it is one."""
    path = os.path.expanduser(path)
    if not is_utf8(path):
        return f"the path {shown(path)} is not UTF-8"
    if os.path.isdir(path):
        return None if os.access(path, os.R_OK | os.X_OK) else f"the folder {path} cannot be read: permission denied"
    return f"{path} is a file, not a folder" if os.path.exists(path) else f"there is no folder {path}"


class _TomlTable(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class SamplingSettings(_TomlTable):
    """Sampling defaults of a model, which override its generation_config.json."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=10**9)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)


class ModelSettings(_TomlTable, RankSettings):
    """One `[[models]]` entry of the file: a model at `path`, or the hub's `repo`, which defaults to `id`."""

    id: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    path: Annotated[UserPath | None, BLANK_IS_NONE] = None
    repo: str | None = None
    revision: str | None = None
    aliases: list[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]] = []
    sampling: SamplingSettings = SamplingSettings()
    max_tokens: int | None = Field(default=None, ge=1, le=10**9)
    """Default limit of an answer."""
    context_length: int | None = Field(default=None, ge=1, le=10**9)
    chat_template: Annotated[UserPath | None, BLANK_IS_NONE] = None
    """A file with a Jinja template that replaces the model's own."""
    adapter: Annotated[UserPath | None, BLANK_IS_NONE] = None
    """A folder with a LoRA adapter in mlx-lm's format."""
    kind: ModelKind | None = None
    """What the model does; detected from its files when not given."""
    pin: bool = False
    """Whether the model stays loaded."""
    ttl: Duration | None = None
    """How long the model stays loaded when idle; defaults to `keep_alive`."""
    trust_remote_code: bool = False
    """Whether to run Python code that comes with the model."""
    dequantize: bool = False
    """Whether to hold quantised weights dequantised in memory."""
    prefix_disk: bool = True
    """Whether the model's prefixes may be written to disk, if `prefix_disk_gb` allows any."""

    @model_validator(mode="after")
    def _check_paths(self) -> "ModelSettings":
        if self.path is not None and (self.repo is not None or self.revision is not None):
            raise ValueError("path and repo or revision are mutually exclusive. Remove one.")
        for name, folder in (("path", self.path), ("adapter", self.adapter)):
            fault = why_no_folder(folder) if folder is not None else None
            if fault is not None:
                raise ValueError(f"{name}: {fault}. Correct the path.")
        if self.chat_template is not None and not os.path.isfile(self.chat_template):
            raise ValueError(f"chat_template: there is no file {self.chat_template}. Correct the path.")
        return self
