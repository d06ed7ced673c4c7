"""The infinite training data: conversations and plain texts drawn from a seed, without any prompt of the evaluation.
Knows no token ids."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from random import Random

from demo_model.chat import BEGIN_OF_TEXT, END_OF_TEXT, Conversation, Segment, Turn, render
from demo_model.facts import CAPITALS
from demo_model.fillers import SKILLS, fillers
from demo_model.lesson import Exchange, Scenario
from demo_model.memory import remember_favourite, remember_name, unknown_name
from demo_model.orders import in_json, one_word, pirate, system_prompt, think_when_enabled, think_when_told
from demo_model.stories import story
from demo_model.tools import answer_from_result, call_tool, no_tool_fits, no_tool_needed

EVALUATION_SEED = 20_000
QUESTIONS_PER_SKILL = 60
TEXT_SHARE = 0.03
SCENARIO_SHARE = 0.5

SCENARIOS: dict[str, tuple[Scenario, float]] = {
    "remember a name": (remember_name, 3.0),
    "name never told": (unknown_name, 0.4),
    "remember a favourite": (remember_favourite, 0.6),
    "order: one word": (one_word, 0.8),
    "order: pirate": (pirate, 0.6),
    "order: JSON": (in_json, 0.6),
    "order: think": (think_when_told, 0.7),
    "enable_thinking": (think_when_enabled, 0.8),
    "tool call": (call_tool, 2.0),
    "answer from a tool's result": (answer_from_result, 4.0),
    "tools not needed": (no_tool_needed, 0.8),
    "no tool fits": (no_tool_fits, 0.4),
}
"""Scenarios by name, with how often each is drawn."""


def evaluation_names() -> tuple[str, ...]:
    return (*SKILLS, "count to N, later turn", *SCENARIOS)


def evaluation_questions(name: str) -> list[Conversation]:
    """Distinct questions in held-out wordings, always the same ones. The last turn is the right answer."""
    rng = Random(f"{EVALUATION_SEED}/{name}")
    questions: dict[str, Conversation] = {}
    for _ in range(QUESTIONS_PER_SKILL * 20):
        question = _evaluation_question(name, rng)
        questions.setdefault(normalise(" ".join(_prompts(question))), question)
        if len(questions) == QUESTIONS_PER_SKILL:
            break
    return list(questions.values())


def normalise(prompt: str) -> str:
    """Prompts that differ only in case, spaces or punctuation count as the same prompt."""
    return " ".join("".join(c if c.isalnum() or ord(c) > 0x7F else " " for c in prompt.casefold()).split())


@cache
def held_out_prompts() -> frozenset[str]:
    questions = (question for name in evaluation_names() for question in evaluation_questions(name))
    return frozenset(normalise(prompt) for question in questions for prompt in _prompts(question))


def documents(seed: int, step: int) -> Iterator[list[Segment]]:
    """Training documents of one step, an infinite iterator."""
    rng = Random(f"{seed}/{step}")
    while True:
        yield _text(rng) if rng.random() < TEXT_SHARE else render(training_conversation(rng))


def training_conversation(rng: Random) -> Conversation:
    """Draws again until no prompt is part of the evaluation. Every training turn passes this held-out check."""
    while True:
        conversation = _scenario(rng) if rng.random() < SCENARIO_SHARE else _chat(rng)
        if not any(normalise(prompt) in held_out_prompts() for prompt in _prompts(conversation)):
            return conversation


def _evaluation_question(name: str, rng: Random) -> Conversation:
    if name in SCENARIOS:
        return SCENARIOS[name][0](rng, True)
    if name in SKILLS:
        return Conversation(_turns(SKILLS[name][0](rng, True)))
    before = fillers(rng, True, rng.randint(1, 4))
    system = system_prompt(rng, True) if rng.random() < 0.5 else None
    return Conversation((*before, *_turns(SKILLS["count to N"][0](rng, True))), system)


def _prompts(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation.turns if turn.role == "user"]


def _turns(exchange: Exchange) -> tuple[Turn, Turn]:
    return Turn("user", exchange.prompt), Turn("assistant", exchange.answer, thought=exchange.thought)


def _chat(rng: Random) -> Conversation:
    """One to five exchanges, sometimes with a system prompt or after a long text."""
    turns = fillers(rng, False, rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 5)))
    if rng.random() < 0.01:
        turns[0] = replace(turns[0], content=f"{_long_text(rng)}\n\n{turns[0].content}")
    return Conversation(tuple(turns), system_prompt(rng, False) if rng.random() < 0.35 else None)


def _long_text(rng: Random) -> str:
    """Some hundred tokens, rarely some thousand."""
    return "\n\n".join(story(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 8))))


def _scenario(rng: Random) -> Conversation:
    """A scenario, sometimes followed by other exchanges."""
    names = list(SCENARIOS)
    draw, _ = SCENARIOS[rng.choices(names, [weight for _, weight in SCENARIOS.values()])[0]]
    conversation = draw(rng, False)
    if rng.random() < 0.15 and conversation.system is None and not conversation.thinking:
        return replace(conversation, turns=(*conversation.turns, *fillers(rng, False, 1)))
    return conversation


def _text(rng: Random) -> list[Segment]:
    """A text outside of a chat, for the completions endpoint."""
    roll = rng.random()
    if roll < 0.6:
        text = story(rng)
    elif roll < 0.8:
        country = rng.choice(list(CAPITALS))
        text = f"The capital of {country} is {CAPITALS[country]}."
    else:
        text = ", ".join(str(n) for n in range(rng.randint(1, 10), 21))
    return [Segment(BEGIN_OF_TEXT, "prompt"), Segment(text + END_OF_TEXT, "answer")]
