"""The engine of a worker that embeds or scores: runs batches of texts of limited duration. Knows no sockets."""

import math
import time
from itertools import groupby
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.engine.embedding.model import load_embedding_model
from mlx_manager.mlx_server.engine.embedding.pooling import normalized
from mlx_manager.mlx_server.engine.embedding.queue import Batch, TextQueue
from mlx_manager.mlx_server.engine.embedding.recipe import read_recipe
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    DownMessage,
    Encode,
    Encoded,
    EncoderFacts,
    Launch,
    Limits,
    Neighbours,
    RequestFailed,
    Stats,
    UpMessage,
)

MIN_BATCH_TOKENS = 256
MAX_BATCH_TOKENS = 16_384
MAX_WIDTH_RATIO = 2
"""Largest ratio of a batch's width to its shortest text on a GPU, where a second batch costs more than padding."""
SHORTEST_TEXT = 4
WARM_UP_TOKENS = (16, 32, 64, 128, 256, 512)
SMOOTHING = 0.3
REST_RATIO = 0.8
"""Length of the rest after a batch on the CPU, relative to the batch, while other workers generate.

Hardware threads share caches and floating-point units, so a busy encoder slows streams by half whatever its priority.
"""


class Encoder:
    def __init__(self, launch: Launch) -> None:
        folder = Path(launch.folder)
        recipe = read_recipe(folder, launch.kind)
        self._on_cpu = mx.default_device().type == mx.DeviceType.cpu
        self.model = load_embedding_model(folder, recipe, on_cpu=self._on_cpu)
        self.facts = EncoderFacts(int(recipe.config["vocab_size"]), self.model.dimensions)
        self._queue = TextQueue(1 if self._on_cpu else MAX_WIDTH_RATIO)
        self._batch_seconds = launch.options.inter_token_latency_ms / 1000
        self._tokens_per_second = MIN_BATCH_TOKENS / self._batch_seconds
        self._running = 0
        self._must_rest = False
        self._rests_until = 0.0

    @property
    def stats(self) -> Stats:
        return Stats(sequences=self._queue.texts, running=self._running if self.has_work else 0)

    @property
    def gather_count(self) -> int:
        """Zero: a request often has many texts, and later requests share the next batch."""
        return 0

    @property
    def idle_seconds(self) -> float:
        return math.inf

    @property
    def has_work(self) -> bool:
        return len(self._queue) > 0

    def warm_up(self) -> None:
        """Encodes a text of each width: a GPU compiles kernels for each length."""
        rate = self._tokens_per_second
        for width in (SHORTEST_TEXT,) if self._on_cpu else WARM_UP_TOKENS:
            tokens = np.ones(width, dtype=np.int32)
            self.take(Encode(0, [width], tokens.tobytes(), [], self.model.dimensions))
            while self.has_work:
                self.step()
        self._tokens_per_second, self._running = rate, 0
        self.release_memory()
        mx.reset_peak_memory()

    def take(self, message: DownMessage) -> None:
        match message:
            case Encode():
                self._queue.add(message, time.perf_counter())
            case Neighbours(generating):
                self._must_rest = generating and self._on_cpu
            case Cancel(sequence):
                self._queue.cancel(sequence)
            case _:
                raise ValueError(f"An encoder cannot handle the message {type(message).__name__}.")

    def step(self) -> list[UpMessage]:
        """Runs one batch, sized to take about as long as a prefill chunk, so that other requests wait only briefly.

        Or rests for what is left of the rest after the last batch, and leaves the batch to the next step.
        """
        began = time.perf_counter()
        if self.has_work and self._must_rest and began < self._rests_until:
            time.sleep(self._rests_until - began)
            return []
        budget = int(self._tokens_per_second * self._batch_seconds)
        batch = self._queue.next_batch(min(max(budget, MIN_BATCH_TOKENS), MAX_BATCH_TOKENS))
        if batch is None:
            return []
        self._running = len(batch.texts)
        texts = sorted(batch.texts, key=lambda text: text.request.number)
        try:
            vectors = self._encode(Batch(texts, batch.width))
        except (RuntimeError, MemoryError, ValueError) as exc:  # MLX raises these, for example when it is out of memory
            return self._give_up(batch, f"{type(exc).__name__}: {exc}")
        if not np.isfinite(vectors).all():
            return self._give_up(batch, "the model's output is not finite")
        self._note_batch(batch, began)
        events: list[UpMessage] = []
        for request, group in groupby(range(len(texts)), lambda index: texts[index].request):
            rows = list(group)
            cut = _cut(vectors[rows[0] : rows[-1] + 1], request.message.dimensions)
            waited = 0.0 if request.begun else began - request.added_at
            request.begun = True
            places = [texts[row].place for row in rows]
            events.append(Encoded(request.message.sequence, places, cut.tobytes(), waited))
        return events

    def limit(self, limits: Limits) -> list[UpMessage]:
        return []

    def release_memory(self) -> None:
        mx.clear_cache()

    def close(self, seconds: float) -> None:
        """An encoder keeps nothing."""

    def _encode(self, batch: Batch) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
        lengths = [len(text.tokens) for text in batch.texts]
        width = max(lengths) if self._on_cpu else batch.width  # a GPU compiles kernels for each length
        rows = np.zeros((len(lengths), width), np.int32)
        for row, text in zip(rows, batch.texts, strict=True):
            row[: len(text.tokens)] = text.tokens
        return np.array(self.model(mx.array(rows), lengths, [text.second_at for text in batch.texts]))

    def _note_batch(self, batch: Batch, began: float) -> None:
        ended = time.perf_counter()
        self._rests_until = ended + REST_RATIO * (ended - began)
        measured = len(batch.texts) * batch.width / max(ended - began, 1e-6)
        self._tokens_per_second += SMOOTHING * (measured - self._tokens_per_second)

    def _give_up(self, batch: Batch, reason: str) -> list[UpMessage]:
        sequences = dict.fromkeys(text.request.message.sequence for text in batch.texts)
        for sequence in sequences:
            self._queue.cancel(sequence)
        return [RequestFailed(sequence, reason) for sequence in sequences]


def _cut(
    vectors: "np.ndarray[tuple[int, int], np.dtype[np.float32]]", dimensions: int
) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    if dimensions == vectors.shape[1]:
        return vectors
    return np.array(normalized(mx.array(vectors[:, :dimensions])))
