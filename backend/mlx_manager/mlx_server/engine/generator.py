"""The engine of a worker that generates: loads mlx-lm's model and steps its core. Knows no sockets and no text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Capacity,
    DownMessage,
    GeneratorFacts,
    Launch,
    Limits,
    Stats,
    Submit,
    UpMessage,
)
from mlx_manager.mlx_server.utils.descriptors import own_descriptor_limit

with own_descriptor_limit():
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_config, load_model

    from mlx_manager.mlx_server.engine.core import EngineCore
    from mlx_manager.mlx_server.engine.device import computes_on_gpu, emulates_bfloat16, this_device
    from mlx_manager.mlx_server.engine.disk_cache import DiskOptions
    from mlx_manager.mlx_server.engine.dtypes import dequantized, to_float16, to_float32, warn_of_few_bits
    from mlx_manager.mlx_server.engine.model_config import complete, model_classes
    from mlx_manager.mlx_server.engine.ranks import Ranks
    from mlx_manager.mlx_server.engine.shapes import MAX_PREFILL_ROWS
    from mlx_manager.mlx_server.engine.sharding import shard
    from mlx_manager.mlx_server.engine.warm_up import warm_up


class Generator:
    """Generates for each `Submit` until the sequence ends or a `Cancel` arrives. With `ranks`, it is rank 0."""

    def __init__(self, launch: Launch, ranks: Ranks | None = None) -> None:
        self.model = load_part(launch, ranks) if ranks is not None else _load_whole(launch)
        self._weights_bytes = mx.get_active_memory()
        self._core = EngineCore(
            self.model,
            kv_bytes=kv_bytes_of(launch.limits.memory_bytes, self._weights_bytes),
            prefix_bytes=launch.limits.prefix_cache_bytes,
            inter_token_seconds=launch.options.inter_token_latency_ms / 1000,
            tokenizer_file=Path(launch.tokenizer_file or Path(launch.folder) / "tokenizer.json"),
            disk=_disk_options(launch),
            ranks=ranks,
        )
        if ranks is not None:
            self.limit(launch.limits)

    @property
    def facts(self) -> GeneratorFacts:
        memory = self._core.memory
        return GeneratorFacts(self._core.vocabulary_size, memory.bytes_per_token, memory.largest_sequence_tokens)

    @property
    def stats(self) -> Stats:
        core, prefixes, disk = self._core, self._core.prefixes, self._core.disk
        return Stats(
            sequences=len(core),
            running=core.running,
            prefix_bytes=prefixes.nbytes,
            prefix_hits=prefixes.hits,
            prefix_tokens=prefixes.cached_tokens,
            prefix_evictions=prefixes.evictions,
            disk_bytes=disk.nbytes,
            disk_hits=disk.hits,
            disk_tokens=disk.tokens,
            disk_read_bytes=disk.read_bytes,
            disk_read_seconds=disk.read_seconds,
            disk_written_bytes=disk.written_bytes,
            disk_write_seconds=disk.written_seconds,
            disk_fault=disk.fault,
            step_seconds=core.step_seconds,
            wait_seconds=core.wait_seconds,
        )

    @property
    def gather_count(self) -> int:
        return MAX_PREFILL_ROWS if self._core.peak_sequences > 1 else 0

    @property
    def has_work(self) -> bool:
        return self._core.has_work

    @property
    def idle_seconds(self) -> float:
        return self._core.idle_seconds

    def warm_up(self) -> None:
        warm_up(self._core, on_gpu=computes_on_gpu())

    def take(self, message: DownMessage) -> None:
        match message:
            case Submit():
                self._core.submit(message)
            case Cancel(sequence):
                self._core.cancel(sequence)
            case _:
                raise ValueError(f"A generator cannot handle the message {type(message).__name__}.")

    def limit(self, limits: Limits) -> list[UpMessage]:
        own_bytes = kv_bytes_of(limits.memory_bytes, self._weights_bytes)
        self._core.limit(self._core.least_kv_bytes(limits, own_bytes), limits.prefix_cache_bytes)
        return [Capacity(self._core.memory.largest_sequence_tokens, limits.memory_bytes)]

    def step(self) -> list[UpMessage]:
        return self._core.step()

    def release_memory(self) -> None:
        self._core.release_memory()

    def close(self, seconds: float) -> None:
        self._core.close(seconds)


def kv_bytes_of(memory_bytes: int, weights_bytes: int) -> int:
    """Memory for KV caches: 90 % of the memory beside the weights; a step's temporary arrays need the rest."""
    return max(0, int(0.9 * (memory_bytes - weights_bytes)))


def _disk_options(launch: Launch) -> DiskOptions | None:
    options = launch.options
    if not launch.prefix_disk or options.prefix_disk_bytes <= 0 or launch.membership is not None:
        return None
    root = Path(options.prefix_disk_folder)
    return DiskOptions(root, options.prefix_disk_bytes, launch.model_id, launch.folder, launch.adapter)


def load_part(launch: Launch, ranks: Ranks) -> nn.Module:
    """The part of the model that belongs to this rank, in the dtypes of its files, which all ranks have."""
    assert launch.membership is not None
    parallel = launch.membership.parallel
    return load(
        Path(launch.folder),
        trust_remote_code=launch.trust_remote_code,
        divide=lambda model: shard(model, ranks, parallel),
    )


def _load_whole(launch: Launch) -> nn.Module:
    adapter = Path(launch.adapter) if launch.adapter is not None else None
    model = load(Path(launch.folder), adapter, launch.trust_remote_code, dequantize=launch.dequantize)
    _suit_device(model, launch)
    return model


def load(
    folder: Path,
    adapter: Path | None = None,
    trust_remote_code: bool = False,
    *,
    dequantize: bool = False,
    divide: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """The model with its weights in memory; float32 on the CPU, which is slow at 16 bits.

    `divide` keeps a part of the model, before the weights are read.
    """
    config = complete(load_config(folder))
    model, _ = load_model(
        folder,
        lazy=divide is not None,
        model_config=config,
        get_model_classes=model_classes,
        trust_remote_code=trust_remote_code,
    )
    _keep_masked_tokens_in_vocabulary(model)
    if divide is not None:
        divide(model)
    if dequantize:
        model = dequantized(model)
    if adapter is not None:
        model = load_adapters(model, str(adapter)).eval()
        mx.eval(model.parameters())
    if not computes_on_gpu():
        to_float32(model)
    mx.eval(model.parameters())
    return model


def _suit_device(model: nn.Module, launch: Launch) -> None:
    device = this_device()
    if not computes_on_gpu():
        return
    if emulates_bfloat16(device) and not launch.options.keep_bfloat16:
        to_float16(model, str(getattr(model, "model_type", "")))
    elif device.backend == "cuda" and not launch.dequantize:
        warn_of_few_bits(model, launch.limits.memory_bytes)


def _keep_masked_tokens_in_vocabulary(model: nn.Module) -> None:
    """mlx-lm's phi3small masks 91 token ids of its first model. In a smaller vocabulary, that writes out of bounds."""
    masked = getattr(model, "_dummy_tokenizer_ids", None)
    if masked is not None:
        ids: Any = masked.tolist()
        model._dummy_tokenizer_ids = mx.array([token for token in ids if token < model.args.vocab_size], mx.int32)
