"""`doctor`: checks whether this machine can run the server. Each check is ok or names a remedy."""

from collections.abc import Iterator
from dataclasses import asdict

from mlx_manager.command_line.check import Check
from mlx_manager.command_line.console import CommandFailed, note, print_json, print_table

COLUMNS = ("CHECK", "STATE", "FOUND", "REMEDY")


def doctor(as_json: bool) -> None:
    checks = list(_examine())
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(COLUMNS, [(check.name, check.state, check.found, check.remedy) for check in checks])
    broken = [check.name for check in checks if check.state == "broken"]
    if broken:
        raise CommandFailed(f"broken: {', '.join(broken)}. See the remedies above.")


def _examine() -> Iterator[Check]:
    from mlx_manager.command_line import machine_checks
    from mlx_manager.mlx_server import config

    yield from machine_checks.checks()
    try:
        settings = config.mlx_server_settings
    except config.InvalidSettings as exc:
        note(str(exc))
        yield Check("settings", "broken", "named above", "correct or unset the MLX_SERVER_* variables")
        return
    yield Check("settings", "ok", "can be read")
    from mlx_manager.command_line import server_checks

    yield from server_checks.checks(settings)
