"""The vocabulary that all rooms share: requests as the services see them, and the events a generation consists of."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import msgspec

from mlx_manager.mlx_server.records import GenerationRecord

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
CHARACTERS_PER_TOKEN = 4
"""About as many in English text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the engine draws tokens; each default is the value that changes nothing. `engine/sampling.py` has the maths.

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
    """Before so many tokens are drawn, none of `end_tokens` is."""
    end_tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOverrides:
    """What a request, or a model's files, say of `SamplingParams`; None where they say nothing."""

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
    """How a thinking model sets its thoughts apart, in token ids; a grammar is for what comes behind them.

    `open_token` begins them where the model chooses to think; it is None where the prompt has begun them already.
    `budget` is the number of tokens after which they are closed, whatever the model makes of it; then `again_token`,
    which would begin them again, may not be drawn.
    """

    open_token: int | None
    close_tokens: tuple[int, ...]
    budget: int | None = None
    again_token: int | None = None


GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to look like, asked for by the request's field `param`.

    `source` is a JSON schema, a regular expression, a JSON list of strings, or Lark as llguidance speaks it; nothing
    for a JSON object. A `strict` schema is refused where it cannot be enforced whole.
    """

    kind: GrammarKind
    source: str
    param: str
    strict: bool = False


NO_TOKEN_LIMIT = 2**31 - 1
"""As the most tokens of an answer: as many as there is room for."""
ENFORCED_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""The values of a JSON schema's `format` that a grammar enforces. The others are annotations."""
SCHEMA_LABEL = "x-mlx-manager"
"""A key of the schemas inside of a Lark grammar: `{"what": a name for messages, "strict": whether it is}`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant's turn made. `arguments` is JSON text, as far as the model wrote JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message. `content` is None where an assistant calls tools and says nothing."""

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
"""Of a tool that takes text, where only functions are known."""


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A function on offer. `parameters` is the JSON schema of its arguments; `text_length` is in characters.

    A `custom` tool takes text: its calls have the one argument `input`, wherever arguments are JSON. A `grammar` says
    what that text has to look like.
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
    """All `tools` are shown to the model; `required` says that it has to call one of the `callable` ones.

    Without `parallel` it makes one call at most.
    """

    tools: tuple[ToolDefinition, ...] = ()
    callable: tuple[ToolDefinition, ...] = ()
    required: bool = False
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What every protocol asks for. Where it says nothing, the model's files decide, and then the default.

    `id` and `created` (Unix seconds) are made once and are the same in log, response and every chunk.
    """

    prompt_field: ClassVar[str]
    """The wire's name for the prompt, for errors that are about it."""

    id: str
    created: int
    model: str
    sampling: SamplingOverrides
    max_tokens: int | None
    default_max_tokens: int
    stop: tuple[str, ...]
    include_usage: bool
    n: int = 1
    """Choices for each prompt. The first is the one that n = 1 gives."""
    logprobs: int | None = None
    """How many of the likeliest tokens to name beside each token; None gives no logprobs at all."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    """Neither a stop token nor a stop string ends a choice before."""
    include_stop: bool = False
    """Whether what stopped a choice is part of its text."""
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    keep_alive_seconds: float | None = None
    """How long the model stays loaded when it is idle afterwards; negative for ever."""
    record: GenerationRecord = field(default_factory=GenerationRecord, compare=False, repr=False)
    """What happens to the request, for whoever serves it to write down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(GenerationRequest):
    prompt_field: ClassVar[str] = "messages"

    turns: tuple[ChatTurn, ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """What the chat template gets beside the messages."""
    tool_use: ToolUse = ToolUse()
    thinking_budget: int | None = None
    """Tokens that the model may think for; None for as many as it likes."""

    @property
    def sequences(self) -> int:
        """Generations that the request needs, whether all of them are given or not."""
        return self.n

    @property
    def text_length(self) -> int:
        """Characters that the template is given."""
        return sum(tool.text_length for tool in self.tool_use.tools) + sum(turn.text_length for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(GenerationRequest):
    """`prompts` are texts or token ids. `best_of` choices are made of each, and the `n` likeliest given."""

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
        """Characters, and for each token id as many as a token has."""
        lengths = (len(part) if isinstance(part, str) else len(part) * CHARACTERS_PER_TOKEN for part in self.prompts)
        return sum(lengths) + len(self.suffix or "")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counts them, each prompt once; a choice includes its stop token and nothing past a stop."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    stored_tokens: int = 0
    """Tokens of the prompt that the prefix cache did not have and keeps."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token and its log-probability. `bytes` are the token's own, which may be a part of a character."""

    token: str
    logprob: float
    bytes: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprob(TopLogprob):
    """A token of a choice, and the likeliest ones at its place, the likeliest first.

    `offset` is where its text begins in the text of the choice, in characters. `predicted` is False for a prompt's
    first token, which nothing predicts.
    """

    top: tuple[TopLogprob, ...]
    offset: int
    predicted: bool = True


Logprobs = tuple[TokenLogprob, ...]


class _Event(msgspec.Struct, frozen=True):
    """Events are Structs, which take a sixth of the time of frozen dataclasses to make: there is one for each token."""


class Started(_Event, frozen=True):
    """The request is admitted to the engine's queue: from here on a failure comes in mid-stream."""


class Prefilled(_Event, frozen=True):
    """The prompt is read; the tokens as `Usage` has them. Once, before the first delta. Not every upstream tells it."""

    prompt_tokens: int
    cached_tokens: int
    stored_tokens: int = 0


class TextDelta(_Event, frozen=True):
    """`logprobs`, where they were asked for, are those of the tokens whose text is complete with this delta."""

    index: int
    text: str
    logprobs: Logprobs = ()


class ReasoningDelta(_Event, frozen=True):
    index: int
    text: str
    logprobs: Logprobs = ()


class RefusalDelta(_Event, frozen=True):
    """What an upstream's model says in place of an answer that it may not give."""

    index: int
    text: str


class ToolCallStarted(_Event, frozen=True):
    """`call` counts the calls of the choice from 0; the deltas of its arguments follow under the same number."""

    index: int
    call: int
    id: str
    name: str


class ToolCallDelta(_Event, frozen=True):
    index: int
    call: int
    arguments: str


class ChoiceFinished(_Event, frozen=True):
    """`stop` is the stop string that ended the choice, None when a stop token or the limit did."""

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
    """A stretch of a choice's text, of its reasoning, or of its refusal."""

    kind: type[TextDelta | ReasoningDelta | RefusalDelta]
    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """`parts` are text, reasoning and calls once more, in the order in which the model wrote them."""

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
