"""The messages between the API process and a worker: msgpack frames over a stream socket, without pickle.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one message down (to the worker), or the list of
an engine step's messages up. The first frame down is a `Launch`; the worker answers with `Device`, then `WarmingUp`
and `Ready`, or `LoadFailed`. A sequence is one generation, or the texts of one Encode; the client chooses its number.
"""

from typing import Literal

import msgspec

from mlx_manager.mlx_server.engine.membership import Membership
from mlx_manager.mlx_server.kinds import ModelKind
from mlx_manager.mlx_server.types import FinishReason, SamplingParams, Thinking

LENGTH_BYTES = 4
SAVE_SECONDS = 10.0
"""How long a worker may take at a Shutdown to write its prefix cache to disk."""
MAX_BATCH_ROWS = 64
"""The most sequences that a worker decodes at once; further ones are queued."""
LOST_RANK_STATUS = 75
"""The exit status of a rank that lost another one."""


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Limits(_Message, frozen=True):
    """New memory limits of the worker; `memory_bytes` includes `prefix_cache_bytes`.

    The worker answers with a `Capacity`. It preempts sequences that no longer fit, unless only one is left.
    """

    memory_bytes: int
    buffer_bytes: int
    """Freed memory that MLX may keep for reuse. 0: the worker returns it to the system at once as well."""
    prefix_cache_bytes: int

    def shared_by(self, workers: int) -> "Limits":
        """The limits of each of so many workers."""
        return Limits(self.memory_bytes // workers, self.buffer_bytes // workers, self.prefix_cache_bytes // workers)


class WorkerOptions(_Message, frozen=True):
    """Settings of the server that apply to every worker."""

    inter_token_latency_ms: int = 100
    wire_memory: bool = False
    """Whether to keep the model in wired memory on macOS."""
    warm_up: bool = True
    """Whether to run the engine once on made-up prompts before the model is ready."""
    keep_bfloat16: bool = False
    """Whether to compute in bfloat16 on a chip that emulates it."""
    prefix_disk_bytes: int = 0
    """Budget of the prefix cache's files of all models; 0 for none."""
    prefix_disk_folder: str = ""


class Launch(_Message, frozen=True):
    """The first message: the model to load from `folder`, and the worker's limits.

    `adapter` is the folder of a LoRA adapter. Only with `trust_remote_code` may the worker run code from `folder`.
    Grammars need the `tokenizer_file`, the tokenizer.json of `folder` if None; it may be written after this message.
    `membership` is None for a model in one process.
    """

    kind: ModelKind
    folder: str
    limits: Limits
    options: WorkerOptions = WorkerOptions()
    adapter: str | None = None
    trust_remote_code: bool = False
    dequantize: bool = False
    """Whether to hold quantised weights dequantised."""
    tokenizer_file: str | None = None
    model_id: str = ""
    prefix_disk: bool = True
    """Whether this model's prefixes may be written to disk."""
    membership: Membership | None = None


class Submit(_Message, frozen=True):
    """Generate from `prompt_tokens` until one of `stop_tokens` or `max_tokens`. Token ids lie within the vocabulary.

    `grammar` is a serialised llguidance grammar that constrains the answer; the API has validated it.
    """

    sequence: int
    prompt_tokens: list[int]
    max_tokens: int
    stop_tokens: list[int]
    sampling: SamplingParams
    grammar: str | None = None
    thinking: Thinking | None = None
    logprobs: int | None = None
    """How many of the most likely tokens to report at every step; None for no logprobs."""
    prompt_logprobs: bool = False
    """Whether to report logprobs of the prompt as well."""
    keep_off_disk: bool = False
    """Whether its prompt and answer must not be written to disk."""


class Encode(_Message, frozen=True):
    """Compute a vector or a score for each text; `tokens` holds the token ids of all texts, concatenated, as int32.

    `second_at` holds the position at which the second text of each pair begins; it is empty for single texts. Vectors
    longer than `dimensions` are truncated and normalised again.
    """

    sequence: int
    lengths: list[int]
    tokens: bytes
    second_at: list[int]
    dimensions: int


class Neighbours(_Message, frozen=True):
    """Whether models generate in other workers. An encoder that computes on the CPU then rests between batches."""

    generating: bool


class Cancel(_Message, frozen=True):
    """Cancel the sequence; the worker sends no more messages about it. Ignored for unknown and finished sequences."""

    sequence: int


class Shutdown(_Message, frozen=True):
    pass


class Device(_Message, frozen=True):
    """The worker's device. Sent before the model is loaded, because on a GPU it sets the memory budget of all models.

    `memory_bytes` is the memory of a CUDA device or Metal's recommended maximum; None for a CPU. `generation` is the
    chip's, such as "applegpu_g15s" or "sm_90", if MLX reports it.
    """

    backend: Literal["cpu", "metal", "cuda"]
    memory_bytes: int | None
    name: str = ""
    generation: str = ""


class GeneratorFacts(_Message, frozen=True):
    """Facts of a model that generates. `vocabulary_size` is the width of its logits.

    `largest_sequence_tokens` is the longest sequence, prompt and answer, that fits into memory when it runs alone.
    """

    vocabulary_size: int
    kv_bytes_per_token: int
    largest_sequence_tokens: int


class EncoderFacts(_Message, frozen=True):
    """Facts of a model that embeds or scores. `dimensions` is the length of its vectors, 1 for scores."""

    vocabulary_size: int
    dimensions: int


ModelFacts = GeneratorFacts | EncoderFacts
"""One type for each kind of engine."""


class WarmingUp(_Message, frozen=True):
    """The model is loaded; the worker runs it once before it is ready."""


class Ready(_Message, frozen=True):
    """The model is loaded and warmed up. It computes in `dtype`, such as "bfloat16"."""

    active_bytes: int
    dtype: str
    model: ModelFacts
    warm_up_seconds: float | None = None
    """None without a warm-up."""


class Capacity(_Message, frozen=True):
    """The longest sequence, prompt and answer, that fits alone into `memory_bytes`, as set by the last Limits."""

    largest_sequence_tokens: int
    memory_bytes: int


class Admitted(_Message, frozen=True):
    """The sequence is in the engine's queue."""

    sequence: int


class Prefilled(_Message, frozen=True):
    """The prompt is in the KV cache; `cached_tokens` of its tokens came from the prefix cache.

    It was queued for `queue_seconds` before its prefill started. It left the stored prompts after `shared_tokens`, and
    the evicted ones that the engine remembers after `evicted_tokens`.
    """

    sequence: int
    cached_tokens: int
    queue_seconds: float
    shared_tokens: int = 0
    evicted_tokens: int = 0


class Logprobs(_Message, frozen=True):
    """Log-probabilities of the model's own distribution, before temperature, penalties and bias.

    `chosen[i]` is the logprob of the token at index `places[i]` of the message or prompt; `top_tokens[i]` and `top[i]`
    are the most likely tokens at that index and their logprobs, in descending order.
    """

    places: list[int]
    chosen: list[float]
    top_tokens: list[list[int]]
    top: list[list[float]]

    def at(self, kept: list[int]) -> "Logprobs":
        """Only the columns with the indices `kept`."""
        return Logprobs(
            [self.places[i] for i in kept],
            [self.chosen[i] for i in kept],
            [self.top_tokens[i] for i in kept],
            [self.top[i] for i in kept],
        )


class Step(_Message, frozen=True):
    """The tokens of one decode step: `tokens[i]` belongs to `sequences[i]`. `logprobs` covers those that request it."""

    sequences: list[int]
    tokens: list[int]
    logprobs: Logprobs | None = None


class PromptLogprobs(_Message, frozen=True):
    """Logprobs of the next part of a prompt, indexed by prompt position. Sent before the sequence's first Step."""

    sequence: int
    logprobs: Logprobs


class Encoded(_Message, frozen=True):
    """The results for the texts at indices `places` of an Encode, concatenated, as float32.

    `queue_seconds`, of a sequence's first message, is the wait for its first batch.
    """

    sequence: int
    places: list[int]
    vectors: bytes
    queue_seconds: float


class Joining(_Message, frozen=True):
    """The rank connects to the others, which stops all of its threads until `has_joined`."""

    has_joined: bool = False


class RequestFinished(_Message, frozen=True):
    """Sent after the Step with the sequence's last token, which is a stop token if the reason is "stop"."""

    sequence: int
    reason: FinishReason


class RequestFailed(_Message, frozen=True):
    """`invalid` means that the request is wrong or too large; it was then never admitted."""

    sequence: int
    message: str
    invalid: bool = False


class LoadFailed(_Message, frozen=True):
    """The worker cannot load the model, and exits. `failure` is the exception's name and message."""

    failure: str


class Heartbeat(_Message, frozen=True):
    """Sent every second, also during long steps: the seconds since the current step began, 0 between steps.

    `active_bytes` is the memory that MLX holds, which shows the progress of loading.
    """

    step_seconds: float
    active_bytes: int = 0


class Stats(_Message, frozen=True):
    """MLX's memory in bytes, counts of all and of running sequences, and the prefix cache in memory and on disk."""

    active_bytes: int = 0
    peak_bytes: int = 0
    cache_bytes: int = 0
    sequences: int = 0
    prefix_bytes: int = 0
    prefix_hits: int = 0
    prefix_tokens: int = 0
    prefix_evictions: int = 0
    running: int = 0
    disk_bytes: int = 0
    disk_hits: int = 0
    disk_tokens: int = 0
    disk_read_bytes: int = 0
    disk_read_seconds: float = 0.0
    disk_written_bytes: int = 0
    disk_write_seconds: float = 0.0
    disk_fault: str = ""
    """Why the prefix cache has no disk tier although the settings ask for one."""
    step_seconds: float = 0.0
    """Of a rank: its time in steps since its start."""
    wait_seconds: float = 0.0
    """Of a rank: its time in waiting for the other ranks between steps since its start."""


DownMessage = Launch | Submit | Encode | Neighbours | Cancel | Limits | Shutdown
UpMessage = (
    Device
    | WarmingUp
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
    | Joining
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
