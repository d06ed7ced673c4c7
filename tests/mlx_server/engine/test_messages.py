import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.engine.messages import (
    LENGTH_BYTES,
    Admitted,
    Cancel,
    Capacity,
    Device,
    DownMessage,
    GeneratorFacts,
    Heartbeat,
    Launch,
    Limits,
    Logprobs,
    PromptLogprobs,
    Ready,
    RequestFailed,
    RequestFinished,
    Shutdown,
    Stats,
    Step,
    Submit,
    UpMessage,
    WorkerOptions,
    decode_down,
    decode_up,
    encode_down,
    encode_up,
)
from mlx_manager.mlx_server.types import SamplingParams, Thinking

PLAIN = SamplingParams(seed=7)
FULL = SamplingParams(
    seed=2**64 - 1,
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.1,
    frequency_penalty=-2.0,
    presence_penalty=2.0,
    logit_bias={0: -100.0, 128_000: 1.5},
)
DOWN: list[DownMessage] = [
    Submit(1, [1, 2, 3], 16, [2, 9], PLAIN),
    Submit(2**40, list(range(20_000)), 1, [], FULL),
    Submit(3, [0], 1, [0], SamplingParams(seed=-(2**63), temperature=0)),
    Submit(4, [0], 1, [0], PLAIN, '{"grammars": []}', Thinking(open_token=None, close_tokens=(5, 6), budget=0)),
    Submit(5, [0], 1, [0], SamplingParams(seed=1, min_tokens=3, end_tokens=[0, 7]), logprobs=20, prompt_logprobs=True),
    Cancel(7),
    Launch("generate", "/models/😀", Limits(2**40, 2**29, 2**33)),
    Launch("embed", "/m", Limits(1, 1, 0), WorkerOptions(50, True), "/adapter", True),
    Limits(2**40, 2**29, 2**33),
    Shutdown(),
]
UP: list[UpMessage] = [
    Device("cpu", None),
    Device("metal", 2**36, "Apple M4 Max", "applegpu_g16s"),
    Ready(6_000_000, "bfloat16", GeneratorFacts(2048, 2048, 2**31)),
    Admitted(3),
    Step([1, 2], [5, 128_000]),
    Step([1, 2], [5, 128_000], Logprobs([1], [-0.5], [[128_000, 3]], [[-0.5, -9999.0]])),
    PromptLogprobs(1, Logprobs([1, 2], [-0.5, -3.25], [[], []], [[], []])),
    RequestFinished(1, "stop"),
    RequestFinished(2, "length"),
    RequestFailed(4, "Metal ran out of memory 😀"),
    Heartbeat(0.25, 2**34),
    Capacity(2**31, 2**33),
    Stats(2**40, 2**41, 0, 64, 2**33, 1000, 2**20, 3, 64),
]

TOKENS = st.integers(0, 2**32 - 1)
ROWS = st.lists(st.tuples(st.integers(0, 2**63 - 1), TOKENS), max_size=100)


def payload(frame: bytes) -> bytes:
    """What is in a frame; its length must be that of the frame."""
    length = int.from_bytes(frame[:LENGTH_BYTES], "big")
    assert len(frame) == LENGTH_BYTES + length
    return frame[LENGTH_BYTES:]


@pytest.mark.parametrize("message", DOWN, ids=lambda message: type(message).__name__)
def test_what_goes_down_arrives_as_it_was(message: DownMessage) -> None:
    assert decode_down(payload(encode_down(message))) == message


@pytest.mark.parametrize("message", UP, ids=lambda message: type(message).__name__)
def test_what_goes_up_arrives_as_it_was(message: UpMessage) -> None:
    assert decode_up(payload(encode_up([message]))) == [message]


def test_all_that_one_step_says_goes_up_in_one_frame_and_in_order() -> None:
    assert decode_up(payload(encode_up(UP))) == UP
    assert decode_up(payload(encode_up([]))) == []


@given(rows=ROWS)
def test_every_step_arrives_as_it_was(rows: list[tuple[int, int]]) -> None:
    step = Step([sequence for sequence, _ in rows], [token for _, token in rows])
    assert decode_up(payload(encode_up([step]))) == [step]


@given(prompt=st.lists(TOKENS, max_size=50), seed=st.integers(-(2**63), 2**64 - 1), temperature=st.floats(0, 2))
def test_every_submit_arrives_as_it_was(prompt: list[int], seed: int, temperature: float) -> None:
    submit = Submit(1, prompt, 5, [2], SamplingParams(seed=seed, temperature=temperature))
    assert decode_down(payload(encode_down(submit))) == submit


def test_frames_can_be_told_apart_in_one_stream() -> None:
    stream = b"".join(map(encode_down, DOWN))
    arrived: list[DownMessage] = []
    while stream:
        end = LENGTH_BYTES + int.from_bytes(stream[:LENGTH_BYTES], "big")
        arrived.append(decode_down(stream[LENGTH_BYTES:end]))
        stream = stream[end:]
    assert arrived == DOWN


@pytest.mark.parametrize(
    "unknown",
    [
        ["Explode", 1],
        ["Cancel", "one"],
        ["Cancel"],
        ["Submit", 1, [1], 16, [2], {"temperature": 1.0}],
        ["Step", [1], [2]],
        {"type": "Cancel", "sequence": 1},
        7,
        None,
    ],
)
def test_what_is_no_message_to_the_worker_is_refused(unknown: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_down(msgspec.msgpack.encode(unknown))


@pytest.mark.parametrize(
    "unknown",
    [[["Explode", 1]], [["RequestFinished", 1, "exploded"]], [["Step", [1], ["one"]]], [["Cancel", 1]], ["Ready"], 7],
)
def test_what_is_no_message_from_a_worker_is_refused(unknown: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_up(msgspec.msgpack.encode(unknown))


@pytest.mark.parametrize("broken", [b"", b"\xc1", b"\x92\xa6Cancel"])
def test_bytes_that_are_no_msgpack_are_refused(broken: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_down(broken)
    with pytest.raises(msgspec.DecodeError):
        decode_up(broken)


def test_a_message_cannot_be_changed_on_its_way() -> None:
    with pytest.raises(AttributeError):
        setattr(Cancel(7), "sequence", 8)  # noqa: B010  mypy knows it, too


def test_a_step_of_64_sequences_is_small() -> None:
    assert len(encode_up([Step(list(range(64)), [128_000] * 64)])) < 700
