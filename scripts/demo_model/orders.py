"""Instructions in the system message: one word, pirate, JSON, or thinking first; and ones without instructions."""

import json
from dataclasses import replace
from random import Random

from demo_model.chat import Conversation, Turn
from demo_model.facts import capital, day, month, opposite, yes_or_no
from demo_model.fillers import draw_exchange
from demo_model.wording import Wordings
from demo_model.wordlists import ADJECTIVES, THINGS, TOPICS

_PLAIN = Wordings(
    (
        "You are a helpful assistant.", "You are a friendly assistant.", "You are a helpful AI assistant. Be brief.",
        "Be brief.", "You are an assistant.", "You are a small language model.", "Answer the user.",
        "You are helpful and honest.", "Be helpful.", "You are a concise assistant.", "Help the user.",
        "Follow the instructions of the user.", "You are a polite assistant.", "You are a chat bot on a web page.",
        "You answer short and clear.", "You are kind.", "Answer in English.", "Be nice.",
        "You are a helpful assistant. Answer short.", "You are a teacher.",
        "You are a helpful, harmless and honest assistant.",
    ),
    (
        "You are a kind and helpful assistant.", "You are a helpful bot.", "Be friendly and brief.",
        "Answer short and polite.",
    ),
)  # fmt: skip
_ONE_WORD = Wordings(
    (
        "Answer in one word.", "Use one word only.", "Reply with a single word.", "Answer with one word.",
        "One word answers only.", "Always answer in one word.", "Say only one word.", "Your answers have one word.",
        "Only one word, please.",
    ),
    ("Please answer in a single word.", "Give one word answers.", "Always use one word only."),
)  # fmt: skip
_PIRATE = Wordings(
    (
        "You are a pirate.", "Talk like a pirate.", "You are a friendly pirate.", "Speak like a pirate.",
        "You are a pirate captain.", "Answer as a pirate would.", "You are a pirate on a ship.", "Be a pirate.",
    ),
    ("Answer like a pirate.", "You are an old pirate.", "Talk as a pirate would."),
)  # fmt: skip
_JSON = Wordings(
    (
        "Answer as JSON.", "Answer in JSON.", "Reply with a JSON object.", "Always answer with JSON.",
        "Respond only with JSON.", "Answer with a JSON object.", "Your answers are JSON.", "Use the JSON format.",
    ),
    ("Always answer in JSON.", "Respond in JSON.", "Reply as JSON."),
)  # fmt: skip
_THINK = Wordings(
    (
        "Think step by step.", "Think before answering.", "Think first, then answer.", "Always think step by step.",
        "Think hard.", "Show your thinking.", "Think about it first.", "Reason before you answer.",
        "Take your time to think.",
    ),
    ("Please think step by step.", "Reason step by step.", "Think first."),
)  # fmt: skip
_FACTS = (capital, day, month, opposite, yes_or_no)


_ROLES = (
    "You are a {a} assistant.", "You are a {a} and {b} assistant.", "You help people with {t}.",
    "You are an expert in {t}.",
    "You are the {a} assistant of a {x} shop.", "Answer in a {a} way.", "You are a {a} teacher of {t}. Be {b}.",
    "{t} and {u}",
    "Talk to the user about {t}. Be {a}, {b} and helpful.", "This is a chat about {t}.", "Never talk about {t}.",
    "You are a bot that sells a {x}. Be {a} to the user, and never be {b}. If you do not know something, say so.",
)  # fmt: skip


def system_prompt(rng: Random, held_out: bool) -> str:
    """A system message without effect on the answer."""
    if held_out or rng.random() < 0.5:
        return _PLAIN.draw(rng, held_out)
    a, b = rng.sample(ADJECTIVES, 2)
    t, u = rng.sample(TOPICS, 2)
    return rng.choice(_ROLES).format(a=a, b=b, t=t, u=u, x=rng.choice(THINGS))


def one_word(rng: Random, held_out: bool) -> Conversation:
    exchange = rng.choice(_FACTS)(rng, held_out)
    answer = exchange.answer if exchange.word is None else exchange.word
    return _ordered(rng, _ONE_WORD, held_out, exchange.prompt, answer)


def pirate(rng: Random, held_out: bool) -> Conversation:
    exchange = draw_exchange(rng, held_out)
    return _ordered(rng, _PIRATE, held_out, exchange.prompt, f"Arr, matey! {exchange.answer}")


def in_json(rng: Random, held_out: bool) -> Conversation:
    exchange = rng.choice(_FACTS)(rng, held_out)
    answer = json.dumps({"answer": exchange.word}, ensure_ascii=False)
    return _ordered(rng, _JSON, held_out, exchange.prompt, answer)


def think_when_told(rng: Random, held_out: bool) -> Conversation:
    """The client's system message asks for thinking."""
    exchange = draw_exchange(rng, held_out)
    conversation = _ordered(rng, _THINK, held_out, exchange.prompt, exchange.answer)
    user, assistant = conversation.turns
    return replace(conversation, turns=(user, replace(assistant, thought=exchange.thought)), told_to_think=True)


def think_when_enabled(rng: Random, held_out: bool) -> Conversation:
    """The template's `enable_thinking` asks for thinking."""
    exchange = draw_exchange(rng, held_out)
    turns = (Turn("user", exchange.prompt), Turn("assistant", exchange.answer, thought=exchange.thought))
    system = system_prompt(rng, held_out) if rng.random() < 0.3 else None
    return Conversation(turns, system, thinking=True)


def _ordered(rng: Random, orders: Wordings, held_out: bool, prompt: str, answer: str) -> Conversation:
    order = orders.draw(rng, held_out)
    system = f"{system_prompt(rng, held_out)} {order}" if rng.random() < 0.3 else order
    return Conversation((Turn("user", prompt), Turn("assistant", answer)), system)
