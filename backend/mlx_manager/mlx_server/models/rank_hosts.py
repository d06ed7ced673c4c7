"""Reads hosts files of MLX, and chooses ports on this machine. Starts nothing."""

import ipaddress
import json
import socket
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mlx_manager.mlx_server.engine.membership import RankHost
from mlx_manager.mlx_server.rank_settings import MAX_RANKS, RankBackend

FIRST_PORT = 32323
"""As in mlx.launch: an address without a port gets the next one."""
_EXAMPLE = '[{"ssh": "mac1", "ips": ["10.0.0.1"]}, {"ssh": "mac2", "ips": ["10.0.0.2"]}]'


class BadHosts(Exception):
    """The hosts file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class HostsFile:
    hosts: list[RankHost]
    backend: RankBackend | None = None
    environment: dict[str, str] = field(default_factory=dict)


class _Host(msgspec.Struct):
    ips: list[str]
    ssh: str | None = None
    rdma: list[str | list[str] | None] = []
    python: str | None = None


class _Hosts(msgspec.Struct):
    hosts: list[_Host]
    backend: RankBackend | None = None
    envs: list[str] = []


def local_hosts(ranks: int) -> list[RankHost]:
    """Processes on this machine, which listen on free ports of the loopback address."""
    probes = [socket.socket() for _ in range(ranks)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [RankHost([f"127.0.0.1:{probe.getsockname()[1]}"]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def read_hosts(file: Path) -> HostsFile:
    """Raises BadHosts. The first host is this machine; one without `ssh` is started by hand."""
    try:
        text = file.read_bytes()
        read = json.loads(text)
        found = msgspec.convert(read if isinstance(read, dict) else {"hosts": read}, type=_Hosts)
    except (OSError, ValueError, msgspec.ValidationError) as exc:
        raise BadHosts(f"{file} is not a hosts file of MLX: {exc}. Write it like {_EXAMPLE}.") from exc
    if not 2 <= len(found.hosts) <= MAX_RANKS:
        raise BadHosts(f"{file} has {len(found.hosts)} hosts. Give 2 to {MAX_RANKS}; the first one is this machine.")
    variables = [line.partition("=") for line in found.envs]
    wrong = [name for name, equals, _ in variables if not equals or not name.isidentifier()]
    if wrong:
        raise BadHosts(f"{file} has the entry {wrong[0]!r} in envs. Write NAME=VALUE.")
    return HostsFile(_with_ports(file, found.hosts), found.backend, {name: value for name, _, value in variables})


def _with_ports(file: Path, hosts: list[_Host]) -> list[RankHost]:
    port, given = FIRST_PORT, []
    for rank, host in enumerate(hosts):
        if not host.ips:
            raise BadHosts(f"{file}: host {rank} has no ips. Give the address that the other ranks connect to.")
        if host.ssh is not None and host.ssh.startswith("-"):
            raise BadHosts(f"{file}: host {rank} has the ssh name {host.ssh!r}. Give a name or user@name.")
        addresses = []
        for address in host.ips:
            ip, _, own_port = address.partition(":")
            _check_address(file, rank, ip, own_port)
            addresses.append(address if own_port else f"{ip}:{port}")
            port += 1
        name = host.ssh if rank and host.ssh else None
        given.append(RankHost(addresses, name, host.python, host.rdma, by_hand=bool(rank) and name is None))
    return given


def _check_address(file: Path, rank: int, ip: str, port: str) -> None:
    try:
        address = ipaddress.IPv4Address(ip)
    except ValueError:
        address = None
    if address is None or (port and not port.isdigit()):
        raise BadHosts(f"{file}: host {rank} has the address {ip!r}. Give IPv4 addresses, which ring connects to.")
    if address.is_unspecified:
        raise BadHosts(
            f"{file}: host {rank} has the address {ip}, which every network reaches. Give the address of one network."
        )
