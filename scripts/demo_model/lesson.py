"""The output of a skill: one question with its answer (`Exchange`), or a conversation whose last turn is the answer
(`Scenario`)."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo_model.chat import Conversation


@dataclass(frozen=True, slots=True)
class Exchange:
    """`thought` precedes the answer of a thinking model; `word` is the answer in one word, if possible."""

    prompt: str
    answer: str
    thought: str
    word: str | None = None


Skill = Callable[[Random, bool], Exchange]
"""(rng, held_out) -> one question and its answer, in wordings of training or in held-out ones."""

Scenario = Callable[[Random, bool], Conversation]
"""(rng, held_out) -> a conversation that ends with the answer to learn."""
