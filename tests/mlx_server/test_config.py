import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from mlx_manager.mlx_server.config import (
    ConfigFileError,
    MLXServerSettings,
    UnreadableSettings,
    faults_of,
    mlx_server_settings,
    warnings_of_environment,
)
from mlx_manager.mlx_server.model_settings import duration_seconds
from tests.running_server import HANG_SECONDS, running_server

BACKEND = Path(__file__).parents[2] / "backend"
TOKEN = "pylf_v1_secret"


@pytest.fixture(autouse=True)
def _environment_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("MLX_SERVER_") or name.upper() == "LOGFIRE_TOKEN":
            monkeypatch.delenv(name)


def test_the_defaults_are_those_of_the_public_contract() -> None:
    settings = MLXServerSettings()
    assert (settings.host, settings.port, settings.default_model) == ("127.0.0.1", 8000, "demo")
    assert settings.available_models == ["demo", "mlx-community/Llama-3.2-3B-Instruct-4bit"]
    assert (settings.default_max_tokens, settings.validation_error_status) == (4096, 422)
    assert settings.max_memory_gb > 0
    assert settings.max_models >= 1
    assert settings.logfire_token is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("host", "0.0.0.0", "0.0.0.0"),
        ("port", "9000", 9000),
        ("default_model", "org/model", "org/model"),
        ("max_memory_gb", "1.5", 1.5),
        ("max_models", "2", 2),
        ("default_max_tokens", "64", 64),
        ("drain_timeout_seconds", "0", 0),
        ("response_store_mb", "0", 0),
        ("response_ttl_seconds", "0.5", 0.5),
        ("max_queue", "0", 0),
        ("request_timeout_seconds", "0", 0),
        ("log_level", "DEBUG", "DEBUG"),
        ("log_format", "json", "json"),
        ("logfire_enabled", "false", False),
        ("validation_error_status", "400", 400),
        ("validation_error_status", "422", 422),
        ("available_models", "demo", ["demo"]),
        ("available_models", "demo, org/a ,./local,", ["demo", "org/a", "./local"]),
        ("available_models", "", []),
        ("fallbacks", '{"demo": ["gpu/llama"]}', {"demo": ["gpu/llama"]}),
        ("preload", "demo, org/a", ["demo", "org/a"]),
        ("keep_alive", "5m", 300.0),
        ("keep_alive", "-1", -1.0),
        ("allow_downloads", "true", True),
        ("api_keys", "", []),
        ("insecure_no_auth", "true", True),
        ("allowed_hosts", "gpu.lan, ::1", ["gpu.lan", "::1"]),
        ("cors_origins", "https://a.example,https://b.example", ["https://a.example", "https://b.example"]),
        ("rate_limit_requests_per_minute", "30", 30),
        ("rate_limit_tokens_per_minute", "9000", 9000),
    ],
)
def test_a_setting_is_read_from_its_prefixed_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: object
) -> None:
    monkeypatch.setenv(f"MLX_SERVER_{name.upper()}", value)
    assert getattr(MLXServerSettings(), name) == expected


@pytest.mark.parametrize("written", ["anna=sk-1=, sk-2==,c.d=x=y", '["anna=sk-1=", "sk-2==", "c.d=x=y"]'])
def test_api_keys_have_names_or_get_them(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("MLX_SERVER_API_KEYS", written)
    keys = [(key.name, key.key.get_secret_value()) for key in MLXServerSettings().api_keys]
    assert keys == [("anna", "sk-1="), ("key-2", "sk-2=="), ("c.d", "x=y")]


def test_api_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SERVER_API_KEYS", f"anna={TOKEN}")
    settings = MLXServerSettings()
    shown = (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json())
    assert not any(TOKEN in text for text in shown)
    monkeypatch.setenv("MLX_SERVER_API_KEYS", f"anna={TOKEN} x")
    with pytest.raises(ValidationError) as refused:
        MLXServerSettings()
    assert TOKEN not in str(refused.value)


def test_a_variable_without_the_prefix_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("HOST", "0.0.0.0")
    assert (MLXServerSettings().host, MLXServerSettings().port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize("name", ["LOGFIRE_TOKEN", "MLX_SERVER_LOGFIRE_TOKEN"])
def test_the_logfire_token_is_read_with_and_without_the_prefix(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, TOKEN)
    token = MLXServerSettings().logfire_token
    assert token is not None
    assert token.get_secret_value() == TOKEN


def test_the_prefixed_logfire_token_goes_before_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGFIRE_TOKEN", "of something else")
    monkeypatch.setenv("MLX_SERVER_LOGFIRE_TOKEN", TOKEN)
    token = MLXServerSettings().logfire_token
    assert token is not None
    assert token.get_secret_value() == TOKEN


def test_the_logfire_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGFIRE_TOKEN", TOKEN)
    settings = MLXServerSettings()
    shown = (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json())
    assert not any(TOKEN in text for text in shown)


def test_the_logfire_token_is_not_shown_when_another_setting_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGFIRE_TOKEN", TOKEN)
    monkeypatch.setenv("MLX_SERVER_PORT", "many")
    with pytest.raises(ValidationError) as refused:
        MLXServerSettings()
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "http"),
        ("port", ""),
        ("default_model", ""),
        ("max_models", "0"),
        ("max_memory_gb", "0"),
        ("max_memory_gb", "nan"),
        ("max_memory_gb", "plenty"),
        ("default_max_tokens", "0"),
        ("validation_error_status", "500"),
        ("drain_timeout_seconds", "-1"),
        ("response_store_mb", "-1"),
        ("response_ttl_seconds", "0"),
        ("max_queue", "-1"),
        ("request_timeout_seconds", "inf"),
        ("log_level", "LOUD"),
        ("log_format", "xml"),
        ("keep_alive", "soon"),
        ("models_dir", "/no/such/folder"),
        ("admin_key", ""),
        ("cors_origins", "chat.example"),
        ("cors_origins", "https://chat.example/page"),
        ("logfire_enabled", "perhaps"),
    ],
)
def test_a_bad_value_is_refused_by_the_settings_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MLX_SERVER_{name.upper()}", value)
    with pytest.raises(ValidationError) as refused:
        MLXServerSettings()
    assert [fault["loc"] for fault in refused.value.errors()] == [(name,)]


def test_a_program_may_give_its_settings_itself() -> None:
    settings = MLXServerSettings(port=0, available_models=["a", "b,c"], validation_error_status=400)
    assert (settings.port, settings.available_models, settings.validation_error_status) == (0, ["a", "b,c"], 400)


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        MLXServerSettings.model_validate({"prot": 9000})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("prot", "Bad setting prot: there is no such setting. Did you mean port?"),
        ("max_body_mb", "Bad setting max_body_mb: the setting was removed, and the server reads bodies of 32 MB."),
        ("whimsical", "Bad setting whimsical: there is no such setting. See docs/settings.md for all settings."),
    ],
)
def test_a_key_of_the_file_that_does_not_exist_is_told_what_to_do(working_folder: Path, name: str, line: str) -> None:
    write_config(working_folder, f"{name} = 1")
    with pytest.raises(ValidationError) as refused:
        MLXServerSettings()
    (told,) = faults_of(refused.value)
    assert told.startswith(line)


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        (
            "MLX_SERVER_MAX_MODEL",
            "MLX_SERVER_MAX_MODEL has no effect: there is no such setting. Did you mean MLX_SERVER_MAX_MODELS?",
        ),
        ("mlx_server_prot", "mlx_server_prot has no effect: there is no such setting. Did you mean MLX_SERVER_PORT?"),
        (
            "MLX_SERVER_MAX_TOOLS",
            "MLX_SERVER_MAX_TOOLS has no effect: the setting was removed, and a request may have 1024 tools.",
        ),
        ("MLX_SERVER_WHIMSICAL", "MLX_SERVER_WHIMSICAL has no effect: there is no such setting."),
    ],
)
def test_a_variable_that_does_not_exist_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, variable: str, line: str
) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("MLX_SERVER_CONFIG", "")
    monkeypatch.setenv("mlx_server_max_models", "2")
    (told,) = warnings_of_environment()
    assert told.startswith(line)


def test_the_server_warns_of_such_a_variable_when_it_starts(tmp_path: Path) -> None:
    with running_server(tmp_path, wait=False, max_tools=5, prt=1) as server:
        server.wait_for_log("Listening")
        server.wait_for_log("MLX_SERVER_MAX_TOOLS has no effect")
        server.wait_for_log("Did you mean MLX_SERVER_PORT?")


def test_the_settings_of_this_process_are_importable() -> None:
    assert isinstance(mlx_server_settings, MLXServerSettings)


BAD_SETTINGS = {"MLX_SERVER_PORT": "abc"}
BAD_FILE = "max_queue = 'many'\n[["


def run_where_settings_are_bad(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """In a folder whose mlx-manager.toml is broken, with a variable that is wrong too."""
    (folder / "mlx-manager.toml").write_text(BAD_FILE)
    environment = os.environ | BAD_SETTINGS | {"PYTHONPATH": str(BACKEND)}
    return subprocess.run(
        [sys.executable, "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


def test_no_module_minds_bad_settings_when_it_is_imported(tmp_path: Path) -> None:
    ran = run_where_settings_are_bad(
        tmp_path,
        "import importlib, pkgutil, mlx_manager\n"
        "for module in pkgutil.walk_packages(mlx_manager.__path__, 'mlx_manager.'):\n"
        "    importlib.import_module(module.name)\n"
        "print('all are imported')",
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "all are imported"), ran.stderr


@pytest.mark.parametrize("name", ["config.mlx_server_settings", "main.app"])
def test_a_program_that_asks_for_bad_settings_reads_what_is_wrong(tmp_path: Path, name: str) -> None:
    module, attribute = name.split(".")
    ran = run_where_settings_are_bad(
        tmp_path,
        "from mlx_manager.mlx_server.config import InvalidSettings\n"
        "try:\n"
        f"    from mlx_manager.mlx_server.{module} import {attribute}\n"
        "except InvalidSettings as exc:\n"
        "    print(exc)",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("The settings file mlx-manager.toml cannot be read: ")


def test_a_program_may_mend_its_settings_and_go_on(tmp_path: Path) -> None:
    ran = run_where_settings_are_bad(
        tmp_path,
        "import os, pathlib\n"
        "from mlx_manager.mlx_server import config\n"
        "try:\n"
        "    config.mlx_server_settings\n"
        "except config.InvalidSettings:\n"
        "    pathlib.Path('mlx-manager.toml').write_text('')\n"
        "    os.environ['MLX_SERVER_PORT'] = '8123'\n"
        "print(config.mlx_server_settings.port, config.mlx_server_settings is config.mlx_server_settings)",
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "8123 True"), ran.stderr


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(0, 0), (1.5, 1.5), ("90", 90), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), (-1, -1), ("-1", -1), ("-5m", -1)],
)
def test_a_duration_is_seconds_or_text_as_ollama_has_it(written: object, seconds: float) -> None:
    assert duration_seconds(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["", "5 minutes", "m", "1d", True, None, [], "inf", float("nan"), 1e300, 10**400])
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration_seconds(written)


def write_config(folder: Path, text: str) -> None:
    (folder / "mlx-manager.toml").write_text(text)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_settings_are_read_from_the_file_in_the_working_folder(working_folder: Path) -> None:
    write_config(
        working_folder,
        """
        port = 9000
        keep_alive = "10m"
        logfire_token = "from the file"
        [[models]]
        id = "mine"
        path = "."
        aliases = ["gpt-4o"]
        ttl = "1h"
        [models.sampling]
        temperature = 0.25
        """,
    )
    settings = MLXServerSettings()
    assert (settings.port, settings.keep_alive) == (9000, 600)
    assert settings.logfire_token is not None
    (model,) = settings.models
    assert (model.id, model.path, model.aliases, model.ttl) == ("mine", working_folder, ["gpt-4o"], 3600)
    assert model.sampling.temperature == 0.25
    assert model.trust_remote_code is False


def test_the_environment_goes_before_the_file_and_the_program_before_both(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(working_folder, "port = 9000\nmax_queue = 3\nmax_models = 2\nlogfire_token = 'file'")
    monkeypatch.setenv("MLX_SERVER_PORT", "9001")
    monkeypatch.setenv("MLX_SERVER_MAX_QUEUE", "4")
    monkeypatch.setenv("LOGFIRE_TOKEN", TOKEN)
    settings = MLXServerSettings(port=9002)
    assert (settings.port, settings.max_queue, settings.max_models) == (9002, 4, 2)
    assert settings.logfire_token is not None
    assert settings.logfire_token.get_secret_value() == TOKEN


def test_another_file_is_named_by_the_environment(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(working_folder, "port = 9000")
    (working_folder / "other.toml").write_text("port = 9001")
    monkeypatch.setenv("MLX_SERVER_CONFIG", str(working_folder / "other.toml"))
    assert MLXServerSettings().port == 9001


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("prot = 9000", ("prot",)),
        ('[[models]]\nid = "a"\npaht = "."', ("models", 0, "paht")),
        ('[[models]]\nid = "a"\n[models.sampling]\nheat = 1', ("models", 0, "sampling", "heat")),
        ('[[models]]\npath = "."', ("models", 0, "id")),
        ('[[models]]\nid = "a"\npath = "./nowhere"', ("models", 0)),
        ('[[models]]\nid = "a"\nadapter = "./nowhere"', ("models", 0)),
        ('[[models]]\nid = "a"\nchat_template = "./nowhere"', ("models", 0)),
        ('[[models]]\nid = "a"\npath = "."\nrepo = "org/a"', ("models", 0)),
        ('[[models]]\nid = "a"\n[[models]]\nid = "b"\naliases = ["a"]', ("models",)),
    ],
)
def test_a_mistake_in_the_file_is_named_by_its_key(
    working_folder: Path, text: str, where: tuple[str | int, ...]
) -> None:
    write_config(working_folder, text)
    with pytest.raises(ValidationError) as refused:
        MLXServerSettings()
    assert [fault["loc"] for fault in refused.value.errors()] == [where]


def test_a_file_that_is_not_there_or_no_toml_is_an_error(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(working_folder, "port = ")
    with pytest.raises(ConfigFileError, match=r"mlx-manager\.toml"):
        MLXServerSettings()
    monkeypatch.setenv("MLX_SERVER_CONFIG", "missing.toml")
    with pytest.raises(ConfigFileError, match=r"missing\.toml"):
        MLXServerSettings()


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("models", "nonsense", "Bad setting models: the value is not valid JSON"),
        ("upstreams", "{", "Bad setting upstreams: Expecting property name enclosed in double quotes"),
        ("config", "/no/such/file.toml", "The settings file /no/such/file.toml cannot be read: "),
        ("config", "/", "The settings file / cannot be read: "),
        ("config", "~nobody-of-that-name/x", "The settings file ~nobody-of-that-name/x cannot be read: "),
        ("models_dir", "~nobody-of-that-name/x", "Bad setting models_dir: there is no folder "),
        ("default_model", "~nobody-of-that-name/x", "Bad setting default_model: there is no folder ~nobody"),
        ("default_model", "/etc/hostname", "Bad setting default_model: /etc/hostname is a file, not a folder"),
        ("keep_alive", "soon", "Bad setting keep_alive: 'soon' is not a duration"),
    ],
)
def test_each_fault_is_one_line_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(f"MLX_SERVER_{name.upper()}", value)
    with pytest.raises(UnreadableSettings) as unreadable:
        MLXServerSettings()
    (told,) = faults_of(unreadable.value)
    assert told.startswith(line)
    assert "\n" not in told


def test_what_is_read_again_is_the_file_s_and_what_the_program_gave_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = MLXServerSettings(admin_key="of the program", max_queue=5)
    (tmp_path / "mlx-manager.toml").write_text('admin_key = "of the file"\nmax_models = 7\n')
    again = settings.model_copy(update={"max_models": 2}).read_again()
    assert (again.max_queue, again.max_models) == (5, 7)
    assert again.admin_key == settings.admin_key


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e300", "99999999999999999999"])
@pytest.mark.parametrize(
    "name",
    [
        "max_memory_gb",
        "prefix_cache_gb",
        "max_models",
        "max_queue",
        "request_timeout_seconds",
        "drain_timeout_seconds",
        "rate_limit_tokens_per_minute",
        "default_max_tokens",
        "keep_alive",
    ],
)
def test_number_that_no_server_can_follow_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    if (name, value) == ("keep_alive", "-inf"):
        value = "inf"
    monkeypatch.setenv(f"MLX_SERVER_{name.upper()}", value)
    with pytest.raises(ValidationError) as refused:
        MLXServerSettings()
    (fault,) = faults_of(refused.value)
    assert fault.startswith(f"Bad setting {name}: ")


@pytest.mark.parametrize("key", ["", " ", "\n", "schlüssel", "tab\tkey"])
def test_admin_key_that_no_header_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MLX_SERVER_ADMIN_KEY", key)
    with pytest.raises(ValidationError) as refused:
        MLXServerSettings()
    assert faults_of(refused.value)[0].startswith("Bad setting admin_key: ")


def test_admin_key_is_read_without_the_line_break_of_a_secret_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SERVER_ADMIN_KEY", "adm\n")
    key = MLXServerSettings().admin_key
    assert key is not None
    assert key.get_secret_value() == "adm"


def test_files_with_a_byte_order_mark_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys, config = tmp_path / "keys", tmp_path / "config.toml"
    keys.write_bytes(b"\xef\xbb\xbf# team\r\nanna=sk-anna\r\n")
    config.write_bytes(b"\xef\xbb\xbfmax_models = 2\r\n")
    monkeypatch.setenv("MLX_SERVER_API_KEYS_FILE", str(keys))
    monkeypatch.setenv("MLX_SERVER_CONFIG", str(config))
    settings = MLXServerSettings()
    assert [key.name for key in settings.all_api_keys()] == ["anna"]
    assert settings.max_models == 2


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_blank_path_is_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blank: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MODELS_DIR", "API_KEYS_FILE", "CONFIG"):
        monkeypatch.setenv(f"MLX_SERVER_{name}", blank)
    settings = MLXServerSettings(models=[{"id": "a", "path": blank, "adapter": blank, "chat_template": blank}])
    assert (settings.models_dir, settings.api_keys_file) == (None, None)
    (model,) = settings.models
    assert (model.path, model.adapter, model.chat_template) == (None, None, None)
