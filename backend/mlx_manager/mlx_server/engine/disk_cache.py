"""Writes blocks of the prefix cache to disk and reads them. Makes no decisions.

The engine's thread slices and creates arrays. Another thread reads and writes the files, reads first. It uses NumPy
views of evaluated arrays, and never calls MLX.
"""

import copy
import itertools
import json
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache

from mlx_manager.mlx_server.engine.disk_files import ModelFolder, ModelIdentity, PrefixFolder
from mlx_manager.mlx_server.engine.disk_format import Contents, Damaged, Tensor, decode, encode
from mlx_manager.mlx_server.engine.kv_cache import Cache, KeysAndValues
from mlx_manager.mlx_server.engine.plan import Block, DiskEvent, DiskFailed, Listed, WasRead, Written

LIST_SECONDS = 5.0
"""How often an idle thread looks for files of other servers."""
AGE_PER_TOKEN = 0.001
_NAMES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.int64: "I64",
    mx.int32: "I32",
    mx.int16: "I16",
    mx.int8: "I8",
    mx.uint64: "U64",
    mx.uint32: "U32",
    mx.uint16: "U16",
    mx.uint8: "U8",
    mx.bool_: "BOOL",
}
_READ, _WRITE, _STOP = range(3)
"""Jobs of the thread, the most urgent first."""


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """The tier's folder and budget, and the model."""

    root: Path
    budget_bytes: int
    model_id: str
    folder: str
    adapter: str | None

    def open(self, cache: Cache) -> "DiskCache":
        """`cache` holds one token. Raises OSError, and TypeError for layers that cannot be stored."""
        for layer in cache:
            if type(layer) is not KVCache:
                _pack(_state(layer), [])
        identity = ModelIdentity.of(self.model_id, self.folder, self.adapter, _layout(cache))
        return DiskCache(PrefixFolder(self.root, self.budget_bytes).open_model(identity), identity.salt)


@dataclass(frozen=True, slots=True)
class _Spilled:
    """A block whose arrays MLX evaluates."""

    block: Block
    states: str
    arrays: list[mx.array]
    names: list[str]


class DiskCache:
    """`spill` and `read` start an operation, `take` returns the finished ones, and `restored` a block that was read."""

    def __init__(self, files: ModelFolder, salt: str) -> None:
        self.salt = salt
        self._files = files
        self._spilled: list[_Spilled] = []
        self._jobs: queue.PriorityQueue[tuple[int, int, Contents | Block | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._events: queue.SimpleQueue[tuple[DiskEvent, Contents | None]] = queue.SimpleQueue()
        self._read: dict[str, Contents] = {}
        self._listed_at = -1
        """When the folder had last changed, when it was listed."""
        self._list()
        self._thread = threading.Thread(target=self._work, name="prefix-disk", daemon=True)
        self._thread.start()

    def spill(self, block: Block, kv: list[KeysAndValues], snapshots: dict[int, Any]) -> None:
        """Starts to write the block: `kv` has the layers that can be cut, `snapshots` the others by layer index."""
        arrays = [part for layer in kv for part in layer]
        states = {str(place): _pack(_state(layer), arrays) for place, layer in snapshots.items()}
        names = [_NAMES[array.dtype] for array in arrays]
        arrays = [array.view(mx.uint16) if array.dtype == mx.bfloat16 else array for array in arrays]
        mx.async_eval(arrays)  # type: ignore[no-untyped-call]
        self._spilled.append(_Spilled(block, json.dumps(states) if states else "", arrays, names))

    def hand_over(self) -> None:
        """Passes the blocks of the last plan, which are evaluated by now, to the thread."""
        for spilled in self._spilled:
            values = [np.array(array, copy=False) for array in spilled.arrays]
            tensors = list(map(Tensor, spilled.names, values))
            self._put(_WRITE, Contents(spilled.block, self.salt, spilled.states, tensors))
        self._spilled = []

    def read(self, block: Block) -> None:
        self._put(_READ, block)

    def restored(self, name: str, skip: int, empty: Cache) -> tuple[list[KeysAndValues], dict[int, Any]]:
        """The layers that can be cut, from the token `skip` of the block on, and the others if the block has them."""
        contents = self._read.pop(name)
        arrays = [_array(tensor) for tensor in contents.tensors]
        count = 2 * sum(type(layer) is KVCache for layer in empty)
        kv = [_cut(array, skip) for array in arrays[:count]]
        states = json.loads(contents.states) if contents.states else {}
        snapshots = {
            int(place): _with_state(empty[int(place)], _unpack(state, arrays)) for place, state in states.items()
        }
        return list(zip(kv[::2], kv[1::2], strict=True)), snapshots

    def discard(self, name: str) -> None:
        self._read.pop(name, None)

    def take(self, wait_seconds: float) -> list[DiskEvent]:
        """The events since the last call. Without any, waits for one for up to `wait_seconds`."""
        events = []
        try:
            event, contents = self._events.get(timeout=wait_seconds) if wait_seconds else self._events.get_nowait()
            while True:
                events.append(event)
                if isinstance(event, WasRead) and contents is not None:
                    self._read[event.name] = contents
                event, contents = self._events.get_nowait()
        except queue.Empty:
            return events

    def close(self, seconds: float) -> None:
        """Ends the thread after all writes, or after `seconds`."""
        self.hand_over()
        self._put(_STOP, None)
        self._thread.join(max(0.0, seconds))

    def _put(self, kind: int, job: Contents | Block | None) -> None:
        self._jobs.put((kind, next(self._numbers), job))

    def _work(self) -> None:
        """Runs on the files' thread. The first failure turns the tier off: all later jobs only end."""
        try:
            self._files.prefixes.trim()
            self._list()
            while True:
                try:
                    kind, _, job = self._jobs.get(timeout=LIST_SECONDS)
                except queue.Empty:
                    self._list()
                    continue
                if isinstance(job, Block):
                    self._read_block(job)
                elif job is not None:
                    self._write_block(job)
                elif kind == _STOP:
                    return
                job = None  # its arrays are freed by the engine's thread
        except Exception as exc:  # prompts would wait for ever
            self._events.put((DiskFailed(str(exc)), None))

    def _list(self) -> None:
        """Lists the folder if it has changed since."""
        changed_at = self._files.changed_at
        if changed_at != self._listed_at:
            self._listed_at = changed_at
            self._events.put((Listed(self._files.sizes()), None))

    def _write_block(self, contents: Contents) -> None:
        began, block = time.perf_counter(), contents.block
        parts = encode(contents)
        has_removed = self._files.write(block.name, parts, block.start * AGE_PER_TOKEN)
        seconds = time.perf_counter() - began
        self._events.put((Written(block.name, sum(map(len, parts)), seconds), contents))
        if has_removed:
            self._list()

    def _read_block(self, block: Block) -> None:
        began, contents = time.perf_counter(), None
        content = self._files.read(block.name, block.start * AGE_PER_TOKEN)
        if content is not None:
            contents = self._decoded(block, content)
        seconds = time.perf_counter() - began
        nbytes = len(content) if content is not None and contents is not None else 0
        self._events.put((WasRead(block.name, nbytes, seconds), contents))

    def _decoded(self, block: Block, content: bytes) -> Contents | None:
        """None if the file is damaged, which is removed, or if it holds another block."""
        try:
            contents = decode(block.name, content)
        except Damaged:
            self._files.remove(block.name)
            return None
        return contents if (contents.block, contents.salt) == (block, self.salt) else None


def _layout(cache: Cache) -> str:
    """Types, shapes beside the tokens, and dtypes of the layers, measured on a cache with one token."""
    return ";".join(f"{type(layer).__name__}{_shapes(layer)}" for layer in cache)


def _shapes(layer: Any) -> list[str]:
    arrays = [part for _, part in tree_flatten(_state(layer)) if isinstance(part, mx.array)]
    return [f"{array.shape[1::2]}{array.dtype}" for array in arrays]


def _state(layer: Any) -> Any:
    """mlx-lm's state; the attributes of an architecture's own cache whose state cannot be set."""
    return layer.state if type(layer).state.fset is not None else vars(layer)


def _with_state(empty: Any, state: Any) -> Any:
    layer = copy.copy(empty)
    if type(layer).state.fset is not None:
        layer.state = state
    else:
        vars(layer).update(state)
    return layer


def _pack(part: Any, arrays: list[mx.array]) -> Any:
    """`part` for JSON; its arrays go into `arrays`. Raises TypeError for what cannot be stored."""
    match part:
        case mx.array():
            if part.dtype not in _NAMES:
                raise TypeError(f"arrays of {part.dtype} cannot be stored")
            arrays.append(part)
            return {"array": len(arrays) - 1}
        case list() | tuple():
            return [_pack(item, arrays) for item in part]
        case dict():
            return {"items": {name: _pack(item, arrays) for name, item in part.items()}}
        case None | bool() | int() | float() | str():
            return part
    raise TypeError(f"a {type(part).__name__} in a cache cannot be stored")


def _unpack(part: Any, arrays: list[mx.array]) -> Any:
    match part:
        case {"array": place}:
            return arrays[place]
        case {"items": items}:
            return {name: _unpack(item, arrays) for name, item in items.items()}
        case list():
            return [_unpack(item, arrays) for item in part]
    return part


def _array(tensor: Tensor) -> mx.array:
    array = mx.array(tensor.values)
    return array.view(mx.bfloat16) if tensor.dtype == "BF16" else array


def _cut(array: mx.array, skip: int) -> mx.array:
    return mx.contiguous(array[:, :, skip:]) if skip else array
