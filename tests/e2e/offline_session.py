"""Runs in a network namespace that has only a loopback interface: `python offline_session.py FOLDER`.

Starts the server, sends it requests and stops it, and prints as JSON how many packets or lookups had no route, then
and after an attempt that must be counted. The kernel counts them for the whole namespace, so also for the workers.
"""

import contextlib
import fcntl
import json
import socket
import struct
import sys
from pathlib import Path

from tests.running_server import running_server

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16sH14s", b"lo", 0, b""))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


def without_route() -> int:
    """Attempts over IPv4 and IPv6 that found no route."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:3] == "Ip:")
    counted = int(values[names.index("OutNoRoutes")])
    for line in Path("/proc/net/snmp6").read_text().splitlines():
        if line.startswith("Ip6OutNoRoutes"):
            counted += int(line.split()[1])
    return counted


def use(folder: Path) -> None:
    with running_server(folder) as server:
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"
        body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        with server.stream("/v1/chat/completions", body) as payloads:
            assert list(payloads)[-1] == "[DONE]"
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
        assert server.post("/v1/chat/completions", {**body, "response_format": schema}).status_code == 200
        assert server.post("/v1/chat/completions", {**body, "model": "no/such-model"}).status_code == 404


def main() -> None:
    bring_loopback_up()
    use(Path(sys.argv[1]))
    after_use = without_route()
    with contextlib.suppress(OSError):
        socket.getaddrinfo("example.com", 443)
    after_lookup = without_route()
    with socket.socket() as probe:
        probe.connect_ex(("192.0.2.1", 443))
    print(json.dumps({"use": after_use, "lookup": after_lookup, "connect": without_route()}))


if __name__ == "__main__":
    main()
