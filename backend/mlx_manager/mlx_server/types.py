"""The types that all packages share: internal requests, and the events of a generation. Knows no wire format."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import msgspec

from mlx_manager.mlx_server.records import GenerationRecord, Miss

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
LoadStage = Literal["waiting", "downloading", "loading", "warming up"]
CHARACTERS_PER_TOKEN = 4
"""Approximately, for English text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters; each default has no effect. `engine/sampling.py` has the maths.

    Temperature 0 is greedy, top_k 0 means all, and `seed` makes the draw repeatable in any batch. The repetition
    penalty counts the tokens of prompt and output, the frequency and presence penalties those of the output.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    """The engine samples no token of `end_tokens` before this many tokens."""
    end_tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOverrides:
    """The `SamplingParams` that a request or a model's files set; None where they set nothing."""

    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """The token ids that delimit a model's reasoning; a grammar applies after it.

    `open_token` begins reasoning; it is None if the prompt has begun it already. After `budget` tokens the engine
    closes the reasoning, and from then on masks `again_token`, which would begin it again.
    """

    open_token: int | None
    close_tokens: tuple[int, ...]
    budget: int | None = None
    again_token: int | None = None


GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """The grammar of an answer, from the request's field `param`.

    `source` is a JSON schema, a regular expression, a JSON list of strings, or llguidance's Lark; empty for a JSON
    object. A `strict` schema that cannot be enforced completely is an error.
    """

    kind: GrammarKind
    source: str
    param: str
    strict: bool = False


NO_TOKEN_LIMIT = 2**31 - 1
"""A `max_tokens` limited only by context and memory."""
ENFORCED_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""The values of a JSON schema's `format` that a grammar enforces. Others are annotations."""
SCHEMA_LABEL = "x-mlx-manager"
"""A key of the schemas in a Lark grammar: `{"what": a name for messages, "strict": a bool}`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of an assistant's turn. `arguments` is JSON text, unless the model wrote invalid JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message. `content` is None for an assistant's tool calls without text."""

    role: str
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    @property
    def text_length(self) -> int:
        calls = sum(len(call.name) + len(call.arguments) for call in self.tool_calls)
        return calls + len(self.content or "") + len(self.reasoning or "")


CUSTOM_INPUT = "input"
CUSTOM_PARAMETERS: Mapping[str, object] = {
    "type": "object",
    "properties": {CUSTOM_INPUT: {"type": "string"}},
    "required": [CUSTOM_INPUT],
    "additionalProperties": False,
}
"""The parameters of a custom tool, which takes text, where only functions are supported."""


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A function that the model may call. `parameters` is a JSON schema; `text_length` is in characters.

    A `custom` tool takes text: as JSON, its calls have the single argument `input`. `grammar` constrains that text.
    """

    name: str
    description: str | None
    parameters: Mapping[str, object]
    text_length: int
    strict: bool = False
    custom: bool = False
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The prompt describes all `tools`; with `required` the model must call one of `callable`.

    Without `parallel` it makes at most one call.
    """

    tools: tuple[ToolDefinition, ...] = ()
    callable: tuple[ToolDefinition, ...] = ()
    required: bool = False
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """The fields common to all protocols. The model's files, then the defaults, replace what is None.

    `id` and `created` (Unix seconds) are the same in log, response and every chunk.
    """

    prompt_field: ClassVar[str]
    """The prompt's field name on the wire, for errors."""

    id: str
    created: int
    model: str
    sampling: SamplingOverrides
    max_tokens: int | None
    default_max_tokens: int
    stop: tuple[str, ...]
    include_usage: bool
    n: int = 1
    """Choices per prompt. The first equals the choice of n = 1."""
    logprobs: int | None = None
    """Number of top tokens to return with each token; None returns no logprobs."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    """Stop tokens and stop strings have no effect before this many tokens."""
    include_stop: bool = False
    """Whether the text of a choice includes its stop string or token."""
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    keep_alive_seconds: float | None = None
    """How long the idle model stays loaded afterwards; negative means no limit."""
    keep_off_disk: bool = False
    """Whether prompt and answer must not be written to the prefix cache on disk."""
    record: GenerationRecord = field(default_factory=GenerationRecord, compare=False, repr=False)
    """The record of the request, written by the service that handles it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "messages"

    turns: tuple[ChatTurn, ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of the chat template."""
    tool_use: ToolUse = ToolUse()
    thinking_budget: int | None = None
    """Most tokens of reasoning; None means no limit."""
    compare_with: str | None = None
    """The id of an earlier answer: `Usage.miss` then says what differs from its prompt."""

    @property
    def sequences(self) -> int:
        """Generations that the request runs, including those not returned."""
        return self.n

    @property
    def text_length(self) -> int:
        """Characters of messages and tools."""
        return sum(tool.text_length for tool in self.tool_use.tools) + sum(turn.text_length for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(GenerationRequest):
    """`prompts` are texts or token ids. The engine generates `best_of` choices of each; the answer has the best `n`."""

    prompt_field: ClassVar[str] = "prompt"

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    suffix: str | None = None
    best_of: int = 1

    @property
    def sequences(self) -> int:
        return self.best_of * len(self.prompts)

    @property
    def text_length(self) -> int:
        """Characters; a token id counts as CHARACTERS_PER_TOKEN."""
        lengths = (len(part) if isinstance(part, str) else len(part) * CHARACTERS_PER_TOKEN for part in self.prompts)
        return sum(lengths) + len(self.suffix or "")


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of the engine. Each prompt counts once; a choice counts its stop token, and no token after it."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    stored_tokens: int = 0
    """Prompt tokens that this request added to the prefix cache."""
    miss: Miss | None = None
    compared: bool | None = None
    """`GenerationRecord` explains both."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token and its log-probability. `bytes` may be an incomplete UTF-8 character."""

    token: str
    logprob: float
    bytes: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprob(TopLogprob):
    """A token of a choice, and the top tokens at its position, in descending order.

    `offset` is the position of its text in the choice, in characters. `predicted` is False for a prompt's first token,
    which has no logprob.
    """

    top: tuple[TopLogprob, ...]
    offset: int
    predicted: bool = True


Logprobs = tuple[TokenLogprob, ...]


class _Event(msgspec.Struct, frozen=True):
    """A Struct, because there is an event per token, and a frozen dataclass takes six times as long to create."""


class Started(_Event, frozen=True):
    """The engine's queue accepted the request: later failures happen in mid-stream."""


class Prefilled(_Event, frozen=True):
    """Prefill is complete. Sent once, before the first delta; some upstreams do not report it."""

    prompt_tokens: int
    cached_tokens: int
    stored_tokens: int = 0
    miss: Miss | None = None
    compared: bool | None = None


class TextDelta(_Event, frozen=True):
    """`logprobs`, if requested, belong to the tokens whose text this delta completes."""

    index: int
    text: str
    logprobs: Logprobs = ()


class ReasoningDelta(_Event, frozen=True):
    index: int
    text: str
    logprobs: Logprobs = ()


class RefusalDelta(_Event, frozen=True):
    """The refusal of an upstream's model, in place of text."""

    index: int
    text: str


class ToolCallStarted(_Event, frozen=True):
    """`call` numbers the calls of the choice from 0; the deltas of its arguments have the same number."""

    index: int
    call: int
    id: str
    name: str


class ToolCallDelta(_Event, frozen=True):
    index: int
    call: int
    arguments: str


class ChoiceFinished(_Event, frozen=True):
    """`stop` is the stop string that ended the choice; None for a stop token or the limit."""

    index: int
    reason: FinishReason
    stop: str | None


class Completed(_Event, frozen=True):
    usage: Usage


Delta = TextDelta | ReasoningDelta | RefusalDelta | ToolCallStarted | ToolCallDelta
GenerationEvent = Started | Prefilled | Delta | ChoiceFinished | Completed
GenerationEvents = AsyncGenerator[GenerationEvent, None]


@dataclass(frozen=True, slots=True)
class Passage:
    """A contiguous part of a choice's text, reasoning or refusal."""

    kind: type[TextDelta | ReasoningDelta | RefusalDelta]
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """`parts` repeat text, reasoning and calls in the order in which the model wrote them."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: Logprobs = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str = ""
    stop: str | None = field(default=None, compare=False)
    parts: tuple[Passage | ToolCall, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Generation:
    choices: tuple[Choice, ...]
    usage: Usage
