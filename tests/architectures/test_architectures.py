"""The engine on every architecture of mlx-lm, against mlx-lm itself, token by token: `make test-architectures`."""

import random
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.messages import Step, Submit
from mlx_manager.mlx_server.engine.runner import may_repeat_shapes
from mlx_manager.mlx_server.types import SamplingParams
from tests.architectures.tiny_models import VOCABULARY, architectures, build, variants
from tests.mlx_compiler import needs_compiler

NEW_TOKENS = 12
LOGPROB_TOLERANCE = 2e-2
GREEDY = SamplingParams(temperature=0, seed=0)
NEEDS_METAL = {"bitnet", "muse_spark"}
DEPENDS_ON_SPLITS = {
    "phi3small": "mlx-lm adds a boolean mask to its scores, so a token sees those behind it in its part of the prompt",
    "plamo3": "mlx-lm gives it a window of one token more in a prompt than in decode",
}
"""In mlx-lm itself, their logits depend on the parts that a prompt is taken in by: the prefix cache changes them."""
READS_ARRAYS = {"dbrx"}
"""mlx-lm evaluates arrays in their forward pass, so their decode steps cannot be compiled."""

Answer = tuple[list[int], list[float]]
"""Tokens, and the logprob of each."""


def draw(seed: int, tokens: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(300, VOCABULARY - 100) for _ in range(tokens)]


class Reference:
    """mlx-lm's own greedy answers."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, prompt: list[int]) -> Answer:
        tokens, logprobs = [], []
        for token, distribution in generate_step(mx.array(prompt), self._model, max_tokens=NEW_TOKENS):
            tokens.append(int(token))
            logprobs.append(float(distribution[int(token)].item()))
        return tokens, logprobs


def answers(core: EngineCore, prompts: list[list[int]]) -> list[Answer]:
    """Of prompts that are submitted at once."""
    given: list[Answer] = [([], []) for _ in prompts]
    for sequence, prompt in enumerate(prompts):
        core.submit(Submit(sequence, prompt, NEW_TOKENS, [], GREEDY, logprobs=0))
    while len(core):
        for step in core.step():
            if not isinstance(step, Step):
                continue
            assert step.logprobs is not None
            for sequence, token, logprob in zip(step.sequences, step.tokens, step.logprobs.chosen, strict=True):
                given[sequence][0].append(token)
                given[sequence][1].append(logprob)
    return given


def check(core: EngineCore, reference: Reference, *prompts: list[int]) -> None:
    for answer, prompt in zip(answers(core, list(prompts)), prompts, strict=True):
        tokens, logprobs = reference(prompt)
        assert answer[0] == tokens
        assert answer[1] == pytest.approx(logprobs, abs=LOGPROB_TOLERANCE)


def check_all(name: str, model: nn.Module, repeats_shapes: bool = False) -> None:
    splits = name not in DEPENDS_ON_SPLITS
    prefix_bytes = 2**28 if splits else 0
    core = EngineCore(model, prefix_bytes=prefix_bytes, repeats_shapes=repeats_shapes)
    reference = Reference(model)
    prompt = draw(1, 60)
    check(core, reference, prompt)
    check(core, reference, prompt)  # from the prefix cache
    answer, _ = reference(prompt)
    check(core, reference, [*prompt, *answer, *draw(2, 30)])
    check(core, reference, draw(3, 9), draw(4, 33), draw(5, 70))
    check(core, reference, draw(3, 9), [*prompt, *draw(6, 20)], draw(7, 40))  # some of them known in part
    for _ in range(2 if splits else 0):
        check(core, reference, draw(8, 700))


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    """Float32 on the CPU: rounding is small, and the same for a row alone and in a batch."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    mx.disable_compile()  # as a worker does on the CPU
    yield
    mx.enable_compile()
    mx.set_default_device(before)


@pytest.mark.parametrize("name", architectures())
def test_engine_answers_as_mlx_lm_does(name: str) -> None:
    skip_without_its_kernels(name)
    check_all(name, build(name))


@pytest.mark.parametrize("name", variants())
def test_engine_answers_as_mlx_lm_does_with_other_settings(name: str) -> None:
    check_all(name, build(name))


@needs_compiler
@pytest.mark.parametrize("name", architectures())
def test_engine_answers_as_mlx_lm_does_with_the_sizes_of_a_gpu_and_compiled_decode_steps(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without_its_kernels(name)
    model = build(name)
    if not may_repeat_shapes(make_prompt_cache(model), wanted=True):
        pytest.skip("its sizes do not repeat")
    mx.enable_compile()
    check_all(name, model, repeats_shapes=True)
    assert ("not compiled" in caplog.text) == (name in READS_ARRAYS)


@pytest.mark.parametrize("name", architectures())
def test_engine_answers_as_mlx_lm_does_when_states_are_forgotten_slowly(name: str) -> None:
    skip_without_its_kernels(name)
    model = build(name, long_memory=True)
    if not any(path.endswith("A_log") for path, _ in tree_flatten(model.parameters())):
        pytest.skip("it has no state space layers")
    check_all(name, model)


def skip_without_its_kernels(name: str) -> None:
    if name in NEEDS_METAL and not mx.metal.is_available():
        pytest.skip("mlx-lm has its kernels for Metal only")
