"""Logprobs from the engine core, against a plain forward pass of the same model."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.logprobs import step_logprobs
from mlx_manager.mlx_server.engine.messages import Logprobs, PromptLogprobs, Step, Submit
from mlx_manager.mlx_server.types import SamplingParams, Thinking

GREEDY = SamplingParams(seed=0, temperature=0)
WILD = SamplingParams(
    seed=3, temperature=1.5, top_k=50, repetition_penalty=1.3, presence_penalty=1, logit_bias={9: 4.0}
)
PROMPT = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def model(babbler: Path) -> nn.Module:
    return load(babbler)


def expected(model: nn.Module, tokens: list[int]) -> mx.array:
    """(T, V): the model's own distribution at each place, of the token behind it."""
    logits: mx.array = model(mx.array([tokens]))[0].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def run(
    core: EngineCore, *submissions: Submit
) -> tuple[dict[int, list[int]], dict[int, Logprobs], dict[int, Logprobs]]:
    """Each sequence's tokens, its logprobs, and those of its prompt, with places counted in the sequence."""
    tokens: dict[int, list[int]] = {}
    scores: dict[int, Logprobs] = {}
    of_prompts: dict[int, Logprobs] = {}
    for submission in submissions:
        core.submit(submission)
    while len(core):
        for event in core.step():
            if isinstance(event, PromptLogprobs):
                add(of_prompts, event.sequence, event.logprobs)
            elif isinstance(event, Step):
                for i, place in enumerate(event.logprobs.places if event.logprobs is not None else ()):
                    assert event.logprobs is not None
                    sequence = event.sequences[place]
                    add(scores, sequence, pick(event.logprobs, i, len(tokens.get(sequence, []))))
                for sequence, token in zip(event.sequences, event.tokens, strict=True):
                    tokens.setdefault(sequence, []).append(token)
    return tokens, scores, of_prompts


def pick(columns: Logprobs, i: int, place: int) -> Logprobs:
    return Logprobs([place], [columns.chosen[i]], [columns.top_tokens[i]], [columns.top[i]])


def add(to: dict[int, Logprobs], sequence: int, more: Logprobs) -> None:
    old = to.get(sequence, Logprobs([], [], [], []))
    to[sequence] = Logprobs(
        old.places + more.places, old.chosen + more.chosen, old.top_tokens + more.top_tokens, old.top + more.top
    )


def values(array: mx.array) -> Any:
    return array.tolist()


@pytest.mark.parametrize("sampling", [GREEDY, WILD])
def test_each_token_has_its_logprob_by_the_models_own_distribution(model: nn.Module, sampling: SamplingParams) -> None:
    tokens, scores, _ = run(EngineCore(model), Submit(0, PROMPT, 12, [], sampling, logprobs=3))
    whole = expected(model, PROMPT + tokens[0])[len(PROMPT) - 1 : -1]
    assert scores[0].places == list(range(12))
    chosen = [values(row)[token] for row, token in zip(whole, tokens[0], strict=True)]
    assert scores[0].chosen == pytest.approx(chosen, abs=1e-4)
    for row, top_tokens, top in zip(whole, scores[0].top_tokens, scores[0].top, strict=True):
        assert top == pytest.approx(sorted(values(row), reverse=True)[:3], abs=1e-4)
        assert top == pytest.approx([values(row)[token] for token in top_tokens], abs=1e-4)


def test_rows_get_as_many_as_they_ask_for_and_others_none(model: nn.Module) -> None:
    asked = {0: None, 1: 0, 2: 5, 3: None, 4: 1}
    submissions = [
        Submit(sequence, [*PROMPT, sequence], 3 + sequence, [], GREEDY, logprobs=count)
        for sequence, count in asked.items()
    ]
    tokens, scores, _ = run(EngineCore(model), *submissions)
    assert set(scores) == {1, 2, 4}
    for sequence, columns in scores.items():
        assert columns.places == list(range(3 + sequence)) == list(range(len(tokens[sequence])))
        assert {len(top) for top in columns.top} == {len(top) for top in columns.top_tokens} == {asked[sequence]}


def test_a_step_that_nobody_asked_of_carries_none(model: nn.Module) -> None:
    core = EngineCore(model)
    core.submit(Submit(0, PROMPT, 3, [], GREEDY))
    steps = [event for _ in range(6) for event in core.step() if isinstance(event, Step)]
    assert [step.logprobs for step in steps] == [None] * 3


def test_asking_changes_no_token(model: nn.Module) -> None:
    (silent, _, _), (asked, _, _) = (
        run(EngineCore(model), *(Submit(i, PROMPT, 9, [], replace(WILD, seed=i), logprobs=logprobs) for i in range(3)))
        for logprobs in (None, 4)
    )
    assert silent == asked


def test_rows_that_leave_take_their_logprobs_with_them(model: nn.Module) -> None:
    core = EngineCore(model)
    for sequence in range(3):
        core.submit(Submit(sequence, [*PROMPT, sequence], 8, [], GREEDY, logprobs=1))
    for _ in range(3):
        core.step()
    core.cancel(1)
    for event in core.step():
        assert not isinstance(event, Step) or event.sequences == [0, 2]
    tokens, scores, _ = run(core)
    assert set(tokens) == set(scores) == {0, 2}
    assert all(len(tokens[sequence]) == len(scores[sequence].chosen) for sequence in (0, 2))


@pytest.mark.parametrize("length", [2, 5, 128, 129, 130, 700])
def test_a_prompts_logprobs_are_those_of_each_token_but_its_first(model: nn.Module, length: int) -> None:
    prompt = [(7 * i) % 2000 for i in range(length)]
    submission = Submit(0, prompt, 2, [], GREEDY, logprobs=2, prompt_logprobs=True)
    tokens, _, of_prompts = run(EngineCore(model), submission, Submit(1, prompt, 2, [], GREEDY))
    whole = expected(model, prompt)
    assert of_prompts[0].places == list(range(1, length))
    chosen = [values(row)[token] for row, token in zip(whole[:-1], prompt[1:], strict=True)]
    assert of_prompts[0].chosen == pytest.approx(chosen, abs=1e-3)
    for row, top in zip(whole, of_prompts[0].top, strict=False):
        assert top == pytest.approx(sorted(values(row), reverse=True)[:2], abs=1e-3)
    assert tokens[0] == tokens[1]
    assert set(of_prompts) == {0}


def test_a_prompt_of_one_token_has_no_logprobs(model: nn.Module) -> None:
    _, scores, of_prompts = run(EngineCore(model), Submit(0, [5], 2, [], GREEDY, logprobs=1, prompt_logprobs=True))
    assert of_prompts == {}
    assert len(scores[0].chosen) == 2


def test_no_end_token_is_drawn_before_the_least_number_of_tokens(model: nn.Module) -> None:
    free, _, _ = run(EngineCore(model), Submit(0, PROMPT, 20, [], GREEDY))
    end = free[0][0]
    sampling = replace(GREEDY, min_tokens=5, end_tokens=[end], logit_bias={end: 50.0})
    tokens, _, _ = run(EngineCore(model), Submit(0, PROMPT, 20, [end], sampling))
    assert tokens[0].index(end) == 5


def test_a_neighbours_penalties_and_a_mask_do_not_change_a_rows_logprobs(model: nn.Module) -> None:
    """Rows with processors are computed apart, and masks written into the logits of the whole batch."""
    thinking = Thinking(open_token=None, close_tokens=(7, 8), budget=2)
    asking = Submit(0, PROMPT, 6, [], GREEDY, logprobs=3, thinking=thinking)
    penalized = Submit(1, [9, 9, 9], 6, [], replace(GREEDY, frequency_penalty=2.0))
    tokens, alone, _ = run(EngineCore(model), asking)
    _, beside, _ = run(EngineCore(model), asking, penalized)
    whole = expected(model, PROMPT + tokens[0])[len(PROMPT) - 1 : -1]
    for scores in (alone[0], beside[0]):
        for row, top in zip(whole, scores.top, strict=True):
            assert top == pytest.approx(sorted(values(row), reverse=True)[:3], abs=1e-4)


def test_logprobs_of_the_last_step_are_read_without_a_new_operation(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one would wait for the step in flight: MLX executes a stream's operations in their order."""
    taken = step_logprobs([LogprobRow(0, 2)], expected(model, PROMPT)[-1:], mx.array([3]))
    assert taken is not None
    mx.eval(taken.arrays)
    for name in ("maximum", "minimum", "where", "eval", "async_eval"):
        monkeypatch.setattr(mx, name, None)
    assert len(taken.read({0: 0}).top[0]) == 2


class LogprobRow(NamedTuple):
    sequence: int
    logprobs: int | None
