"""Whatever JSON a body is, the parsers make a request of it or refuse it: they never fail."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlx_manager.mlx_server.errors import InvalidRequest
from mlx_manager.mlx_server.protocols import chat, completions
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.parameters import IGNORED, REFUSED
from mlx_manager.mlx_server.protocols.responses import Responses
from mlx_manager.mlx_server.protocols.responses_parameters import RESPONSES
from mlx_manager.mlx_server.schemas import openai, responses
from mlx_manager.mlx_server.types import ChatRequest, CompletionRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function"])},
    optional={name: JSON for name in openai.ChatMessage.model_fields if name != "role"},
)


def bodies(body: type[openai.GenerationBody], needed: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good body with a few of its fields, and of others, set to anything."""
    names = sorted({*body.model_fields, *REFUSED, *IGNORED, "nobody_knows"})
    fields = st.dictionaries(st.sampled_from(names), JSON, max_size=4)
    return fields.map(lambda chosen: {"model": "demo", **needed, **chosen})


def parsed(make: Callable[[], ChatRequest | CompletionRequest]) -> ChatRequest | CompletionRequest | None:
    """What is made of it; None when it is refused, with the name of a field."""
    refusal: InvalidRequest | None = None
    try:
        return make()
    except ValidationError:
        return None
    except InvalidRequest as exc:
        refusal = exc
    assert refusal.param
    assert refusal.message
    return None


@pytest.mark.parametrize("reject_unknown", [False, True])
@given(fields=bodies(openai.ChatCompletionRequest, {"messages": [{"role": "user", "content": "Hi"}]}))
def test_a_chat_is_made_or_refused_by_name(reject_unknown: bool, fields: dict[str, Any]) -> None:
    body = json.loads(json.dumps(fields))
    made = parsed(lambda: chat.to_request(openai.ChatCompletionRequest.model_validate(body), 4096, reject_unknown))
    assert made is None or (made.n >= 1 and made.id.startswith("chatcmpl-"))


@given(messages=st.lists(MESSAGE, max_size=3))
def test_messages_are_made_turns_or_refused_by_their_place(messages: list[dict[str, Any]]) -> None:
    fields = {"model": "demo", "messages": json.loads(json.dumps(messages))}
    made = parsed(lambda: chat.to_request(openai.ChatCompletionRequest.model_validate(fields), 4096))
    assert made is None or (isinstance(made, ChatRequest) and len(made.turns) == len(messages))


@pytest.mark.parametrize("reject_unknown", [False, True])
@given(fields=bodies(openai.CompletionRequest, {"prompt": "Once"}))
def test_a_completion_is_made_or_refused_by_name(reject_unknown: bool, fields: dict[str, Any]) -> None:
    body = json.loads(json.dumps(fields))
    made = parsed(lambda: completions.to_request(openai.CompletionRequest.model_validate(body), reject_unknown))
    assert made is None or (isinstance(made, CompletionRequest) and made.best_of >= made.n >= 1)


ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call_output", "web_search_call"])},
    optional={name: JSON for name in responses.Item.model_fields if name != "type"},
)
RESPONSE_FIELDS = sorted({*responses.ResponsesRequest.model_fields, *RESPONSES.refused, *RESPONSES.ignored} - {"input"})


@given(items=st.lists(ITEM, max_size=3), fields=st.dictionaries(st.sampled_from(RESPONSE_FIELDS), JSON, max_size=3))
def test_a_response_is_made_or_refused_by_name(items: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    body = json.loads(json.dumps({"model": "demo", "input": items, **fields}))
    made = parsed(lambda: Responses().parse(responses.ResponsesRequest.model_validate(body), ParseOptions()))
    assert made is None or made.id.startswith("resp_")
