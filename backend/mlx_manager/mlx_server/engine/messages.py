"""What the API process and a worker say to each other: msgpack frames over a stream socket, no pickle.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one message going down, a list of messages (all
that one engine step has to say) going up. The first frame down is a `Launch`; the worker answers with `Device`, then
`Ready` or `LoadFailed`. A sequence is one generation, or the texts of one Encode; its number is the client's to choose.
"""

from typing import Literal

import msgspec

from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.types import FinishReason, SamplingParams, Thinking

LENGTH_BYTES = 4
MAX_BATCH_ROWS = 64
"""The most sequences that a worker decodes at once; those beyond them wait."""


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Limits(_Message, frozen=True):
    """The worker's share of the machine from now on; `prefix_cache_bytes` are a part of `memory_bytes`.

    A `Capacity` answers it. Sequences that do not fit any more begin again later, but for one that runs alone.
    """

    memory_bytes: int
    buffer_bytes: int
    """Freed memory that MLX may keep for reuse."""
    prefix_cache_bytes: int


class WorkerOptions(_Message, frozen=True):
    """What the settings say to every worker of the server."""

    inter_token_latency_ms: int = 100
    wire_memory: bool = False
    """Whether the model stays wired in a Mac's memory."""


class Launch(_Message, frozen=True):
    """The first message: what the worker loads, and with which share of the machine. `folder` holds the model's files.

    `adapter` is the folder of a LoRA adapter. Code that the model's folder brings runs with `trust_remote_code` alone.
    """

    kind: ModelKind
    folder: str
    limits: Limits
    options: WorkerOptions = WorkerOptions()
    adapter: str | None = None
    trust_remote_code: bool = False


class Submit(_Message, frozen=True):
    """Generate from `prompt_tokens` until one of `stop_tokens` or `max_tokens`. Token ids lie within the vocabulary.

    `grammar` is one of llguidance's, serialised, that the answer follows; it was found valid before it is sent.
    """

    sequence: int
    prompt_tokens: list[int]
    max_tokens: int
    stop_tokens: list[int]
    sampling: SamplingParams
    grammar: str | None = None
    thinking: Thinking | None = None
    logprobs: int | None = None
    """How many of the likeliest tokens to tell of at every step; None for no logprobs."""
    prompt_logprobs: bool = False
    """Whether to tell them of the prompt, too."""


class Encode(_Message, frozen=True):
    """Make a vector or a score of each text; `tokens` are the texts' ids, one text behind the other, as int32.

    The second text of a pair begins at its place of `second_at`, which is empty where there are no pairs. The vectors
    have `dimensions`: longer ones are cut and normalised again.
    """

    sequence: int
    lengths: list[int]
    tokens: bytes
    second_at: list[int]
    dimensions: int


class Cancel(_Message, frozen=True):
    """Stop the sequence wherever it is; nothing more is said of it. Unknown and finished ones are ignored."""

    sequence: int


class Shutdown(_Message, frozen=True):
    pass


class Device(_Message, frozen=True):
    """What the worker computes on. It is sent before the model is loaded: on a GPU the budget of all models follows it.

    `memory_bytes` is what a CUDA device has, or what Metal recommends to take at most; None for a CPU. `generation` is
    the chip's, such as "applegpu_g15s" or "sm_90", where MLX knows it.
    """

    backend: Literal["cpu", "metal", "cuda"]
    memory_bytes: int | None
    name: str = ""
    generation: str = ""


class GeneratorFacts(_Message, frozen=True):
    """Of a model that generates. `vocabulary_size` is the number of rows of its logits.

    A sequence of `largest_sequence_tokens`, prompt and answer, fits into the worker's memory when it runs alone.
    """

    vocabulary_size: int
    kv_bytes_per_token: int
    largest_sequence_tokens: int


class EncoderFacts(_Message, frozen=True):
    """Of a model that embeds or scores. `dimensions` is the length of its vectors, 1 for scores."""

    vocabulary_size: int
    dimensions: int


ModelFacts = GeneratorFacts | EncoderFacts
"""One type for each kind of engine."""


class Ready(_Message, frozen=True):
    """The model is loaded and warm. `dtype` is the one that it computes in, such as "bfloat16"."""

    active_bytes: int
    dtype: str
    model: ModelFacts


class Capacity(_Message, frozen=True):
    """The longest sequence, prompt and answer, that fits into `memory_bytes`, the last Limits', when it runs alone."""

    largest_sequence_tokens: int
    memory_bytes: int


class Admitted(_Message, frozen=True):
    """The sequence is in the engine's queue."""

    sequence: int


class Prefilled(_Message, frozen=True):
    """The prompt is in the KV cache; `cached_tokens` of it came from the prefix cache.

    It waited for `queue_seconds` before the first chunk of it was taken in.
    """

    sequence: int
    cached_tokens: int
    queue_seconds: float


class Logprobs(_Message, frozen=True):
    """Log-probabilities by the model's own distribution, before temperature, penalties and bias.

    `chosen[i]` is that of the token at place `places[i]` of what the message is about; `top_tokens[i]` and `top[i]` are
    the likeliest tokens there, the likeliest first.
    """

    places: list[int]
    chosen: list[float]
    top_tokens: list[list[int]]
    top: list[list[float]]

    def at(self, kept: list[int]) -> "Logprobs":
        """Of the tokens at the indices `kept` alone."""
        return Logprobs(
            [self.places[i] for i in kept],
            [self.chosen[i] for i in kept],
            [self.top_tokens[i] for i in kept],
            [self.top[i] for i in kept],
        )


class Step(_Message, frozen=True):
    """The tokens of one decode step: `tokens[i]` belongs to `sequences[i]`. `logprobs` are of those that asked."""

    sequences: list[int]
    tokens: list[int]
    logprobs: Logprobs | None = None


class PromptLogprobs(_Message, frozen=True):
    """The next stretch of a prompt's logprobs, in places of the prompt. Before the sequence's first Step."""

    sequence: int
    logprobs: Logprobs


class Encoded(_Message, frozen=True):
    """The results for the texts at `places` of an Encode, one behind the other, as float32.

    The first of a sequence says how long it waited for its first batch.
    """

    sequence: int
    places: list[int]
    vectors: bytes
    queue_seconds: float


class RequestFinished(_Message, frozen=True):
    """After the Step with the sequence's last token, which is a stop token when the reason is "stop"."""

    sequence: int
    reason: FinishReason


class RequestFailed(_Message, frozen=True):
    """`invalid` says that the fault is the request's, or that it is too large: then it was never admitted."""

    sequence: int
    message: str
    invalid: bool = False


class LoadFailed(_Message, frozen=True):
    """The worker cannot load the model, and ends. `failure` is the exception's name and message."""

    failure: str


class Heartbeat(_Message, frozen=True):
    """Sent every second, however long a step takes: the seconds that the present one has lasted, 0 between steps.

    `active_bytes` are what MLX holds: while the model is loaded, how much of it is there.
    """

    step_seconds: float
    active_bytes: int = 0


class Stats(_Message, frozen=True):
    """MLX's memory in bytes, how many sequences the worker works on and decodes, and its prefix cache."""

    active_bytes: int = 0
    peak_bytes: int = 0
    cache_bytes: int = 0
    sequences: int = 0
    prefix_bytes: int = 0
    prefix_hits: int = 0
    prefix_tokens: int = 0
    prefix_evictions: int = 0
    running: int = 0


DownMessage = Launch | Submit | Encode | Cancel | Limits | Shutdown
UpMessage = (
    Device
    | Ready
    | LoadFailed
    | Capacity
    | Admitted
    | Prefilled
    | PromptLogprobs
    | Step
    | Encoded
    | RequestFinished
    | RequestFailed
    | Heartbeat
    | Stats
)

_encoder = msgspec.msgpack.Encoder()
_down_decoder: msgspec.msgpack.Decoder[DownMessage] = msgspec.msgpack.Decoder(DownMessage)
_up_decoder = msgspec.msgpack.Decoder(list[UpMessage])


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def encode_down(message: DownMessage) -> bytes:
    return _frame(_encoder.encode(message))


def encode_up(messages: list[UpMessage]) -> bytes:
    return _frame(_encoder.encode(messages))


def decode_down(payload: bytes) -> DownMessage:
    return _down_decoder.decode(payload)


def decode_up(payload: bytes) -> list[UpMessage]:
    return _up_decoder.decode(payload)
