"""The size and integrity of a model's weights, from the headers of its safetensors files. Loads no weights."""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from mlx_manager.mlx_server.models.defaults import read_json
from mlx_manager.mlx_server.utils.mlx_backend import computes_on_cpu

MAX_HEADER_BYTES = 100 * 2**20
MAX_SHARDS = 10_000
_SHARD = re.compile(r"(?P<begin>.*-)\d+-of-(?P<end>\d{2,6})\.safetensors")
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""The types that MLX reads as floats. MLX packs 8-bit floats as integers."""
_PACKED = "U32"
"""The type of quantised weights."""


class BrokenWeights(Exception):
    """A weight file is missing or damaged. The message names the file."""


@dataclass(frozen=True, slots=True)
class WeightsSize:
    """The size on disk and in a worker's memory."""

    disk_bytes: int
    memory_bytes: int


def weight_files(folder: Path) -> list[Path]:
    """The files that mlx-lm loads."""
    return sorted(file for file in folder.glob("model*.safetensors") if file.is_file())


def missing_weight_files(folder: Path) -> list[str]:
    """Files that the index, or the shard numbers in file names, require and that do not exist."""
    shards = {name for file in folder.glob("model*.safetensors") for name in _all_shards(file.name)}
    return sorted(name for name in shards | _indexed(folder) if not (folder / name).is_file())


def tensor_names(folder: Path) -> set[str]:
    """The names of the weights in all readable files."""
    names: set[str] = set()
    for file in weight_files(folder):
        with contextlib.suppress(BrokenWeights):
            names.update(_header(file))
    return names


def weights_size(folder: Path, *, dequantize: bool = False) -> WeightsSize:
    """Unreadable files count with their size on disk. With `dequantize`, quantised weights count as floats."""
    disk_bytes = memory_bytes = 0
    packed_bits = _quantized_bits(folder) if dequantize else None
    for file in weight_files(folder):
        size = file.stat().st_size
        disk_bytes += size
        try:
            memory_bytes += sum(_tensor_bytes(tensor, packed_bits) for tensor in _header(file).values())
        except BrokenWeights:
            memory_bytes += size
    return WeightsSize(disk_bytes, memory_bytes)


def replicated_bytes(folder: Path) -> int:
    """The memory of the weights that every rank of a group holds whole: those outside of the layers."""
    total = 0
    for file in weight_files(folder):
        with contextlib.suppress(BrokenWeights):
            total += sum(_tensor_bytes(tensor, None) for name, tensor in _header(file).items() if "layers." not in name)
    return total


def check_weights(folder: Path) -> None:
    """Raises BrokenWeights for files that are missing, truncated, or not safetensors."""
    missing, files = missing_weight_files(folder), weight_files(folder)
    if not files:
        raise BrokenWeights(f"{folder} has no model*.safetensors")
    if missing:
        raise BrokenWeights(f"{folder} lacks {len(missing)} of its files, such as {missing[0]}")
    for file in files:
        header = _header(file)
        ends = [_offsets(tensor)[1] for tensor in header.values()]
        data_bytes = file.stat().st_size - _header_bytes(file) - 8
        if max(ends, default=0) > data_bytes:
            raise BrokenWeights(f"{file} is truncated: it has {data_bytes} of {max(ends)} bytes of weights")


def _all_shards(name: str) -> list[str]:
    """The names of all shards if the name has a shard number, else the name itself."""
    numbered = _SHARD.fullmatch(name)
    if numbered is None:
        return [name]
    begin, end = numbered["begin"], numbered["end"]
    return [f"{begin}{number:0{len(end)}}-of-{end}.safetensors" for number in range(1, min(int(end), MAX_SHARDS) + 1)]


def _indexed(folder: Path) -> set[str]:
    """The files that the index of a sharded model lists."""
    try:
        weight_map = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
        return {str(name) for name in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _header_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        return int.from_bytes(stream.read(8), "little")


def _header(file: Path) -> dict[str, dict[str, object]]:
    """Each tensor's dtype, shape and place in the file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise BrokenWeights(f"{file} is not a safetensors file")
            header = json.loads(stream.read(length))
    except (OSError, ValueError) as exc:
        raise BrokenWeights(f"{file} is not a safetensors file") from exc
    if not isinstance(header, dict):
        raise BrokenWeights(f"{file} is not a safetensors file")
    return {name: tensor for name, tensor in header.items() if name != "__metadata__" and isinstance(tensor, dict)}


def _quantized_bits(folder: Path) -> int | None:
    own = read_json(folder / "config.json").get("quantization")
    bits = own.get("bits") if isinstance(own, dict) else None
    return bits if isinstance(bits, int) and bits > 0 else None


def _tensor_bytes(tensor: dict[str, object], packed_bits: int | None) -> int:
    begin, end = _offsets(tensor)
    if packed_bits is not None and tensor.get("dtype") == _PACKED:
        return (end - begin) * 8 // packed_bits * (4 if computes_on_cpu() else 2)
    float_bytes = _FLOAT_BYTES.get(str(tensor.get("dtype")))
    if float_bytes is None or not computes_on_cpu():
        return end - begin
    return (end - begin) // float_bytes * 4  # workers on the CPU cast to float32


def _offsets(tensor: dict[str, object]) -> tuple[int, int]:
    offsets = tensor.get("data_offsets")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(at, int) for at in offsets)):
        return 0, 0
    return max(0, offsets[0]), max(0, offsets[0], offsets[1])
