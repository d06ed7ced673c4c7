"""Runs the work that requests will ask for, on made-up prompts, before a model is ready.

A GPU compiles each kernel at its first use, and plans attention for each new shape: 26 s in the first request of one
measured model. On the CPU nothing is compiled, and one step of each kind suffices. Uses the engine as the worker does.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.messages import MAX_BATCH_ROWS, Submit
from mlx_manager.mlx_server.engine.pacing import LARGEST_CHUNK, SMALLEST_CHUNK
from mlx_manager.mlx_server.types import SamplingParams, Thinking

DECODED_TOKENS = 2
SHORT_PROMPT_TOKENS = 4
SHARING_PROMPTS = (4, 16)
"""Numbers of prompts that share a forward pass."""
ANY_TEXT = json.dumps({"grammars": [{"lark_grammar": "start: /(.|\\n)*/"}]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What makes a difference to the operations of a decode step."""

    sampling: SamplingParams
    fields: dict[str, Any] = field(default_factory=dict)
    """Other fields of `Submit`."""


GREEDY = SamplingParams(seed=0, temperature=0)
KINDS = (
    Kind(sampling=GREEDY),
    Kind(sampling=SamplingParams(seed=0)),
    Kind(sampling=SamplingParams(seed=0, min_p=0.1)),
    Kind(sampling=SamplingParams(seed=0, top_k=40, top_p=0.9)),
    Kind(sampling=SamplingParams(seed=0, top_p=0.9)),
    Kind(sampling=GREEDY, fields={"logprobs": 5}),
    Kind(sampling=SamplingParams(seed=0, temperature=0, repetition_penalty=1.1)),
    Kind(sampling=SamplingParams(seed=0, temperature=0, frequency_penalty=0.1, presence_penalty=0.1)),
    Kind(sampling=SamplingParams(seed=0, temperature=0, logit_bias={0: 1.0}, min_tokens=1, end_tokens=[0])),
    Kind(sampling=GREEDY, fields={"thinking": Thinking(open_token=None, close_tokens=(0,), budget=1)}),
)
RARE_KINDS = (
    Kind(sampling=SamplingParams(seed=0, temperature=100.0, top_p=0.999)),  # its nucleus is found by sorting
    Kind(sampling=GREEDY, fields={"prompt_logprobs": True, "logprobs": 5}),
    Kind(sampling=GREEDY, fields={"grammar": ANY_TEXT}),
)


def warm_up(core: EngineCore, *, on_gpu: bool) -> None:
    """Leaves no trace in the engine. A sequence that the model or its memory cannot have is skipped."""
    with core.rehearsal():
        for wave in _waves_on_gpu(core.vocabulary_size) if on_gpu else _waves_on_cpu(core.vocabulary_size):
            for message in wave:
                core.submit(message)
            while core.has_work:
                core.step()


def _waves_on_cpu(vocabulary_size: int) -> Iterator[list[Submit]]:
    """Sequences that run together: one row of each kind."""
    prompts = _Prompts(vocabulary_size)
    yield [prompts.submission(SHORT_PROMPT_TOKENS, kind) for kind in KINDS]


def _waves_on_gpu(vocabulary_size: int) -> Iterator[list[Submit]]:
    prompts = _Prompts(vocabulary_size)
    for tokens in _doubled(SMALLEST_CHUNK, LARGEST_CHUNK):
        alone = prompts.submission(tokens + 1, KINDS[0])
        yield [alone]
        yield [prompts.following(alone, tokens)]
        for rows in SHARING_PROMPTS:
            if rows * tokens <= LARGEST_CHUNK:
                yield [prompts.submission(tokens + 1, KINDS[0]) for _ in range(rows)]
    for rows in _doubled(1, MAX_BATCH_ROWS):
        for kind in KINDS:
            yield [prompts.submission(SHORT_PROMPT_TOKENS, kind) for _ in range(rows)]
        yield [prompts.submission(SHORT_PROMPT_TOKENS, KINDS[i % len(KINDS)]) for i in range(rows)]
    for kind in RARE_KINDS:
        yield [prompts.submission(SHORT_PROMPT_TOKENS, kind)]


def _doubled(first: int, last: int) -> Iterator[int]:
    return itertools.takewhile(lambda size: size <= last, (first << power for power in itertools.count()))


class _Prompts:
    """Makes submissions with prompts that share no prefix."""

    def __init__(self, vocabulary_size: int) -> None:
        self._numbers = itertools.count()
        self._random = random.Random(0)
        self._vocabulary_size = vocabulary_size

    def submission(self, tokens: int, kind: Kind) -> Submit:
        return Submit(next(self._numbers), self._tokens(tokens), DECODED_TOKENS, [], kind.sampling, **kind.fields)

    def following(self, earlier: Submit, tokens: int) -> Submit:
        """A prompt that begins with the earlier one, whose cache is stored."""
        prompt = [*earlier.prompt_tokens, *self._tokens(tokens)]
        return Submit(next(self._numbers), prompt, DECODED_TOKENS, [], earlier.sampling)

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocabulary_size) for _ in range(count)]
