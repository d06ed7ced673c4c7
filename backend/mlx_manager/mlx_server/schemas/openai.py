"""OpenAI's shapes on the wire, as far as this server serves them. Shapes only: their meaning lies in `protocols/`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Switch = Annotated[bool, Field(strict=True), BeforeValidator(lambda value: False if value is None else value)]
"""A bool that clients also send as null."""
LogitBias = Annotated[float, Field(ge=-100, le=100, strict=True)]
MAX_TOKENS = 2**31 - 1


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError("a lone surrogate is no Unicode text") from exc
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopString = Annotated[Text, Field(min_length=1)]


class _Body(BaseModel):
    """A request's body. Fields that are not listed are kept, to be refused by name or ignored by `protocols/`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())


class ContentPart(_Body):
    type: str
    text: Text | None = None


class ChatMessage(_Body):
    role: Role
    content: Text | list[ContentPart] | None = None
    name: Text | None = None


class StreamOptions(_Body):
    include_usage: Switch = False


class GenerationBody(_Body):
    """What Chat Completions and Completions have in common."""

    model: str = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2, strict=True)
    top_p: float | None = Field(default=None, gt=0, le=1, strict=True)
    top_k: int | None = Field(default=None, ge=-1, strict=True)
    min_p: float | None = Field(default=None, ge=0, le=1, strict=True)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=2, strict=True)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, strict=True)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, strict=True)
    logit_bias: dict[int, LogitBias] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63, strict=True)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, strict=True)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: Switch = False
    stream_options: StreamOptions | None = None


class ChatCompletionRequest(GenerationBody):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS, strict=True)


class CompletionRequest(GenerationBody):
    prompt: Text | list[str] | list[int] | list[list[int]]
    echo: Switch = False


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None


class ChatCompletionChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletionResponse(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: Usage


class ChatCompletionChunkDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatCompletionChunkChoice(BaseModel):
    index: int
    delta: ChatCompletionChunkDelta
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionChunkChoice]
    usage: Usage | None = None


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class CompletionResponse(BaseModel):
    """Also the chunk of a streamed completion, whose `finish_reason` is null until the last."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelInfo(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mlx-manager"


class ModelListResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelInfo]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail
