"""Rows of different lengths in one batch: what they answer, what they hold, and the sizes of model calls."""

import random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.kv_cache import RowsCache
from mlx_manager.mlx_server.engine.messages import Step, Submit, UpMessage
from mlx_manager.mlx_server.types import SamplingParams
from tests.mlx_compiler import needs_compiler
from tests.mlx_server.engine.test_prefix_cache import SMALL, VOCABULARY, make_model

Answers = dict[int, list[int]]


def draw(seed: int, tokens: int) -> list[int]:
    return random.Random(seed).choices(range(10, VOCABULARY), k=tokens)


def ask(sequence: int, tokens: list[int], max_tokens: int, temperature: float = 0.0) -> Submit:
    return Submit(sequence, tokens, max_tokens, [], SamplingParams(temperature=temperature, seed=sequence))


def step(core: EngineCore, answers: Answers) -> list[UpMessage]:
    events = core.step()
    for event in events:
        if isinstance(event, Step):
            for sequence, token in zip(event.sequences, event.tokens, strict=True):
                answers.setdefault(sequence, []).append(token)
    return events


def run(core: EngineCore, *messages: Submit) -> Answers:
    answers: Answers = {}
    for message in messages:
        core.submit(message)
    while core.has_work:
        step(core, answers)
    return answers


def alone(model: nn.Module, message: Submit) -> list[int]:
    return run(EngineCore(model, prefix_bytes=0), message)[message.sequence]


class Recorded(nn.Module):  # type: ignore[misc]
    """A model, and the sizes of its calls: (rows, queries, keys)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.sizes: list[tuple[int, int, int]] = []

    @property
    def layers(self) -> list[nn.Module]:
        layers: list[nn.Module] = self.inner.layers
        return layers

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = self.inner(tokens, cache=cache)
        rows, queries = tokens.shape
        self.sizes.append((rows, queries, getattr(self.inner, "keys_read", 0)))
        return logits

    def make_cache(self) -> list[Any]:
        made: list[Any] = (
            self.inner.make_cache() if hasattr(self.inner, "make_cache") else [KVCache() for _ in self.layers]
        )
        return made


class Counting(nn.Module):  # type: ignore[misc]
    """Continues each token with the next one. Writes to its cache as a dense model does, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Identity()]
        self.keys_read = 0

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        part = tokens[:, None, :, None].astype(mx.float32)
        keys, _ = cache[0].update_and_fetch(part, part)
        self.keys_read = keys.shape[2]
        logits: mx.array = (((tokens[..., None] + 1) % 64) == mx.arange(64)) + 0.0 * keys[:, :, :1, :1].sum()
        return logits

    def make_cache(self) -> list[Any]:
        return [KVCache()]


def random_prompts(count: int, longest: int) -> list[list[int]]:
    """Of all lengths. Half of them begin like one before."""
    rng = random.Random(5)
    prompts: list[list[int]] = []
    for _ in range(count):
        known = rng.choice(prompts) if prompts and rng.random() < 0.5 else []
        fresh = rng.choices(range(64), k=int(longest ** rng.uniform(0.1, 1)))
        prompts.append(([*known[: rng.randint(0, len(known))], *fresh])[:longest])
    return prompts


def test_model_calls_have_few_sizes_where_shapes_repeat() -> None:
    """A thousand prompts with up to 8,192 tokens, cached or not, in random company.

    A single row decodes without a mask at its own length, by a kernel that needs no plan.
    """
    model = Recorded(Counting())
    core = EngineCore(model, repeats_shapes=True, pass_bytes=10**5, inter_token_seconds=10.0)
    model.sizes.clear()
    rng = random.Random(6)
    answers: Answers = {}
    messages = [ask(n, tokens, rng.randint(1, 60)) for n, tokens in enumerate(random_prompts(1000, 8100))]
    for message in messages:
        core.submit(message)
        while core.running > rng.choice([2, 10, 60]):
            step(core, answers)
    while core.has_work:
        step(core, answers)
    for message in messages:
        last = message.prompt_tokens[-1]
        assert answers[message.sequence] == [(last + 1 + place) % 64 for place in range(message.max_tokens)]
    assert core.prefixes.hits > 200
    assert 20 < len({size for size in model.sizes if size[1] > 1}) <= 64
    assert 10 < len({size for size in model.sizes if size[1] == 1 and size[0] > 1}) <= 32


@needs_compiler
def test_graph_of_a_decode_step_is_built_once_for_each_size() -> None:
    """MLX calls the model only to build a graph."""
    model = Recorded(Counting())
    core = EngineCore(model, repeats_shapes=True, pass_bytes=2**30)
    for first, built in ((0, 1), (10, 0)):
        model.sizes.clear()
        answers = run(core, *(ask(first + n, [n, n + 1], 40) for n in range(3)))
        assert [len(tokens) for tokens in answers.values()] == [40, 40, 40]
        assert sum(rows == 4 and queries == 1 for rows, queries, _ in model.sizes) == built


class ReadsItsOffset(Counting):
    """Needs the number of tokens in the cache, which a graph does not know."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        mx.array(cache[0].offset).tolist()
        return super().__call__(tokens, cache)


@needs_compiler
def test_step_that_cannot_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    core = EngineCore(ReadsItsOffset(), repeats_shapes=True)
    assert "The decode steps of this model are not compiled: its model call raises ValueError: " in caplog.text
    assert run(core, *(ask(n, [n, n + 1], 3) for n in range(3))) == {n: [n + 2, n + 3, n + 4] for n in range(3)}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("repeats_shapes", [False, True])
@pytest.mark.parametrize("pass_bytes", [1, 2**30])
@pytest.mark.parametrize("kind", SMALL)
def test_row_answers_the_same_in_company_of_any_length(
    kind: str, pass_bytes: int, repeats_shapes: bool, temperature: float
) -> None:
    model = make_model(kind)
    lengths = [3, 300, 40, 700, 41, 2, 90, 5]
    messages = [ask(n, draw(n, length), 8 + 5 * n, temperature) for n, length in enumerate(lengths)]
    recorded = Recorded(model)
    core = EngineCore(recorded, repeats_shapes=repeats_shapes, pass_bytes=pass_bytes, inter_token_seconds=0.005)
    recorded.sizes.clear()
    assert run(core, *messages) == {message.sequence: alone(model, message) for message in messages}
    most_rows = max(rows for rows, queries, _ in recorded.sizes if queries == 1)
    assert most_rows < 4 if pass_bytes == 1 else most_rows > 4


@pytest.mark.parametrize("repeats_shapes", [False, True])
def test_memory_that_is_counted_is_held(repeats_shapes: bool) -> None:
    """Of running rows, to the byte, while they join, grow, end and are preempted."""
    core = EngineCore(Counting(), prefix_bytes=0, repeats_shapes=repeats_shapes, pass_bytes=5000)
    rng = random.Random(2)
    core.limit(core.memory.needed(12, 1024), 0)
    for n in range(100):
        tokens = rng.choices(range(64), k=int(2000 ** rng.uniform(0.2, 1)))
        core.submit(ask(n, tokens, rng.randint(1, 200)))
    answers: Answers = {}
    compared = 0
    while core.has_work:
        ends = [event for event in step(core, answers) if not isinstance(event, Step)]
        if not ends:
            assert core.cache_bytes <= core.charged_bytes
        if not ends and core.running > 1 and not core.prefilling:
            assert core.cache_bytes == core.charged_bytes
            compared += 1
    assert compared > 100
    assert len(answers) == 100


def test_long_row_beside_short_ones_is_counted_at_what_it_holds() -> None:
    core = EngineCore(Counting(), prefix_bytes=0, pass_bytes=10**5)
    for n, length in enumerate([16_000, *[500] * 15]):
        core.submit(ask(n, [n] * length, 400))
    answers: Answers = {}
    while len(answers) < 16:
        step(core, answers)
    held = (16_000 + 15 * 500 + sum(map(len, answers.values()))) * core.memory.bytes_per_token
    assert core.cache_bytes == core.charged_bytes <= 1.3 * held


@pytest.mark.parametrize("exact", [True, False])
def test_rows_may_forget_a_different_number_of_tokens(exact: bool) -> None:
    model = make_model("llama")
    prompts = [draw(n, length) for n, length in enumerate((40, 7, 90))]
    rows = [RowsCache.alone(make_prompt_cache(model), 0) for _ in prompts]
    batch = RowsCache.merge(rows, exact, slots=4, tokens=128)
    batch.prefill(model, prompts, queries=90)
    kept = [40, 2, 71]
    batch.shrink(kept)
    logits = batch.decode(model, mx.array([5, 6, 7]))
    for row, (prompt, length) in enumerate(zip(prompts, kept, strict=True)):
        expected = model(mx.array([[*prompt[:length], 5 + row]]))[0, -1]
        assert mx.allclose(logits[row], expected, atol=1e-4)
    assert batch.lengths == [41, 3, 72]
