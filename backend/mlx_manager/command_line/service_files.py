"""The server as a service: one description, written as a systemd unit or as a launchd property list. Pure."""

import plistlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Scope = Literal["user", "system"]

NAME = "mlx-manager"
LABEL = "io.github.mlx-manager"
"""The name of the job in launchd."""
STATE_FOLDER = "/var/lib/mlx-manager"
RESTART_SECONDS = {"systemd": 2, "launchd": 10}
BAD_SETTINGS_STATUS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The server as both service managers start, limit and stop it."""

    command: tuple[str, ...]
    scope: Scope
    account: str | None
    """The account of a system service. None: systemd makes one while the service runs."""
    folder: Path
    """The working directory, in which the server finds mlx-manager.toml."""
    environment: tuple[tuple[str, str], ...]
    open_files: int
    stop_seconds: int
    """From SIGTERM to SIGKILL; longer than the server's drain."""
    uses_gpu: bool
    log: Path
    """The log file on macOS. systemd has its journal."""


def launchd_plist(service: Service) -> str:
    """A LaunchAgent (user) or LaunchDaemon (system). launchd expands neither `~` nor variables."""
    job: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(service.command),
        "WorkingDirectory": str(service.folder),
        "EnvironmentVariables": dict(service.environment),
        "RunAtLoad": True,
        # launchd cannot distinguish status 2, bad settings, from a crash: it starts both again.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_SECONDS["launchd"],
        "ExitTimeOut": service.stop_seconds,
        # Any other type throttles the CPU and the disk.
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": service.open_files},
        "StandardOutPath": str(service.log),
        "StandardErrorPath": str(service.log),
    }
    if service.account is not None:
        job["UserName"] = service.account
    return plistlib.dumps(job, sort_keys=False).decode()


def systemd_unit(service: Service) -> str:
    """A user unit, or a system unit that confines the server."""
    is_system = service.scope == "system"
    network = ["After=network-online.target", "Wants=network-online.target"] if is_system else []
    lines = [
        "[Unit]",
        "Description=OpenAI-compatible inference server for MLX models",
        *network,
        "",
        "[Service]",
        *_process_lines(service),
        "",
        *(_system_lines(service) if is_system else []),
        *_CONFINEMENT,
        "",
        "[Install]",
        f"WantedBy={'multi-user' if is_system else 'default'}.target",
    ]
    return "\n".join(lines) + "\n"


def _process_lines(service: Service) -> list[str]:
    return [
        "Type=exec",
        f"WorkingDirectory={_without_specifiers(str(service.folder))}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.environment),
        "# API keys and settings, one MLX_SERVER_...=value in a line. Only its owner should be able to read it.",
        f"EnvironmentFile=-{_without_specifiers(str(service.folder))}/environment",
        f"ExecStart={' '.join(_quoted(word).replace('$', '$$') for word in service.command)}",
        "# Reads mlx-manager.toml again.",
        "ExecReload=/bin/sh -c 'kill -HUP $$MAINPID'",
        "# SIGTERM goes to the server alone, which drains and then ends its workers.",
        "KillMode=mixed",
        f"TimeoutStopSec={service.stop_seconds}",
        "Restart=on-failure",
        f"RestartSec={RESTART_SECONDS['systemd']}",
        "# Bad settings, a port in use, a model that does not exist: another start would end in the same way.",
        f"RestartPreventExitStatus={BAD_SETTINGS_STATUS}",
        f"LimitNOFILE={service.open_files}:524288",
    ]


def _system_lines(service: Service) -> list[str]:
    account = ["DynamicUser=true"] if service.account is None else [f"User={service.account}"]
    return [
        *account,
        f"StateDirectory={NAME}",
        f"ConfigurationDirectory={NAME}",
        # An account's models may be in its home folder.
        f"ProtectHome={'true' if service.account is None else 'read-only'}",
        # Each of the two hides a GPU's devices.
        *([] if service.uses_gpu else ["PrivateDevices=true", "ProtectClock=true"]),
        *_SYSTEM_CONFINEMENT,
    ]


_CONFINEMENT = (
    "NoNewPrivileges=true",
    "LockPersonality=true",
    "RestrictRealtime=true",
    "RestrictSUIDSGID=true",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "SystemCallArchitectures=native",
    "UMask=0077",
)
"""What a user's own service manager may do as well."""
_SYSTEM_CONFINEMENT = (
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "ProtectSystem=strict",
    "PrivateTmp=true",
    "ProtectControlGroups=true",
    "ProtectHostname=true",
    "ProtectKernelLogs=true",
    "ProtectKernelModules=true",
    "ProtectKernelTunables=true",
    "ProtectProc=invisible",
    "RestrictNamespaces=true",
    "RemoveIPC=true",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
)


def _without_specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of a unit's command or environment."""
    text = _without_specifiers(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if not text or any(mark in text for mark in " \t'\"\\;") else text
