"""Lines that Claude Code changes at every request: they are no part of the prompt, so that the prefix cache holds."""

from typing import Any

import pytest

from mlx_manager.mlx_server.protocols.chat import to_request
from mlx_manager.mlx_server.schemas.openai import ChatCompletionRequest
from mlx_manager.mlx_server.services import hygiene
from tests.running_server import RunningServer

BILLING = "x-anthropic-billing-header: cc_version=2.1.36.e3f; cc_entrypoint=cli; cch={};"
COUNTER = "<total_tokens>{} tokens left</total_tokens>"
PROMPT = "You are a helpful assistant. " * 20


def cleaned(messages: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    request = to_request(ChatCompletionRequest.model_validate({"model": "demo", "messages": messages}), 10)
    made = hygiene.cleaned(request)
    return [(turn.role, turn.content) for turn in made.turns]


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (BILLING.format("a1b2c"), None),
        (BILLING.format("a1b2c") + "\n\nBe kind.", "Be kind."),
        (BILLING.format("a1b2c") + "Be kind.", "Be kind."),
        (BILLING.format("a1b2c").removesuffix(";") + "\nBe kind.", "Be kind."),
        ("x-anthropic-billing-header: a1b2c\nBe kind.", "Be kind."),
        ("Be kind. " + BILLING.format("a1b2c"), "Be kind. " + BILLING.format("a1b2c")),
        ("x-anthropic-billing", "x-anthropic-billing"),
    ],
)
def test_the_billing_line_goes_and_nothing_else(content: str, left: str | None) -> None:
    kept = [("system", left)] if left is not None else []
    assert cleaned([system(content), USER]) == [*kept, ("user", "Hi")]


def test_only_the_leading_system_message_has_a_billing_line() -> None:
    line = BILLING.format("a1b2c")
    messages = [{"role": "user", "content": line}, {"role": "assistant", "content": line}, system(line)]
    assert cleaned(messages) == [(message["role"], line) for message in messages]


def test_token_counters_go_where_they_stand_last_or_before_an_answer() -> None:
    counter = system(COUNTER.format(9000))
    assert cleaned([USER, counter, ASSISTANT, USER, counter]) == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Hi"),
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [system(COUNTER.format(9)), USER],
        [USER, system(COUNTER.format(9) + " Be quick.")],
        [USER, {"role": "user", "content": COUNTER.format(9)}],
        [USER, system("<total_tokens>many tokens left</total_tokens>")],
    ],
)
def test_what_only_looks_like_a_token_counter_stays(messages: list[dict[str, Any]]) -> None:
    assert cleaned(messages) == [(message["role"], message["content"]) for message in messages]


def messages_body(turn: int) -> dict[str, Any]:
    blocks = [{"type": "text", "text": BILLING.format(turn)}, {"type": "text", "text": f"{PROMPT} Messages."}]
    return {"model": "demo", "max_tokens": 3, "system": blocks, "messages": conversation(turn)}


def chat_body(turn: int) -> dict[str, Any]:
    """As a proxy makes of it."""
    blocks = [{"type": "text", "text": BILLING.format(turn)}, {"type": "text", "text": f"{PROMPT} Chat."}]
    leading = {"role": "system", "content": blocks}
    return {"model": "demo", "max_tokens": 3, "messages": [leading, *conversation(turn)]}


def conversation(turn: int) -> list[dict[str, Any]]:
    """The history holds the counters of the turns before."""
    turns = []
    for number in range(turn + 1):
        turns += [{"role": "user", "content": f"Question {number}"}, system(COUNTER.format(9000 - number))]
        turns += [{"role": "assistant", "content": f"Answer {number}"}]
    return turns[:-1]


def usage_of(body: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and how many of them were cached."""
    usage = body["usage"]
    if "prompt_tokens" in usage:
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", messages_body), ("/v1/chat/completions", chat_body)])
def test_the_next_turn_reads_its_new_tokens_alone(server: RunningServer, path: str, body: Any) -> None:
    first, second = (server.post(path, body(turn)) for turn in range(2))
    assert (first.status_code, second.status_code) == (200, 200), second.text
    known, _ = usage_of(first.json())
    whole, cached = usage_of(second.json())
    assert cached >= known - 8, "what is shared ends before the header of the first answer"
    assert whole - cached < 60
