"""What Anthropic's and OpenAI's protocols say of a comparison with an earlier answer, streamed and whole."""

from typing import Any

import anthropic.types
import openai.types.responses
import pytest
from pydantic import TypeAdapter

from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.protocols.base import AnyProtocol, ParseOptions
from mlx_manager.mlx_server.protocols.messages import Messages
from mlx_manager.mlx_server.protocols.responses import Responses
from mlx_manager.mlx_server.records import Miss
from mlx_manager.mlx_server.schemas.anthropic import MessagesRequest
from mlx_manager.mlx_server.schemas.responses import ResponsesRequest
from mlx_manager.mlx_server.types import (
    ChoiceFinished,
    Completed,
    GenerationEvent,
    GenerationEvents,
    Prefilled,
    Started,
    TextDelta,
    Usage,
)
from tests import folding

pytestmark = pytest.mark.anyio

MESSAGE = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
RESPONSE = {"model": "demo", "input": "Hi"}
SYSTEM = Miss("system", 4, 90)


def events(miss: Miss | None, compared: bool | None) -> list[GenerationEvent]:
    usage = Usage(100, 5, 4, miss=miss, compared=compared)
    ending: list[GenerationEvent] = [TextDelta(0, "Hi"), ChoiceFinished(0, "stop", None), Completed(usage)]
    return [Started(), Prefilled(100, 4, 0, miss, compared), *ending]


async def written(protocol: AnyProtocol, body: Any, made: list[GenerationEvent]) -> tuple[str, dict[str, Any]]:
    async def generate() -> GenerationEvents:
        for event in made:
            yield event

    request = protocol.parse(body, ParseOptions(reject_unknown=True))
    writer = protocol.writer(request)
    streamed = b"".join(frame for event in made for frame in writer.frames(event)).decode()
    return streamed, protocol.writer(request).response(await fold(generate()))


@pytest.mark.parametrize(
    ("miss", "compared", "reason"),
    [
        (SYSTEM, True, {"type": "system_changed", "cache_missed_input_tokens": 90}),
        (Miss("tools", 4, 90), True, {"type": "tools_changed", "cache_missed_input_tokens": 90}),
        (Miss("messages", 4, 90), True, {"type": "messages_changed", "cache_missed_input_tokens": 90}),
        (Miss("model", 0, 90), True, {"type": "model_changed", "cache_missed_input_tokens": 90}),
        (Miss("adapter", 0, 90), True, {"type": "model_changed", "cache_missed_input_tokens": 90}),
        (Miss("system", 4, 90, "template"), True, {"type": "unavailable"}),
        (Miss("system", 4, 90, "parameters"), True, {"type": "unavailable"}),
        (Miss("evicted", 4, 90), True, {"type": "unavailable"}),
        (Miss("expired", 4, 90), True, {"type": "unavailable"}),
        (SYSTEM, False, {"type": "previous_message_not_found"}),
        (None, None, {"type": "unavailable"}),
    ],
)
async def test_a_message_says_what_differs_from_the_one_that_it_names(
    miss: Miss | None, compared: bool | None, reason: dict[str, Any]
) -> None:
    body = MessagesRequest.model_validate(MESSAGE | {"diagnostics": {"previous_message_id": "msg_1"}})
    streamed, whole = await written(Messages(), body, events(miss, compared))
    assert whole["diagnostics"] == {"cache_miss_reason": reason}
    assert folding.of_message_events(streamed)["diagnostics"] == whole["diagnostics"]
    TypeAdapter(anthropic.types.Message).validate_python(whole)
    found = TypeAdapter(anthropic.types.CacheMissReason).validate_python(reason)
    assert type(found).__name__ == f"CacheMiss{reason['type'].title().replace('_', '')}"


async def test_a_message_that_missed_nothing_has_null_diagnostics() -> None:
    body = MessagesRequest.model_validate(MESSAGE | {"diagnostics": {"previous_message_id": "msg_1"}})
    streamed, whole = await written(Messages(), body, events(None, True))
    assert whole["diagnostics"] is folding.of_message_events(streamed)["diagnostics"] is None


@pytest.mark.parametrize("fields", [{}, {"diagnostics": None}, {"diagnostics": {"previous_message_id": None}}])
async def test_a_message_that_names_no_other_has_no_diagnostics(fields: dict[str, Any]) -> None:
    _, whole = await written(Messages(), MessagesRequest.model_validate(MESSAGE | fields), events(SYSTEM, None))
    assert "diagnostics" not in whole


def missed(reason: str, reusable: int = 4) -> dict[str, Any]:
    return {
        "type": "cache_miss",
        "reason": reason,
        "cache_missed_tokens": 90,
        "comparison_reusable_tokens": reusable,
    }


@pytest.mark.parametrize(
    ("miss", "compared", "found"),
    [
        (SYSTEM, True, missed("input_changed")),
        (Miss("messages", 4, 90), True, missed("input_changed")),
        (Miss("tools", 4, 90), True, missed("tools_changed")),
        (Miss("model", 0, 90), True, missed("model_changed", 0)),
        (Miss("adapter", 0, 90), True, missed("model_changed", 0)),
        (Miss("system", 4, 90, "parameters"), True, missed("reasoning_effort_changed")),
        (Miss("messages", 4, 90, "template"), True, {"type": "unavailable"}),
        (Miss("evicted", 4, 90), True, {"type": "unavailable"}),
        (Miss("expired", 4, 90), True, {"type": "unavailable"}),
        (None, True, {"type": "cache_hit"}),
        (SYSTEM, False, {"type": "comparison_response_not_found"}),
        (None, None, {"type": "unavailable"}),
    ],
)
async def test_a_response_says_what_differs_from_the_one_that_it_names(
    miss: Miss | None, compared: bool | None, found: dict[str, Any]
) -> None:
    body = ResponsesRequest.model_validate(RESPONSE | {"prompt_cache_options": {"comparison_response_id": "resp_1"}})
    streamed, whole = await written(Responses(), body, events(miss, compared))
    assert whole["prompt_cache_diagnostics"] == found
    assert folding.of_response_events(streamed)["prompt_cache_diagnostics"] == found
    response = openai.types.responses.Response.model_validate(whole)
    assert response.prompt_cache_options is not None
    assert response.prompt_cache_options.comparison_response_id == "resp_1"
    TypeAdapter[Any](openai.types.responses.response.PromptCacheDiagnostics).validate_python(found, strict=True)


@pytest.mark.parametrize("fields", [{}, {"prompt_cache_options": {"mode": "implicit"}}])
async def test_a_response_that_names_no_other_has_no_diagnostics(fields: dict[str, Any]) -> None:
    _, whole = await written(Responses(), ResponsesRequest.model_validate(RESPONSE | fields), events(SYSTEM, None))
    assert "prompt_cache_diagnostics" not in whole


async def test_a_prewarmed_response_is_complete_without_output() -> None:
    body = ResponsesRequest.model_validate(RESPONSE | {"prompt_cache_options": {"prewarm": True}})
    made: list[GenerationEvent] = [
        Started(),
        Prefilled(9, 0),
        ChoiceFinished(0, "length", None),
        Completed(Usage(9, 0)),
    ]
    streamed, whole = await written(Responses(), body, made)
    assert (whole["status"], whole["output"], whole["usage"]["output_tokens"]) == ("completed", [], 0)
    last = folding.of_response_events(streamed)
    assert {**last, "completed_at": None} == {**whole, "completed_at": None}
