"""The wire schemas of OpenAI's Chat Completions and Completions. Shapes only; `protocols/` interprets them."""

from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)

from mlx_manager.mlx_server.model_settings import duration_seconds
from mlx_manager.mlx_server.schemas.models import ModelInfo as ModelInfo
from mlx_manager.mlx_server.schemas.models import ModelListResponse as ModelListResponse
from mlx_manager.mlx_server.types import NO_TOKEN_LIMIT

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Switch = Annotated[bool, Field(strict=True), BeforeValidator(lambda value: False if value is None else value)]
"""A bool; null means false."""
LogitBias = Annotated[float, Field(ge=-100, le=100, strict=True)]
TokenId = Annotated[int, Field(strict=True)]


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, Field(strict=True), BeforeValidator(_integral)]
"""An integer; JSON has one number type, so 10.0 is accepted."""
TokenLimit = Annotated[Integer, BeforeValidator(lambda value: NO_TOKEN_LIMIT if value == -1 else value)]
"""Maximum tokens of an answer; -1 for no limit but the context."""
KeepAlive = Annotated[
    float,
    BeforeValidator(duration_seconds),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": [300, "5m", -1, 0]}),
]
"""Seconds that the model stays loaded when idle after the request; -1 keeps it while memory allows."""
CacheRetention = Literal["in_memory", "in-memory", "24h"]
"""The first two keep the request's prefix off the disk."""
MAX_STOP_STRINGS = 32
MAX_CHOICES = 128
MAX_PROMPTS = 1024
MAX_GUIDED_CHOICES = 100_000


def _encodable(text: str) -> str:
    """Rejects lone surrogates, which JSON escapes can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError("the text has a lone surrogate, which is not valid Unicode. Send valid text") from exc
    return text


Text = Annotated[str, AfterValidator(_encodable)]
_BY_SHAPE = Discriminator(lambda value: "list" if isinstance(value, list) else "str")
PartT = TypeVar("PartT")
TextOrList = (
    Annotated[Annotated[Text, Tag("str")] | Annotated[list[PartT], Field(fail_fast=True), Tag("list")], _BY_SHAPE]
    | None
)
_TEXT_OR_OBJECT = Discriminator(lambda value: "str" if isinstance(value, str) else "dict")
"""Selects one of two shapes, so that errors name only the shape that was sent."""


class WireBody(BaseModel):
    """A request body. Keeps unlisted fields; `protocols/` refuses or ignores them by name."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())


class ContentPart(WireBody):
    type: str
    text: Text | None = None
    refusal: Text | None = None


class FunctionCall(WireBody):
    name: Text
    arguments: Text | dict[str, object] = "{}"


class MessageToolCall(WireBody):
    id: Text = ""
    type: str = "function"
    function: FunctionCall | None = None


class ChatMessage(WireBody):
    role: Role
    content: TextOrList[ContentPart] = None
    name: Text | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(fail_fast=True)] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    refusal: Text | None = None


class StreamOptions(WireBody):
    include_usage: Switch = False
    include_obfuscation: Switch = False


class JsonSchemaFormat(WireBody):
    name: Text | None = None
    description: Text | None = None
    schema_: dict[str, object] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, strict=True)


class ResponseFormat(WireBody):
    type: Text
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, object] | None = Field(default=None, alias="schema")


class FunctionDefinition(WireBody):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: Text | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = Field(default=None, strict=True)


class Tool(WireBody):
    type: Text
    function: FunctionDefinition | None = None


class FunctionName(WireBody):
    name: Text


class NamedToolChoice(WireBody):
    type: Text
    function: FunctionName | None = None


class GenerationBody(WireBody):
    """Fields common to Chat Completions and Completions."""

    model: str = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2, strict=True)
    top_p: float | None = Field(default=None, ge=0, le=1, strict=True)
    top_k: Integer | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1, strict=True)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=2, strict=True)
    repeat_penalty: float | None = Field(default=None, ge=0.01, le=2, strict=True)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, strict=True)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, strict=True)
    logit_bias: dict[int, LogitBias] | None = Field(default=None, max_length=1024)
    seed: Integer | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: Integer | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: (
        Annotated[
            Annotated[Text, Tag("str")] | Annotated[list[Text], Field(max_length=MAX_STOP_STRINGS), Tag("list")],
            _BY_SHAPE,
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[Integer], Field(fail_fast=True, max_length=1024)] | None = None
    include_stop_str_in_output: Switch = False
    ignore_eos: Switch = False
    num_predict: TokenLimit | None = Field(default=None, ge=1, le=NO_TOKEN_LIMIT)
    min_tokens: Integer | None = Field(default=None, ge=0, le=NO_TOKEN_LIMIT)
    skip_special_tokens: bool | None = Field(default=None, strict=True)
    prompt_cache_retention: CacheRetention | None = None
    guided_json: (
        Annotated[Annotated[Text, Tag("str")] | Annotated[dict[str, object], Tag("dict")], _TEXT_OR_OBJECT] | None
    ) = None
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_GUIDED_CHOICES)] | None = (
        None
    )
    guided_grammar: Text | None = None
    keep_alive: KeepAlive | None = None
    stream: Switch = False
    stream_options: StreamOptions | None = None


class ChatCompletionRequest(GenerationBody):
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1)
    max_tokens: TokenLimit | None = Field(default=None, ge=1, le=NO_TOKEN_LIMIT)
    max_completion_tokens: TokenLimit | None = Field(default=None, ge=1, le=NO_TOKEN_LIMIT)
    logprobs: Switch = False
    top_logprobs: Integer | None = Field(default=None, ge=0, le=20)
    reasoning_effort: ReasoningEffort | None = None
    enable_thinking: bool | None = Field(default=None, strict=True)
    thinking_budget: Integer | None = Field(default=None, ge=0, le=NO_TOKEN_LIMIT)
    chat_template_kwargs: dict[str, object] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("str")] | Annotated[NamedToolChoice, Tag("dict")],
            _TEXT_OR_OBJECT,
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = Field(default=None, strict=True)
    add_generation_prompt: bool | None = Field(default=None, strict=True)
    continue_final_message: Switch = False


def _kind_of_prompt(prompt: object) -> str:
    """The shape of a prompt, from its first element: a long list is validated only once."""
    if not isinstance(prompt, list) or not prompt:
        return "str" if isinstance(prompt, str) else "list[str]"
    kinds = {int: "list[int]", list: "list[list[int]]"}
    return kinds.get(type(prompt[0]), "list[str]")


Prompt = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPTS), Tag("list[str]")]
    | Annotated[list[TokenId], Field(fail_fast=True), Tag("list[int]")]
    | Annotated[
        list[Annotated[list[TokenId], Field(fail_fast=True)]],
        Field(fail_fast=True, max_length=MAX_PROMPTS),
        Tag("list[list[int]]"),
    ],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(GenerationBody):
    prompt: Prompt
    suffix: Text | None = None
    max_tokens: TokenLimit | None = Field(default=None, ge=0, le=NO_TOKEN_LIMIT)
    best_of: Integer | None = Field(default=None, ge=1, le=MAX_CHOICES)
    echo: Switch = False
    logprobs: Integer | None = Field(default=None, ge=0, le=5)


class CacheMiss(BaseModel):
    """Why the prefix cache missed `missed_tokens` tokens after the cached ones."""

    reason: Literal["model", "adapter", "system", "tools", "messages", "evicted", "expired"]
    missed_tokens: int


class PromptTokensDetails(BaseModel):
    cached_tokens: int
    cache_miss: CacheMiss | None = None


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatCompletionChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletionResponse(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionChoice]
    usage: Usage


class CalledFunctionDelta(BaseModel):
    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionDelta


class ChatCompletionChunkDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatCompletionChunkChoice(BaseModel):
    index: int
    delta: ChatCompletionChunkDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """Values are null for the first prompt token, which has no prediction."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class CompletionResponse(BaseModel):
    """A completion, or a chunk of a stream; `finish_reason` is null before the last chunk."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail
