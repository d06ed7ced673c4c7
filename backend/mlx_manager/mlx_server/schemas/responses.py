"""The wire schemas of OpenAI's Responses. Shapes only; `protocols/` interprets them."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from mlx_manager.mlx_server.schemas.openai import (
    CacheRetention,
    Integer,
    JsonSchemaFormat,
    KeepAlive,
    ReasoningEffort,
    StreamOptions,
    Switch,
    Text,
    TextOrList,
    WireBody,
)
from mlx_manager.mlx_server.types import NO_TOKEN_LIMIT

JsonObject = dict[str, object]
KNOWN_ITEMS = frozenset(
    {
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
        "item_reference",
        "additional_tools",
    }
)
"""Supported item types. Hosted tools produce other types."""


class Part(WireBody):
    type: Text
    text: Text | None = None
    refusal: Text | None = None


class ToolFormat(WireBody):
    """The format of the text for a custom tool."""

    type: Text
    syntax: Text | None = None
    definition: Text | None = None


class Tool(WireBody):
    """A tool of any type. `type` determines the required fields."""

    type: Text
    name: Text | None = None
    description: Text | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = Field(default=None, strict=True)
    format: ToolFormat | None = None
    tools: "list[Tool] | None" = None


class Item(WireBody):
    """An item of a supported type. `type` determines the required fields."""

    type: Text = "message"
    id: Text | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: TextOrList[Part] = None
    call_id: Text | None = None
    name: Text | None = None
    namespace: Text | None = None
    arguments: Text | None = None
    input: Text | None = None
    output: TextOrList[Part] = None
    summary: list[Part] | None = None
    encrypted_content: Text | None = None
    tools: list[Tool] | None = None


class OtherItem(WireBody):
    type: Text
    id: Text | None = None


def _kind_of_item(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "a known item" if kind is None or not isinstance(kind, str) or kind in KNOWN_ITEMS else "another item"


AnyItem = Annotated[
    Annotated[Item, Tag("a known item")] | Annotated[OtherItem, Tag("another item")], Discriminator(_kind_of_item)
]


class Reasoning(WireBody):
    effort: ReasoningEffort | None = None
    summary: Text | None = None
    generate_summary: Text | None = None


class TextFormat(JsonSchemaFormat):
    type: Text


class TextConfig(WireBody):
    format: TextFormat | None = None
    verbosity: Text | None = None


class AllowedTool(WireBody):
    type: Text
    name: Text | None = None
    namespace: Text | None = None


class ToolChoice(WireBody):
    type: Text
    name: Text | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[AllowedTool] | None = None


_CHOICE = Discriminator(lambda value: "str" if isinstance(value, str) else "dict")


class PromptCacheOptions(WireBody):
    """`mode` and `ttl` have no effect: the prefix cache stores every prompt, as long as it has room."""

    mode: Text | None = None
    ttl: Text | None = None
    comparison_response_id: Text | None = None
    prewarm: Switch = False


class InputTokensRequest(WireBody):
    """Fields common to Responses and token counting."""

    model: str = Field(min_length=1)
    input: TextOrList[AnyItem] = None
    instructions: Text | None = None
    previous_response_id: Text | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("str")] | Annotated[ToolChoice, Tag("dict")], _CHOICE
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = Field(default=None, strict=True)
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None


class ResponsesRequest(InputTokensRequest):
    max_output_tokens: Integer | None = Field(default=None, ge=0, le=NO_TOKEN_LIMIT)
    temperature: float | None = Field(default=None, ge=0, le=2, strict=True)
    top_p: float | None = Field(default=None, ge=0, le=1, strict=True)
    top_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    include: list[Text] | None = None
    stream: Switch = False
    stream_options: StreamOptions | None = None
    store: bool | None = Field(default=None, strict=True)
    metadata: dict[str, Text] | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: CacheRetention | None = None
    user: Text | None = None
    safety_identifier: Text | None = None
    keep_alive: KeepAlive | None = None


class Response(WireBody):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "cancelled", "in_progress"]
    model: str
    output: list[JsonObject]
    usage: JsonObject | None


class ItemList(WireBody):
    object: Literal["list"] = "list"
    data: list[JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(WireBody):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputTokens(WireBody):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
