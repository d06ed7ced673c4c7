"""Random conversations, cuts, cancels and evictions: no answer differs from that of an engine that stores nothing."""

import random

import mlx.nn as nn
import pytest

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.messages import Step, Submit
from mlx_manager.mlx_server.types import SamplingParams
from tests.mlx_server.engine.test_prefix_cache import END, SMALL, VOCABULARY, make_model

ROUNDS = 20
GREEDY = SamplingParams(temperature=0, seed=0)


def grown(rng: random.Random, known: list[list[int]]) -> list[int]:
    """A known conversation, perhaps cut anywhere, and a message more."""
    tokens = rng.choice(known) if known and rng.random() < 0.8 else []
    if rng.random() < 0.4:
        tokens = tokens[: rng.randint(0, len(tokens))]
    message = [*rng.choices(range(10, VOCABULARY), k=rng.randint(1, 200)), END]
    return (tokens + message)[-900:] if rng.random() < 0.1 else tokens + message


def answers(core: EngineCore, prompts: list[list[int]], rng: random.Random | None = None) -> dict[int, list[int]]:
    """By place. With `rng`, some are cancelled on their way, and have none."""
    for place, tokens in enumerate(prompts):
        core.submit(Submit(place, tokens, 12, [END], GREEDY))
    given: dict[int, list[int]] = {place: [] for place in range(len(prompts))}
    while core.has_work:
        for event in core.step():
            if isinstance(event, Step):
                for sequence, token in zip(event.sequences, event.tokens, strict=True):
                    given[sequence].append(token)
        if rng is not None and len(given) and rng.random() < 0.03:
            cancelled = rng.choice(list(given))
            core.cancel(cancelled)
            given[cancelled] = []
    return {place: tokens for place, tokens in given.items() if tokens}


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("kind", SMALL)
def test_no_answer_depends_on_what_is_stored(kind: str, seed: int) -> None:
    model: nn.Module = make_model(kind)
    rng = random.Random(seed)
    core = EngineCore(model, prefix_bytes=256_000 * rng.randint(1, 3), inter_token_seconds=1e-4)
    compare(model, core, rng, ROUNDS)
    assert core.prefixes.hits > ROUNDS / 3
    assert core.prefixes.evictions > 0


@pytest.mark.parametrize("repeats_shapes", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_no_answer_depends_on_its_company_in_little_memory(kind: str, repeats_shapes: bool) -> None:
    """Rows move between groups and are preempted, and slots are as small as possible."""
    model: nn.Module = make_model(kind)
    rng = random.Random(2)
    core = EngineCore(
        model, prefix_bytes=400_000, inter_token_seconds=1e-4, repeats_shapes=repeats_shapes, pass_bytes=20_000
    )
    core.limit(core.memory.needed(2, 1536), 400_000)
    compare(model, core, rng, ROUNDS // 2)


def compare(model: nn.Module, core: EngineCore, rng: random.Random, rounds: int) -> None:
    """Every answer with that of an engine that stores nothing and has no other sequence."""
    plain = EngineCore(model, prefix_bytes=0)
    known: list[list[int]] = []
    compared = 0
    for _ in range(rounds):
        prompts = [grown(rng, known) for _ in range(rng.randint(1, 5))]
        for place, tokens in answers(core, prompts, rng).items():
            assert answers(plain, [prompts[place]])[0][: len(tokens)] == tokens
            known.append(prompts[place] + tokens)
            compared += 1
        known = [tokens for tokens in known if len(tokens) < 1200][-8:]
        assert core.prefixes.nbytes <= core.prefixes.limit_bytes
    assert compared > rounds
