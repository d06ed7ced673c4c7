"""The files of the prefix cache's disk tier: names, and safetensors with a checksum. Knows no folders and no MLX.

A block is 256 tokens of a prefix. Its name is a hash of its parent's name and its tokens, and the chain begins with the
salt, a hash of everything that the KV cache depends on. An end is the shorter rest of a prefix, with copies of the
layers that cannot be cut. A reader compares the tokens in the header: it never trusts a hash.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mlx_manager.mlx_server.engine.plan import BLOCK_TOKENS, Block

FORMAT = 1
SUFFIX = ".safetensors"
NAME = re.compile(r"[0-9a-f]{32}|[0-9a-f]{32}-\d{1,3}-[0-9a-f]{32}")
Array = np.ndarray[Any, np.dtype[Any]]

_NUMPY_TYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "uint16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_NO_SUM = b'"crc32":"00000000"'
_SUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')


class Damaged(Exception):
    """The file is truncated or changed, or its content does not match its name."""


class Tensor(NamedTuple):
    """`dtype` in safetensors' words; NumPy has no bfloat16, so `values` of BF16 are uint16."""

    dtype: str
    values: Array


class Contents(NamedTuple):
    block: Block
    salt: str
    states: str
    """JSON of the layers that cannot be cut; empty without them."""
    tensors: list[Tensor]


def block_name(parent: str, tokens: Array) -> str:
    return _hash(parent, tokens, b"block")


def end_name(parent: str, tokens: Array) -> str:
    return f"{parent}-{len(tokens)}-{_hash(parent, tokens, b'end')}"


def end_parts(name: str) -> tuple[str, int] | None:
    """Parent and token count of an end, from its name; None for a block."""
    parent, _, rest = name.partition("-")
    return (parent, int(rest.partition("-")[0])) if rest else None


def chain(salt: str, tokens: Array) -> list[str]:
    """The names of the whole blocks of `tokens`, in order."""
    names = [salt]
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        names.append(block_name(names[-1], tokens[start : start + BLOCK_TOKENS]))
    return names[1:]


def encode(contents: Contents) -> list[bytes | memoryview]:
    """The parts of the file, without a copy of the tensors."""
    block, offset = contents.block, 0
    header: dict[str, Any] = {
        "__metadata__": {
            "crc32": "00000000",
            "format": str(FORMAT),
            "salt": contents.salt,
            "parent": block.parent,
            "start": str(block.start),
            "tokens": ",".join(map(str, block.tokens)),
            "states": contents.states,
        }
    }
    for place, tensor in enumerate(contents.tensors):
        end = offset + tensor.values.nbytes
        header[str(place)] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.values.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = [np.ascontiguousarray(tensor.values).data.cast("B") for tensor in contents.tensors if tensor.values.nbytes]
    checksum = zlib.crc32(text)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    text = text.replace(_NO_SUM, b'"crc32":"%08x"' % checksum, 1)
    return [len(text).to_bytes(8, "little"), text, *parts]


def decode(name: str, data: bytes) -> Contents:
    """Checks and parses a file's bytes. The tensors are views of `data`. Raises Damaged."""
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end]
    found = _SUM.search(text)
    if end > len(data) or found is None:
        raise Damaged("no header")
    body = memoryview(data)[end:]
    plain = text[: found.start()] + _NO_SUM + text[found.end() :]
    if zlib.crc32(body, zlib.crc32(plain)) != int(found[1], 16):
        raise Damaged("wrong checksum")
    try:
        contents = _parse(name, json.loads(text), body)
    except (ValueError, KeyError, TypeError) as exc:
        raise Damaged("unknown header") from exc
    if name != _name_of(contents.block):
        raise Damaged("wrong name")
    return contents


def _parse(name: str, header: dict[str, Any], body: memoryview) -> Contents:
    about = header.pop("__metadata__")
    if about["format"] != str(FORMAT):
        raise ValueError("another format")
    tokens = [int(token) for token in about["tokens"].split(",") if token]
    block = Block(name, about["parent"], int(about["start"]), tokens, end_parts(name) is not None)
    tensors = []
    for place in range(len(header)):
        entry = header[str(place)]
        first, last = entry["data_offsets"]
        values = np.frombuffer(body[first:last], dtype=_NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors.append(Tensor(entry["dtype"], values))
    return Contents(block, about["salt"], about["states"], tensors)


def _name_of(block: Block) -> str:
    tokens = np.asarray(block.tokens, dtype=np.int32)
    return end_name(block.parent, tokens) if block.is_end else block_name(block.parent, tokens)


def _hash(parent: str, tokens: Sequence[int] | Array, kind: bytes) -> str:
    content = bytes.fromhex(parent) + np.ascontiguousarray(tokens, dtype=np.int32).tobytes()
    return hashlib.blake2b(content, digest_size=16, person=kind).hexdigest()
