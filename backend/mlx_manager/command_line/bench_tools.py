"""`bench --tools`: how well a model calls tools, by the questions of `tool_questions`, at temperature 0."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import httpx

from mlx_manager.command_line.connection import Server, find_server, refusal
from mlx_manager.command_line.console import CommandFailed, note, print_json, print_table
from mlx_manager.command_line.tool_questions import KINDS, QUESTIONS, TOOLS, Call, Question

COLUMNS = ("KIND", "RIGHT", "OF", "WHAT IS ASKED FOR")
LIMIT_SECONDS = 600
FIT_SHARE = 0.8
_SYSTEM = "You are an assistant with tools. Call them when they are needed. Answer in words when they are not."
_BAR_WIDTH, _ROW_HEIGHT, _LEFT = 300, 26, 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """`called` is None where the arguments of a call are no JSON object."""

    kind: str
    question: str
    right: bool
    called: list[dict[str, object]] | None
    expected: list[dict[str, object]]


def bench_tools(
    base_url: str | None, api_key: str | None, model: str | None, max_tokens: int, picture: Path | None, as_json: bool
) -> None:
    server = find_server(base_url, api_key)
    model = model if model is not None else server.a_model()
    with server.client(httpx.Client, timeout=LIMIT_SECONDS) as client:
        outcomes = [_ask(client, server, model, max_tokens, question) for question in QUESTIONS]
    if picture is not None:
        _write(picture, _drawn(model, outcomes))
    if as_json:
        print_json(
            {
                "base_url": server.root,
                "model": model,
                "max_tokens": max_tokens,
                "questions": [asdict(outcome) for outcome in outcomes],
            }
        )
        return
    note(f"{model} at {server.root}, temperature 0, at most {max_tokens} tokens for each of {len(outcomes)} answers.")
    right = sum(outcome.right for outcome in outcomes)
    rows = [(kind, *map(str, _score(outcomes, kind)), description) for kind, description in KINDS.items()]
    print_table(COLUMNS, [*rows, ("all", str(right), str(len(outcomes)), _verdict(right, len(outcomes)))])


def _verdict(right: int, asked: int) -> str:
    return "fit for an agent" if right >= FIT_SHARE * asked else "not fit for an agent (below 80 %)"


def _score(outcomes: Sequence[Outcome], kind: str) -> tuple[int, int]:
    of_kind = [outcome.right for outcome in outcomes if outcome.kind == kind]
    return sum(of_kind), len(of_kind)


def _ask(client: httpx.Client, server: Server, model: str, max_tokens: int, question: Question) -> Outcome:
    """Raises CommandFailed where the server does not answer."""
    body = {"model": model, "temperature": 0, "max_tokens": max_tokens, "tools": TOOLS, "messages": _messages(question)}
    try:
        response = client.post(f"{server.root}/v1/chat/completions", json=body)
    except httpx.HTTPError as exc:
        raise CommandFailed(
            f"The server at {server.root} does not answer ({str(exc) or type(exc).__name__}). "
            "Start one with `mlx-manager serve`, or give --base-url."
        ) from exc
    if not response.is_success:
        raise refusal(response, server.root)
    called = _called(response.json()["choices"][0]["message"].get("tool_calls") or [])
    expected: list[dict[str, object]] = [{"name": call.name, "arguments": call.arguments} for call in question.calls]
    return Outcome(question.kind, question.text, _is_right(called, question.calls), called, expected)


def _messages(question: Question) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": question.text},
    ]
    if question.failed is None:
        return messages
    call = question.failed.call
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return [
        *messages,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": question.failed.error},
    ]


def _called(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, object]] | None:
    found: list[dict[str, object]] = []
    for call in calls:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            return None
        if not isinstance(arguments, dict):
            return None
        found.append({"name": call["function"]["name"], "arguments": arguments})
    return found


def _is_right(called: Sequence[Mapping[str, object]] | None, expected: Sequence[Call]) -> bool:
    """In any order; each expected call is made once, and no other."""
    if called is None or len(called) != len(expected):
        return False
    left = list(called)
    for call in expected:
        match = next((one for one in left if _fits(one, call)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _fits(made: Mapping[str, object], call: Call) -> bool:
    if made["name"] != call.name:
        return False
    return call.arguments is None or _plain(made["arguments"]) == _plain(call.arguments)


def _plain(value: object) -> object:
    """Without case, spaces around texts, and the order of a list's objects, which no question is about."""
    if isinstance(value, str):
        return value.strip().casefold()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return sorted((_plain(item) for item in value), key=repr)
    return value if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)


def _write(picture: Path, svg: str) -> None:
    try:
        picture.write_text(svg, "utf-8")
    except OSError as exc:
        raise CommandFailed(f"Cannot write {picture}: {exc.strerror}. Give another path with --picture.") from exc


def _drawn(model: str, outcomes: Sequence[Outcome]) -> str:
    """The shares of right answers as bars, in SVG."""
    right = sum(outcome.right for outcome in outcomes)
    scores = {**{kind: _score(outcomes, kind) for kind in KINDS}, "all": (right, len(outcomes))}
    rows = "\n".join(_bar(row, kind, *score) for row, (kind, score) in enumerate(scores.items(), 1))
    height = _ROW_HEIGHT * (len(scores) + 1) + 10
    style = "font-family='sans-serif' font-size='13'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_LEFT + _BAR_WIDTH + 80}' height='{height}' {style}>\n"
        f"<rect width='100%' height='100%' fill='white'/>\n"
        f"<text x='10' y='18' font-weight='bold'>Tool calls of {escape(model)}</text>\n{rows}\n</svg>\n"
    )


def _bar(row: int, kind: str, right: int, asked: int) -> str:
    top = row * _ROW_HEIGHT
    width = _BAR_WIDTH * right // asked
    return (
        f"<text x='10' y='{top + 18}'>{kind}</text>"
        f"<rect x='{_LEFT}' y='{top + 5}' width='{_BAR_WIDTH}' height='16' fill='#e5e7eb'/>"
        f"<rect x='{_LEFT}' y='{top + 5}' width='{width}' height='16' fill='#2563eb'/>"
        f"<text x='{_LEFT + _BAR_WIDTH + 10}' y='{top + 18}'>{right} of {asked}</text>"
    )
