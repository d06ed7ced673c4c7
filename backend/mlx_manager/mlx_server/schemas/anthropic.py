"""The wire schemas of Anthropic's Messages. Shapes only; `protocols/` interprets them."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from mlx_manager.mlx_server.schemas.openai import CacheRetention, Integer, Switch, Text, TextOrList, WireBody
from mlx_manager.mlx_server.types import NO_TOKEN_LIMIT

MAX_STOP_SEQUENCES = 64
_BY_SHAPE = Discriminator(
    lambda value: "str" if isinstance(value, str) else "list" if isinstance(value, list) else "dict"
)


class CacheControl(WireBody):
    type: Text = "ephemeral"
    ttl: Text | None = None


class Source(WireBody):
    """The source of an image or a document."""

    type: Text
    media_type: Text | None = None
    data: Text | None = None
    content: "Text | list[Block] | None" = None


class Block(WireBody):
    """A content block of any type. `type` determines the required fields."""

    type: Text
    text: Text | None = None
    thinking: Text | None = None
    signature: Text | None = None
    data: Text | None = None
    id: Text | None = None
    name: Text | None = None
    input: dict[str, object] | None = None
    tool_use_id: Text | None = None
    is_error: Switch = False
    tool_name: Text | None = None
    title: Text | None = None
    context: Text | None = None
    source: Source | Text | None = None
    content: (
        Annotated[
            Annotated[Text, Tag("str")]
            | Annotated["list[Block]", Field(fail_fast=True), Tag("list")]
            | Annotated[dict[str, object], Tag("dict")],
            _BY_SHAPE,
        ]
        | None
    ) = None
    """An object is the result of a tool that ran on Anthropic's servers."""
    cache_control: CacheControl | None = None


class Message(WireBody):
    role: Literal["user", "assistant", "system"]
    content: TextOrList[Block]


class Tool(WireBody):
    name: Text | None = None
    type: Text | None = None
    description: Text | None = None
    input_schema: dict[str, object] | None = None
    strict: bool | None = Field(default=None, strict=True)
    cache_control: CacheControl | None = None


class ToolChoice(WireBody):
    type: Text
    name: Text | None = None
    disable_parallel_tool_use: Switch = False


class Thinking(WireBody):
    type: Text
    budget_tokens: Integer | None = Field(default=None, ge=0, le=NO_TOKEN_LIMIT)
    display: Text | None = None


class OutputFormat(WireBody):
    type: Text
    schema_: dict[str, object] | None = Field(default=None, alias="schema")


class OutputConfig(WireBody):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ContextEdit(WireBody):
    type: Text


class ContextManagement(WireBody):
    edits: list[ContextEdit] | None = None


class Diagnostics(WireBody):
    previous_message_id: Text | None = None


class CountTokensRequest(WireBody):
    """Fields common to Messages and token counting."""

    model: str = Field(min_length=1)
    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    system: TextOrList[Block] = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    context_management: ContextManagement | None = None
    cache_control: CacheControl | None = None


class MessagesRequest(CountTokensRequest):
    max_tokens: Integer = Field(ge=0, le=NO_TOKEN_LIMIT)
    stop_sequences: Annotated[list[Text], Field(max_length=MAX_STOP_SEQUENCES)] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, strict=True)
    top_p: float | None = Field(default=None, ge=0, le=1, strict=True)
    top_k: Integer | None = Field(default=None, ge=0)
    stream: Switch = False
    diagnostics: Diagnostics | None = None
    prompt_cache_retention: CacheRetention | None = None


class MessagesResponse(WireBody):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, object]]
    stop_reason: str
    stop_sequence: str | None
    usage: dict[str, object]
    diagnostics: dict[str, object] | None = None


class TokenCount(WireBody):
    input_tokens: int
