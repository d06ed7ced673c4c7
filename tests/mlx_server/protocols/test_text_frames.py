import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.mlx_server.protocols import chat, completions
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import ReasoningDelta, TextDelta

NAMES = st.text(min_size=1, max_size=8)
TEXTS = st.lists(st.text(), min_size=1, max_size=4)


@given(model=NAMES, texts=TEXTS, index=st.integers(0, 2), kind=st.sampled_from([TextDelta, ReasoningDelta]))
def test_a_chunk_of_text_is_the_one_that_is_encoded_whole(
    model: str, texts: list[str], index: int, kind: type[TextDelta | ReasoningDelta]
) -> None:
    body = openai.ChatCompletionRequest(model=model, messages=[{"role": "user", "content": "hi"}])  # type: ignore[list-item]
    writer = chat.ChatBuilder(chat.to_request(body, 16))
    for text in texts:
        event = kind(index, text)
        assert writer.frames(event) == [
            b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in writer.event(event)
        ]


def test_a_completion_has_no_chunk_for_reasoning() -> None:
    writer = completions.CompletionBuilder(completions.to_request(openai.CompletionRequest(model="m", prompt="x")))
    assert [list(writer.frames(ReasoningDelta(0, text))) for text in ("", "hm", "hm")] == [[], [], []]
    (frame,) = writer.frames(TextDelta(0, 'a "quoted"\n text'))
    assert json.loads(frame.removeprefix(b"data: "))["choices"][0]["text"] == 'a "quoted"\n text'
