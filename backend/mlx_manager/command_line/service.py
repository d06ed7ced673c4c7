"""`service`: installs the server as a service of systemd or launchd, shows it, and removes it."""

import os
import shutil
import sys
from pathlib import Path

from mlx_manager.command_line.console import CommandFailed, note
from mlx_manager.command_line.service_files import NAME, STATE_FOLDER, Scope, Service
from mlx_manager.command_line.service_managers import (
    ServiceManager,
    System,
    config_home,
    manager_for,
    this_system,
)

STOP_MARGIN_SECONDS = 30
"""Beyond the drain: the last errors go out and the workers end, which takes less than 10 s."""
CONFIG_FILE = "mlx-manager.toml"


def install(
    model: str | None,
    config_file: Path | None,
    scope: Scope,
    account: str | None,
    only_print: bool = False,
    system: System | None = None,
) -> None:
    """Writes the service's description and starts the service. With `only_print` prints it, also for another system."""
    system = system if system is not None else this_system()
    manager = manager_for(system, scope)
    config_file = _config_file(config_file)
    _take_settings_of_service(config_file, _folder(scope, system))
    service = describe(model, config_file, scope, system, account)
    if only_print:
        print(manager.text(service), end="")
        return
    _check_rights(scope, "install")
    _check_reachable(service)
    service.folder.mkdir(parents=True, exist_ok=True)
    manager.file.parent.mkdir(parents=True, exist_ok=True)
    manager.file.write_text(manager.text(service), "utf-8")
    manager.file.chmod(0o644)
    manager.start()
    settings = config_file if config_file is not None else service.folder / CONFIG_FILE
    note(f"Installed {manager.file} and started it. Settings: {settings}")
    if system == "linux" and scope == "user":
        note("It runs while you are logged in. To start it at boot: loginctl enable-linger")


def uninstall(scope: Scope, system: System | None = None) -> None:
    """Ends the service and removes its description. Settings, models and logs stay."""
    system = system if system is not None else this_system()
    manager = _installed(manager_for(system, scope), scope)
    _check_rights(scope, "uninstall")
    manager.stop()
    manager.file.unlink()
    manager.forget()
    note(f"Stopped the service and removed {manager.file}. Settings, models and logs are still there.")


def status(scope: Scope, system: System | None = None) -> None:
    """Prints the service manager's report. Raises CommandFailed if the service does not run."""
    manager = _installed(manager_for(system if system is not None else this_system(), scope), scope)
    if not manager.is_active():
        raise CommandFailed(f"The service does not run. See its log: `mlx-manager service logs{_flag(scope)}`.")


def logs(scope: Scope, lines: int, follow: bool, system: System | None = None) -> None:
    system = system if system is not None else this_system()
    manager_for(system, scope).show_log(_log(scope), lines, follow)


def scope_of(system_wide: bool) -> Scope:
    return "system" if system_wide else "user"


def describe(model: str | None, config_file: Path | None, scope: Scope, system: System, account: str | None) -> Service:
    """The service of this installation, with the limits of the server and its settings."""
    from mlx_manager.mlx_server.bounds import Bounds
    from mlx_manager.mlx_server.utils.descriptors import descriptors_for
    from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu

    if scope == "user" and account is not None:
        raise CommandFailed("--account is for --system: a service of a user runs as that user. Remove it.")
    if scope == "system" and system == "macos" and account is None:
        account = _sudo_user()
    return Service(
        command=(_program(), "serve", *([] if model is None else [_absolute(model)])),
        scope=scope,
        account=account,
        folder=_folder(scope, system),
        environment=tuple(_environment(config_file, scope, system).items()),
        open_files=descriptors_for(Bounds().max_connections),
        stop_seconds=_stop_seconds(),
        uses_gpu=not computes_on_cpu(),
        log=_log(scope),
    )


def _stop_seconds() -> int:
    from mlx_manager.mlx_server.config import mlx_server_settings

    return mlx_server_settings.drain_timeout_seconds + STOP_MARGIN_SECONDS


def _config_file(given: Path | None) -> Path | None:
    """The settings file that `serve` would read here. None: the service reads the one in its own folder."""
    named = os.environ.get("MLX_SERVER_CONFIG", "").strip()
    if given is None and named:
        given = Path(named).expanduser()
    if given is None and os.path.isfile(CONFIG_FILE):
        given = Path(CONFIG_FILE)
    return None if given is None else given.absolute()


def _take_settings_of_service(config_file: Path | None, folder: Path) -> None:
    """Gives this process the settings that the service will have, before they are read. Names those it will not have.

    A service's file can be read by all users, and the shell's settings may be secrets.
    """
    lost = sorted(name for name in os.environ if name.startswith("MLX_SERVER_") and name != "MLX_SERVER_CONFIG")
    for name in lost:
        del os.environ[name]
    if lost:
        note(f"The service does not get this shell's {', '.join(lost)}. Put such settings into {CONFIG_FILE}.")
    own = folder / CONFIG_FILE
    if config_file is not None or own.is_file():
        os.environ["MLX_SERVER_CONFIG"] = str(config_file if config_file is not None else own)


def _environment(config_file: Path | None, scope: Scope, system: System) -> dict[str, str]:
    environment = {}
    if config_file is not None:
        environment["MLX_SERVER_CONFIG"] = str(config_file)
    if scope == "system" and system == "linux":
        environment |= {"HF_HOME": f"{STATE_FOLDER}/huggingface", "XDG_CACHE_HOME": f"{STATE_FOLDER}/cache"}
    elif os.environ.get("HF_HOME"):
        environment["HF_HOME"] = str(Path(os.environ["HF_HOME"]).expanduser().absolute())
    return environment


def _folder(scope: Scope, system: System) -> Path:
    if system == "macos":
        base = Path.home() if scope == "user" else Path("/")
        return base / "Library/Application Support" / NAME
    return config_home() / NAME if scope == "user" else Path("/etc") / NAME


def _log(scope: Scope) -> Path:
    return (Path.home() if scope == "user" else Path("/")) / "Library/Logs" / f"{NAME}.log"


def _program() -> str:
    """The command by the path under which it was called: links of Homebrew, pipx and uv outlive an upgrade."""
    called = Path(sys.argv[0])
    if called.name == NAME:
        return str(Path(shutil.which(called) or called).absolute())
    return str(Path(sys.executable).parent / NAME)


def _absolute(model: str) -> str:
    """A folder's path, which must not depend on the working directory. Ids of models stay as they are."""
    return str(Path(model).expanduser().absolute()) if model.startswith(("/", "./", "../", "~")) else model


def _sudo_user() -> str:
    name = os.environ.get("SUDO_USER")
    if not name:
        raise CommandFailed("A LaunchDaemon needs an account that owns its models: pass --account NAME.")
    return name


def _check_rights(scope: Scope, command: str) -> None:
    if scope == "system" and os.geteuid() != 0:
        raise CommandFailed(f"A system service needs root. Run `sudo mlx-manager service {command} --system`.")
    if scope == "user" and os.environ.get("SUDO_USER"):
        raise CommandFailed("This would install a service of root. Run it without sudo, or pass --system.")


def _check_reachable(service: Service) -> None:
    """systemd's own account cannot enter home folders."""
    if service.scope != "system" or service.account is not None:
        return
    program, config_file = Path(service.command[0]), dict(service.environment).get("MLX_SERVER_CONFIG", "/")
    needed = [program, program.resolve(), Path(sys.executable).resolve(), Path(config_file)]
    hidden = [path for path in needed if path.parts[1:2] in (("home",), ("root",))]
    if hidden:
        raise CommandFailed(
            f"The system service cannot read {hidden[0]}. Keep it outside of home folders (`pipx install --global`, a "
            "virtual environment in /opt, settings in /etc), or pass --account NAME to run the service as that user."
        )


def _installed(manager: ServiceManager, scope: Scope) -> ServiceManager:
    if not manager.file.exists():
        raise CommandFailed(f"There is no service at {manager.file}. Run `mlx-manager service install{_flag(scope)}`.")
    return manager


def _flag(scope: Scope) -> str:
    return " --system" if scope == "system" else ""
