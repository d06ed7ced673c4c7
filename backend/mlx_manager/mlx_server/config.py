"""Reads the settings from `MLX_SERVER_*` environment variables, which go first, and from the settings file.

The file is `MLX_SERVER_CONFIG`, or `mlx-manager.toml` in the working directory if it exists. Its keys are the names of
the settings; `[[models]]` entries describe models. This module does not know what the settings configure.
"""

import functools
import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from mlx_manager.demo import DEMO_MODEL_ID
from mlx_manager.mlx_server import machine
from mlx_manager.mlx_server.model_settings import KEEP_FOREVER, Duration, ModelSettings, why_no_folder
from mlx_manager.mlx_server.rank_settings import RanksSettings
from mlx_manager.mlx_server.request_settings import RequestSettings
from mlx_manager.mlx_server.security_settings import BLANK_IS_NONE, SecuritySettings, UserPath
from mlx_manager.mlx_server.setting_names import hint_for
from mlx_manager.mlx_server.upstream_settings import UpstreamsSettings
from mlx_manager.utf8 import is_utf8

CONFIG_FILE = "mlx-manager.toml"


def _share_of_memory_gb(share: float) -> float:
    return machine.memory_bytes() * share / 1024**3


class _Group(BaseModel):
    """Settings for one purpose. The docstrings of the groups and fields are the text of docs/settings.md."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class ServeSettings(_Group):
    """Where the server listens"""

    host: str = "127.0.0.1"
    """The address to listen on; `--host` overrides it. Addresses that other machines can reach require API keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port to listen on; `--port` overrides it."""
    drain_timeout_seconds: int = Field(default=30, ge=0, le=10**9)
    """How long running requests may continue after SIGTERM."""
    prevent_sleep: bool = True
    """Whether to keep a Mac from idle sleep while requests run."""


class ModelsSettings(_Group):
    """Models"""

    default_model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = DEMO_MODEL_ID
    """The model to load at start: `demo`, a Hugging Face repo id or a local folder. `serve MODEL` overrides it."""
    available_models: Annotated[list[str], NoDecode] = [DEMO_MODEL_ID, "mlx-community/Llama-3.2-3B-Instruct-4bit"]
    """Repo ids and folders that requests may load besides the default model, comma-separated."""
    models: list[ModelSettings] = []
    """Models with their own settings: `[[models]]` entries of the file, described in [models.md](models.md)."""
    models_dir: Annotated[UserPath | None, BLANK_IS_NONE] = None
    """A folder whose subfolders (`name` or `org/name`) are models that requests may load."""
    hub_cache: bool = True
    """Whether requests may load the models of the Hugging Face cache."""
    allow_downloads: bool = False
    """Whether requests may download any model of the Hugging Face hub. When off, only models named by the settings."""
    default_for_unknown: bool = False
    """Whether the default model answers requests for unknown models."""
    preload: Annotated[list[str], NoDecode] = []
    """Ids of models to load at start besides the default model, comma-separated."""
    keep_alive: Duration = KEEP_FOREVER
    """How long an idle model stays loaded: seconds, or text such as `5m`; `-1` until another model needs the memory."""
    warm_up: bool = True
    """Whether a loaded model runs made-up prompts before it is ready, so that no request waits for a GPU's kernels to
    be compiled. `serve --no-warm-up` turns it off."""
    keep_bfloat16: bool = False
    """Whether an M1 or M2 computes in bfloat16, which these chips emulate, if the model's weights have it. When off,
    such models compute in float16, except families that overflow it."""

    @field_validator("default_model")
    @classmethod
    def _check_folder(cls, value: str) -> str:
        is_folder = value.startswith(("/", "./", "../", "~")) or not is_utf8(value)
        fault = why_no_folder(value) if is_folder else None
        if fault is not None:
            raise ValueError(f"{fault}. Correct the path.")
        return value

    @field_validator("models")
    @classmethod
    def _check_model_names(cls, value: list[ModelSettings]) -> list[ModelSettings]:
        names = [name for model in value for name in (model.id, *model.aliases)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two models have the id or alias {twice[0]!r}. Rename one.")
        return value

    @field_validator("models_dir")
    @classmethod
    def _check_models_dir(cls, value: Path | None) -> Path | None:
        fault = why_no_folder(value) if value is not None else None
        if fault is not None:
            raise ValueError(f"{fault}. Correct the path.")
        return value

    @field_validator("available_models", "preload", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("["):
            return json.loads(value)
        if isinstance(value, str):
            return [entry.strip() for entry in value.split(",") if entry.strip()]
        return value


class MemorySettings(_Group):
    """Memory"""

    max_models: int = Field(default=4, ge=1, le=10**9)
    """Limit of loaded models. The server unloads the least recently used idle model for the next one. A request
    waits while all are busy."""
    max_memory_gb: float = Field(default_factory=lambda: _share_of_memory_gb(0.75), gt=0, le=1e6, allow_inf_nan=False)
    """GB (1024**3 bytes) for weights and KV caches of all loaded models together. Default: three quarters of the memory
    of the machine or container, at most what Metal recommends; on CUDA nine tenths of the GPU's memory."""
    prefix_cache_gb: float = Field(default_factory=lambda: _share_of_memory_gb(0.1), ge=0, le=1e6, allow_inf_nan=False)
    """GB for cached prompt prefixes of all models together, which later prompts with the same prefix reuse; `0` turns
    the cache off. Default: a tenth of the memory of the machine, container or CUDA device."""
    prefix_disk_gb: float = Field(default=0, ge=0, le=1e6, allow_inf_nan=False)
    """GB on disk for prefixes of all models, so that they survive a restart and eviction; `0` writes none. The files
    contain prompts: [prefix-cache.md](prefix-cache.md#on-disk)."""
    prefix_disk_folder: Annotated[UserPath | None, BLANK_IS_NONE] = None
    """The folder of these files. Default: `$XDG_CACHE_HOME/mlx-manager/prefixes` or `~/.cache/mlx-manager/prefixes`."""
    wire_memory: bool = False
    """Whether to keep models wired in memory on a Mac. [It can crash the machine](operations.md#wired-memory)."""


class LogSettings(_Group):
    """Logs and traces"""

    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)] = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
    log_format: Literal["human", "json"] = "human"
    """`human`, or `json` for one object per line."""
    trace_content: bool = False
    """Whether to record prompts and answers on the spans of requests."""
    logfire_enabled: bool = True
    """Whether to trace requests. Without a token or an OTLP endpoint the server sends nothing."""
    logfire_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("MLX_SERVER_LOGFIRE_TOKEN", "LOGFIRE_TOKEN")
    )
    """The token of the LogFire project that receives the traces; plain `LOGFIRE_TOKEN` works too."""


GROUPS: tuple[type[BaseModel], ...] = (
    ServeSettings,
    ModelsSettings,
    RanksSettings,
    MemorySettings,
    RequestSettings,
    SecuritySettings,
    UpstreamsSettings,
    LogSettings,
)


class MLXServerSettings(  # reversed, because pydantic lists the fields of the last base first
    BaseSettings,
    LogSettings,
    UpstreamsSettings,
    SecuritySettings,
    RequestSettings,
    MemorySettings,
    RanksSettings,
    ModelsSettings,
    ServeSettings,
):
    """All settings. Each field is `MLX_SERVER_<NAME>` in the environment, which overrides the same name in the file."""

    # hide_input_in_errors keeps the key of an invalid upstream out of the error.
    model_config = SettingsConfigDict(
        env_prefix="MLX_SERVER_", populate_by_name=True, protected_namespaces=(), hide_input_in_errors=True
    )

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._given = given

    def read_again(self) -> "MLXServerSettings":
        """The current settings of environment and file, with the constructor's arguments. Raises UnreadableSettings."""
        return MLXServerSettings(**self._given)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, _config_file())


class ConfigFileError(Exception):
    """The settings file is missing or not TOML."""


def _config_file() -> dict[str, Any]:
    named = os.environ.get("MLX_SERVER_CONFIG", "").strip()
    path = Path(os.path.expanduser(named if named else CONFIG_FILE))
    if not named and not os.path.isfile(path):  # Path.is_file raises for a folder without permission
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as exc:
        raise ConfigFileError(
            f"The settings file {path} cannot be read: {exc}. Correct the file, or MLX_SERVER_CONFIG."
        ) from exc


UnreadableSettings = (ConfigFileError, SettingsError, ValidationError)
"""The exceptions of reading the settings."""


def faults_of(exc: Exception) -> list[str]:
    """One line per fault of invalid settings."""
    if isinstance(exc, ValidationError):
        return [_fault(fault["type"], fault["loc"], fault["msg"]) for fault in exc.errors()]
    if isinstance(exc, SettingsError):  # its message names the field and pydantic's classes
        field = re.search(r'field "(\w+)"', str(exc))
        return [f"Bad setting {field[1] if field is not None else ''}: the value is not valid JSON. Correct it."]
    return [str(exc)]


def _fault(kind: str, place: tuple[int | str, ...], message: str) -> str:
    what = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        what = hint_for(str(place[0]), _NAMES) if len(place) == 1 else "there is no such setting. Remove it"
    return f"Bad setting {'.'.join(map(str, place))}: {what if what.endswith(('.', '?')) else f'{what}.'}"


_NAMES = tuple(MLXServerSettings.model_fields)


def warnings_of_environment() -> list[str]:
    """One line per `MLX_SERVER_*` variable that is not the name of a setting and has no effect."""
    named = [
        name for name in os.environ if name.upper().startswith("MLX_SERVER_") and name.upper() != "MLX_SERVER_CONFIG"
    ]
    settings = {name: name.lower().removeprefix("mlx_server_") for name in named}
    return [
        f"{variable} has no effect: {hint_for(name, _NAMES, str.upper, 'MLX_SERVER_')}"
        for variable, name in settings.items()
        if name not in _NAMES
    ]


class InvalidSettings(Exception):
    """The settings of this process are invalid. The message has one line per fault."""


mlx_server_settings: MLXServerSettings
"""The settings of this process, read on first access. Raises InvalidSettings."""


@functools.cache
def _settings_of_this_process() -> MLXServerSettings:
    try:
        return MLXServerSettings()
    except UnreadableSettings as exc:
        raise InvalidSettings("\n".join(faults_of(exc))) from exc


if not TYPE_CHECKING:  # a module __getattr__ would give every name a type

    def __getattr__(name: str) -> MLXServerSettings:
        if name == "mlx_server_settings":
            return _settings_of_this_process()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
