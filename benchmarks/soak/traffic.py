"""Generates the requests of a soak: valid ones of all kinds, invalid ones, and client behaviour. Sends nothing."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Json = dict[str, Any]

DEMO = "demo"
OTHERS = ("second", "third")
"""Only one of them fits beside the demo model, so loading one unloads the other."""
CONTEXT_TOKENS = 2_048
"""Settings of the models in OTHERS."""

SYSTEM = "You are a patient assistant who answers in one sentence. " * 8
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One request. Its client may disconnect after `leaves_after_seconds`, or pause after every chunk."""

    kind: str
    path: str
    content: bytes
    model: str = DEMO
    stream: bool = False
    status: int = 200
    leaves_after_seconds: float | None = None
    pause_seconds: float = 0.0
    json_answer: bool = False
    """Whether the content of a complete answer must be valid JSON."""


def planned_traffic(dice: random.Random, other: str) -> Planned:
    """The next request of a client; `other` is the current one of OTHERS."""
    kind = dice.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    return replace(_KINDS[kind][1](dice, other), kind=kind)


def planned_burst(dice: random.Random) -> Planned:
    """One request of a burst."""
    planned = _completion(dice, DEMO, {"prompt": _words(dice, 5), "max_tokens": dice.randrange(1, 8)})
    return replace(planned, kind="burst")


def _post(path: str, body: Json, status: int = 200) -> Planned:
    stream = body.get("stream") is True
    return Planned("", path, json.dumps(body).encode(), str(body.get("model", DEMO)), stream, status)


def _chat(dice: random.Random, content: str, extra: Json | None = None) -> Planned:
    messages = [{"role": "user", "content": content}]
    if dice.random() < 0.5:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    body: Json = {"model": DEMO, "messages": messages, "max_tokens": dice.randrange(1, 40)}
    return _post("/v1/chat/completions", body | _manner(dice) | (extra or {}))


def _completion(dice: random.Random, model: str, extra: Json) -> Planned:
    return _post("/v1/completions", {"model": model, "max_tokens": dice.randrange(1, 40)} | _manner(dice) | extra)


def _manner(dice: random.Random) -> Json:
    return {"stream": dice.random() < 0.6, "temperature": dice.choice([0, 0.7, 1]), "seed": dice.randrange(1000)}


def _words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choice(["sea", "stone", "river", "cloud", "seven", "lamp"]) for _ in range(count))


def _short_chat(dice: random.Random, other: str) -> Planned:
    return _chat(dice, dice.choice(["Hello", "Count to 5", "Tell me a story", "What is the capital of France?"]))


def _long_chat(dice: random.Random, other: str) -> Planned:
    return _chat(dice, "Repeat: " + _words(dice, dice.randrange(50, 300)))


def _other_model(dice: random.Random, other: str) -> Planned:
    return _completion(dice, other, {"prompt": _words(dice, dice.choice([3, 30, 300]))})


def _tools(dice: random.Random, other: str) -> Planned:
    choice = dice.choice(["auto", "required"])
    return _chat(dice, "What is the weather in Paris?", {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 60})


def _json_schema(dice: random.Random, other: str) -> Planned:
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    return replace(
        _chat(dice, "Invent a person", {"response_format": response_format, "max_tokens": 80, "stop": None}),
        json_answer=True,
    )


def _logprobs(dice: random.Random, other: str) -> Planned:
    return _chat(dice, "Count to 3", {"logprobs": True, "top_logprobs": dice.randrange(0, 5)})


def _several(dice: random.Random, other: str) -> Planned:
    return _completion(dice, DEMO, {"prompt": ["One", "Two " + _words(dice, 9)], "n": 2, "stop": ["\n", "sea"]})


def _leaves(dice: random.Random, other: str) -> Planned:
    planned = _completion(dice, dice.choice([DEMO, other]), {"prompt": _words(dice, 20), "max_tokens": 1_000})
    return replace(planned, leaves_after_seconds=dice.uniform(0.0, 1.5))


def _slow_reader(dice: random.Random, other: str) -> Planned:
    return replace(_chat(dice, "Tell me a story", {"stream": True, "max_tokens": 80}), pause_seconds=0.05)


def _bad(dice: random.Random, other: str) -> Planned:
    return dice.choice(_BAD)


_KINDS: dict[str, tuple[int, Callable[[random.Random, str], Planned]]] = {
    "short chat": (6, _short_chat),
    "long chat": (3, _long_chat),
    "other model": (5, _other_model),
    "tools": (2, _tools),
    "json schema": (2, _json_schema),
    "logprobs": (1, _logprobs),
    "several choices": (1, _several),
    "client that leaves": (3, _leaves),
    "slow reader": (1, _slow_reader),
    "bad request": (4, _bad),
}
"""Relative frequency of each kind."""

_HELLO: Json = {"model": DEMO, "messages": [{"role": "user", "content": "Hello"}]}
_CHAT = "/v1/chat/completions"
LONGEST_PROMPT = _post("/v1/completions", {"model": DEMO, "prompt": "word " * 20_000, "stream": True}, 400)
_BAD = [
    LONGEST_PROMPT,
    _post(_CHAT, _HELLO | {"temperature": 5}, 422),
    _post(_CHAT, _HELLO | {"n": 0}, 422),
    _post(_CHAT, _HELLO | {"messages": []}, 422),
    _post(_CHAT, _HELLO | {"top_logprobs": 3}, 400),
    _post(_CHAT, _HELLO | {"functions": [{"name": "f"}]}, 400),
    _post(_CHAT, _HELLO | {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, 400),
    _post(_CHAT, _HELLO | {"guided_regex": "(((", "stream": True}, 400),
    _post(_CHAT, _HELLO | {"model": "nobody"}, 404),
    _post("/v1/completions", {"model": DEMO, "prompt": [1, 2, 10**6]}, 400),
    _post("/v1/nothing", {}, 404),
    Planned("", _CHAT, b'{"model": ', status=422),
    Planned("", _CHAT, b"\xff\xfe", status=422),
]
