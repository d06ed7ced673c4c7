"""Arguments of `mlx-manager service`. The commands are in `service.py`, which is imported when one runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlx_manager.command_line.console import run

app = typer.Typer(
    no_args_is_help=True,
    help="Run the server as a service of systemd (Linux) or launchd (macOS).",
    epilog="Example: mlx-manager service install",
)

SystemWide = Annotated[bool, typer.Option("--system", help="For the whole machine, from boot on. Needs root.")]


@app.command(epilog="Example: mlx-manager service install mlx-community/Llama-3.2-3B-Instruct-4bit")
def install(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="demo, a Hugging Face repo id, or a local folder.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, resolve_path=True, metavar="FILE", help="TOML file with settings."),
    ] = None,
    system_wide: SystemWide = False,
    account: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --system: the account that runs the server.")
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Show the service's file; write and start nothing.")
    ] = False,
    system: Annotated[
        Literal["linux", "macos"] | None, typer.Option("--for", help="With --print: the system to show it for.")
    ] = None,
) -> None:
    """Install the server as a service and start it, now and at each login; with --system at each boot."""
    from mlx_manager.command_line import service as command

    if system is not None and not only_print:
        raise typer.BadParameter("It needs --print.", param_hint="--for")
    run(lambda: command.install(model, config, command.scope_of(system_wide), account, only_print, system))


@app.command(epilog="Example: mlx-manager service status")
def status(system_wide: SystemWide = False) -> None:
    """Show whether the service runs. Exit status 0 if it does."""
    from mlx_manager.command_line import service as command

    run(lambda: command.status(command.scope_of(system_wide)))


@app.command(epilog="Example: mlx-manager service logs --follow")
def logs(
    system_wide: SystemWide = False,
    lines: Annotated[int, typer.Option(min=0, help="How many of the last lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show the service's log."""
    from mlx_manager.command_line import service as command

    run(lambda: command.logs(command.scope_of(system_wide), lines, follow))


@app.command(epilog="Example: mlx-manager service uninstall")
def uninstall(system_wide: SystemWide = False) -> None:
    """Stop the service and remove it. Settings, models and logs stay."""
    from mlx_manager.command_line import service as command

    run(lambda: command.uninstall(command.scope_of(system_wide)))
