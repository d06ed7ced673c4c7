"""Penalties, logit bias and min_tokens, applied before the draw to the logits of all rows of a batch at once.

Order, as in vLLM and transformers: repetition penalty, frequency and presence penalties, logit bias, min_tokens.
Runs in the worker, on the engine's thread. Knows no requests.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_manager.mlx_server.engine.sampling import Integers, column, compiled
from mlx_manager.mlx_server.types import SamplingParams

Pairs = tuple[mx.array, mx.array]
"""Indices of rows, and token ids, both (N,)."""


class Penalties:
    """Counts the tokens of penalised rows on the device, in arrays whose shapes do not depend on lengths."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._rows: list[SamplingParams] = []
        self._penalised: list[int] = []
        """Indices of the R rows with penalties. The arrays below have one row for each."""
        self._in_prompt = mx.zeros((0, vocabulary_size), dtype=mx.bool_)
        self._counts = mx.zeros((0, vocabulary_size), dtype=mx.int32)
        """How often each token is in the row's output."""
        self._rows_changed()

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays to evaluate with each step."""
        return [self._counts] if self._penalised else []

    def join(self, rows: Sequence[SamplingParams], tokens: Sequence[list[int]], drawn: Sequence[int]) -> None:
        """Adds rows with their `tokens`. The last `drawn` tokens are output."""
        joining = [i for i, params in enumerate(rows) if _is_penalised(params)]
        if joining:
            prompts = np.zeros((len(joining), self._vocabulary_size), dtype=np.bool_)
            counts = np.zeros((len(joining), self._vocabulary_size), dtype=np.int32)
            for place, i in enumerate(joining):
                prompt_tokens = len(tokens[i]) - drawn[i]
                prompts[place, tokens[i][:prompt_tokens]] = True
                np.add.at(counts[place], tokens[i][prompt_tokens:], 1)
            self._in_prompt = mx.concatenate([self._in_prompt, mx.array(prompts)])
            self._counts = mx.concatenate([self._counts, mx.array(counts)])
        self._rows += rows
        self._rows_changed()

    def keep(self, indices: Sequence[int]) -> None:
        """Keeps only these rows, in this order."""
        if self._penalised:
            place_of = {i: place for place, i in enumerate(self._penalised)}
            places = mx.array([place_of[i] for i in indices if i in place_of], dtype=mx.int32)
            self._in_prompt, self._counts = self._in_prompt[places], self._counts[places]
        self._rows = [self._rows[i] for i in indices]
        self._rows_changed()

    def note(self, tokens: mx.array) -> None:
        """Counts the token ids (B,) that the rows have drawn."""
        if self._penalised:
            places = mx.arange(len(self._penalised))
            self._counts = self._counts.at[places, tokens[self._places]].add(1)

    def __call__(self, logits: mx.array, drawn: Integers) -> mx.array:
        """Logits (B, V) of rows that have drawn `drawn` (B,) tokens. Rows without penalties are unchanged."""
        if self._penalised:
            logits = self._penalise(logits.astype(mx.float32))
        if self._biased is not None:
            logits = logits.astype(mx.float32).at[self._biased].add(self._biases)
        forbidden = self._forbidden(drawn) if self._ends else None
        if forbidden is not None:
            logits = logits.at[forbidden].minimum(-mx.inf)
        return logits

    def _rows_changed(self) -> None:
        rows, size = self._rows, self._vocabulary_size
        self._penalised = [i for i, params in enumerate(rows) if _is_penalised(params)]
        penalised = [rows[i] for i in self._penalised]
        self._places = mx.array(self._penalised, dtype=mx.int32)
        repeats = any(params.repetition_penalty != 1 for params in penalised)
        counts = any(params.frequency_penalty != 0 or params.presence_penalty != 0 for params in penalised)
        self._repetition = column(params.repetition_penalty for params in penalised) if repeats else None
        self._output = (
            (column(params.frequency_penalty for params in penalised), column(p.presence_penalty for p in penalised))
            if counts
            else None
        )
        biases = {(i, token): bias for i, params in enumerate(rows) for token, bias in params.logit_bias.items()}
        known = {pair: bias for pair, bias in biases.items() if 0 <= pair[1] < size}
        self._biased, self._biases = _pairs(list(known)), mx.array(list(known.values()), dtype=mx.float32)
        self._ends = {
            i: (params.min_tokens, [token for token in params.end_tokens if 0 <= token < size])
            for i, params in enumerate(rows)
            if params.min_tokens > 0
        }

    def _penalise(self, logits: mx.array) -> mx.array:
        are_all = len(self._penalised) == logits.shape[0]
        part = logits if are_all else logits[self._places]
        if self._repetition is not None:
            part = _penalise_repetition(part, self._in_prompt, self._counts, self._repetition)
        if self._output is not None:
            part = _penalise_output(part, self._counts, *self._output)
        if are_all:
            return part
        logits = mx.array(logits)  # a copy: logprobs use the logits without penalties
        logits[self._places] = part
        return logits

    def _forbidden(self, drawn: Integers) -> Pairs | None:
        """The end tokens that rows may not draw yet."""
        return _pairs([(i, token) for i, (least, ends) in self._ends.items() if drawn[i] < least for token in ends])


@compiled
def _penalise_repetition(logits: mx.array, in_prompt: mx.array, counts: mx.array, penalty: mx.array) -> mx.array:
    """Divides positive logits of tokens in prompt or output, and multiplies negative ones (arXiv:1909.05858)."""
    penalised = mx.where(logits < 0, logits * penalty, logits / penalty)
    return mx.where(in_prompt | (counts > 0), penalised, logits)


@compiled
def _penalise_output(logits: mx.array, counts: mx.array, frequency: mx.array, presence: mx.array) -> mx.array:
    """OpenAI's penalties: subtracts `frequency` per occurrence of a token in the output, and `presence` once."""
    return logits - (frequency * counts + presence * (counts > 0))


def _is_penalised(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0


def _pairs(pairs: list[tuple[int, int]]) -> Pairs | None:
    if not pairs:
        return None
    columns: Any = np.array(pairs, dtype=np.int32).T
    return mx.array(columns[0]), mx.array(columns[1])
