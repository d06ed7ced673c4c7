"""The patterns in which prompts share a prefix: their order, and how much of each prompt was sent before.

The answers in conversations are texts of the benchmark, because the output of a model with random weights does not
tokenise back to the same tokens.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.workload import ReadyPrompt, text_of

TURN_TOKENS = 40
"""Tokens of a question, and of a conversation turn with its answer."""
TURNS = 3
CONVERSATIONS = 6


@dataclass(frozen=True, slots=True)
class Prime:
    """A prompt that only fills the cache; its time is not measured."""

    prompt: str


Asks = Iterator[Prime | ReadyPrompt]
Pattern = Callable[[random.Random, int], Asks]


def cold(rng: random.Random, prefix_tokens: int) -> Asks:
    for _ in range(TURNS):
        yield ReadyPrompt(text_of(rng, prefix_tokens + TURN_TOKENS), ready_tokens=0)


def shared_system_prompt(rng: random.Random, prefix_tokens: int) -> Asks:
    system = text_of(rng, prefix_tokens)
    yield Prime(system + text_of(rng, TURN_TOKENS))
    for _ in range(TURNS):
        yield ReadyPrompt(system + text_of(rng, TURN_TOKENS), ready_tokens=prefix_tokens)


def growing_conversation(rng: random.Random, prefix_tokens: int) -> Asks:
    conversation = text_of(rng, prefix_tokens)
    yield Prime(conversation)
    for turn in range(TURNS):
        conversation += text_of(rng, TURN_TOKENS)
        yield ReadyPrompt(conversation, ready_tokens=prefix_tokens + turn * TURN_TOKENS)


def exact_repeat(rng: random.Random, prefix_tokens: int) -> Asks:
    """All tokens but the last are cached: the model must process one token to generate the next."""
    prompt = text_of(rng, prefix_tokens)
    yield Prime(prompt)
    for _ in range(TURNS):
        yield ReadyPrompt(prompt, ready_tokens=prefix_tokens - 1)


def edited_earlier_turn(rng: random.Random, prefix_tokens: int) -> Asks:
    """A conversation of twice the prefix length continues differently from its middle."""
    for _ in range(TURNS):
        beginning = text_of(rng, prefix_tokens)
        yield Prime(beginning + text_of(rng, prefix_tokens))
        yield ReadyPrompt(beginning + text_of(rng, TURN_TOKENS), ready_tokens=prefix_tokens)


def alternating_conversations(rng: random.Random, prefix_tokens: int) -> Asks:
    conversations = [text_of(rng, prefix_tokens) for _ in range(CONVERSATIONS)]
    for conversation in conversations:
        yield Prime(conversation)
    for conversation in conversations:
        yield ReadyPrompt(conversation + text_of(rng, TURN_TOKENS), ready_tokens=prefix_tokens)


PATTERNS: dict[str, Pattern] = {
    "cold": cold,
    "shared system prompt": shared_system_prompt,
    "growing conversation": growing_conversation,
    "exact repeat": exact_repeat,
    "edited earlier turn": edited_earlier_turn,
    "six in alternation": alternating_conversations,
}
