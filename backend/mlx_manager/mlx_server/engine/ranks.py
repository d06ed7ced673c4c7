"""Communication among the ranks of a model by `mlx.distributed`. Runs in the worker, on the engine's thread.

Every rank must call the same methods in the same order, because a rank blocks until all others have called. MLX runs
these operations and those of the model in one queue. Knows no plans and no models.
"""

import json
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np

from mlx_manager.mlx_server.engine.membership import Membership

PACKET_BYTES = 256
"""A broadcast takes one operation up to this size, and two beyond it."""
LENGTH_BYTES = 8
_TRANSPORTS = ("[ring]", "[jaccl]", "[nccl]")


class UnusableRanks(Exception):
    """The ranks cannot run a model together; the message says why, and the remedy."""


class Ranks:
    """All ranks of a model, of which this process is number `rank`."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self.group = group
        self.rank: int = group.rank()
        self.size: int = group.size()

    @classmethod
    def join(cls, membership: Membership) -> "Ranks":
        """Connects to the other ranks. Blocks until all of them have joined. Raises UnusableRanks."""
        os.environ["MLX_RANK"] = str(membership.rank)
        hosts = membership.hosts
        first_ip, _, first_port = hosts[0].addresses[0].rpartition(":")
        with tempfile.TemporaryDirectory(prefix="mlx-manager-ranks-") as folder:
            match membership.backend:
                case "ring":
                    _write(folder, "MLX_HOSTFILE", [host.addresses for host in hosts])
                case "jaccl":
                    _write(folder, "MLX_IBV_DEVICES", [host.rdma for host in hosts])
                    os.environ["MLX_JACCL_COORDINATOR"] = f"{first_ip}:{first_port}"
                case "nccl":
                    os.environ |= {"NCCL_HOST_IP": first_ip, "NCCL_PORT": first_port}
                    os.environ["MLX_WORLD_SIZE"] = str(len(hosts))
            try:
                _end_process_in(membership.join_seconds)
                return cls(mx.distributed.init(strict=True, backend=membership.backend))
            except RuntimeError as exc:
                raise UnusableRanks(
                    f"rank {membership.rank} cannot join the others at {', '.join(membership.host.addresses)}: {exc}. "
                    "Check the addresses and the backend."
                ) from exc
            finally:
                signal.alarm(0)

    def broadcast(self, payload: bytes = b"") -> bytes:
        """The payload of rank 0. The other ranks' payloads are ignored."""
        head = len(payload).to_bytes(LENGTH_BYTES, "big") + payload[: PACKET_BYTES - LENGTH_BYTES]
        received = self._sum_bytes(head if self.rank == 0 else b"", PACKET_BYTES)
        length, start = int.from_bytes(received[:LENGTH_BYTES], "big"), received[LENGTH_BYTES:]
        if length <= len(start):
            return start[:length]
        return start + self._sum_bytes(payload[len(start) :] if self.rank == 0 else b"", length - len(start))

    def gather(self, payload: bytes) -> list[bytes]:
        """The payload of every rank, each of `PACKET_BYTES` at most."""
        whole = len(payload).to_bytes(LENGTH_BYTES, "big") + payload
        before, after = self.rank * PACKET_BYTES, (self.size - self.rank) * PACKET_BYTES - len(whole)
        received = self._sum_bytes(bytes(before) + whole + bytes(after), self.size * PACKET_BYTES)
        parts = [received[at : at + PACKET_BYTES] for at in range(0, len(received), PACKET_BYTES)]
        return [part[LENGTH_BYTES:][: int.from_bytes(part[:LENGTH_BYTES], "big")] for part in parts]

    def least(self, values: Sequence[int]) -> list[int]:
        """The smallest value of all ranks at each place."""
        return list(map(min, zip(*self._decoded(values), strict=True)))

    def most(self, values: Sequence[int]) -> list[int]:
        """The largest value of all ranks at each place."""
        return list(map(max, zip(*self._decoded(values), strict=True)))

    def of_first(self, values: mx.array, *, after: mx.array | None = None) -> mx.array:
        """The values of rank 0, as a part of the graph. Every rank computes `after` before, by default the values.

        It must, if they are results of the model: all ranks take part in its operations.
        """
        if self.rank != 0:
            zeros = mx.zeros(values.shape, dtype=values.dtype)
            (values,) = mx.depends([zeros], [after if after is not None else values])
        return mx.distributed.all_sum(values, group=self.group)

    def _decoded(self, values: Sequence[int]) -> list[list[int]]:
        payloads = self.gather(msgspec.msgpack.encode(list(values)))
        return [msgspec.msgpack.decode(payload, type=list[int]) for payload in payloads]

    def _sum_bytes(self, payload: bytes, size: int) -> bytes:
        padded = np.zeros(size, dtype=np.uint8)
        padded[: len(payload)] = np.frombuffer(payload, dtype=np.uint8)
        received = mx.distributed.all_sum(mx.array(padded), group=self.group)
        mx.eval(received)
        return bytes(memoryview(received))  # type: ignore[arg-type]


def is_lost_rank(exc: Exception) -> bool:
    """Whether MLX raised it because the connection to another rank is lost. No operation is possible afterwards."""
    causes = (exc, exc.__cause__)
    return any(isinstance(cause, RuntimeError) and str(cause).startswith(_TRANSPORTS) for cause in causes)


def _end_process_in(seconds: int) -> None:
    """By the system: MLX holds Python's lock while it connects, so no thread of this process could end it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _write(folder: str, variable: str, value: object) -> None:
    file = Path(folder) / variable
    file.write_text(json.dumps(value))
    os.environ[variable] = str(file)
