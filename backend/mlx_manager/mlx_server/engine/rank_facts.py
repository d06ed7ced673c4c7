"""What must be equal on all ranks before they load a model: versions, the weights, and the way to divide them.

Runs in the worker. Reads small parts of the files.
"""

import hashlib
import importlib.metadata
import socket
from pathlib import Path

import mlx.core as mx
import msgspec

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.engine.messages import Launch
from mlx_manager.mlx_server.engine.ranks import Ranks, UnusableRanks

SAMPLES = 16
SAMPLE_BYTES = 4096


class RankFacts(msgspec.Struct, frozen=True, array_like=True):
    machine: str
    version: str
    mlx: str
    mlx_lm: str
    weights: str
    parallel: str
    size: int
    device: str


_REMEDIES = {
    "version": ("mlx-manager", "Install the same version on all machines."),
    "mlx": ("mlx", "Install the same version on all machines."),
    "mlx_lm": ("mlx-lm", "Install the same version on all machines."),
    "weights": ("weights with the fingerprint", "Copy the model's folder from one machine to the others."),
    "parallel": ("a division by", "Give all ranks the same --parallel."),
    "device": ("a device of the kind", "Use machines that all have a GPU, or none."),
    "size": ("a group of size", "Give all ranks the same hosts file."),
}


def compare_ranks(ranks: Ranks, launch: Launch) -> None:
    """Raises UnusableRanks, on every rank and before any weight is read, if the ranks differ."""
    assert launch.membership is not None
    own = RankFacts(
        socket.gethostname()[:40],
        f"{__version__} (code {_code_digest()})",
        importlib.metadata.version("mlx"),
        importlib.metadata.version("mlx-lm"),
        fingerprint(Path(launch.folder)),
        launch.membership.parallel,
        len(launch.membership.hosts),
        str(mx.default_device().type).rpartition(".")[2],
    )
    first, *others = [msgspec.msgpack.decode(one, type=RankFacts) for one in ranks.gather(msgspec.msgpack.encode(own))]
    for rank, facts in enumerate(others, 1):
        for field, (what, remedy) in _REMEDIES.items():
            here, there = getattr(first, field), getattr(facts, field)
            if here == there:
                continue
            if not there or not here:
                missing, machine = (0, first.machine) if not here else (rank, facts.machine)
                raise UnusableRanks(
                    f"rank {missing} on {machine} has no model in the folder of its launch. Copy the model there."
                )
            raise UnusableRanks(
                f"rank {rank} on {facts.machine} has {what} {there}, and rank 0 on {first.machine} has {here}. {remedy}"
            )


def _code_digest() -> str:
    """Of the engine's source: checkouts of one version may differ."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def fingerprint(folder: Path) -> str:
    """A digest of the config, and of the headers and some blocks of the weight files. Empty without weights."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        return ""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header_bytes, size)))
            for sample in range(SAMPLES):
                stream.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
