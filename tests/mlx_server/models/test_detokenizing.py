"""Tokens whose text is known without their neighbours, beside those that are decoded behind them."""

from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.detokenizing import MAX_WINDOW_TOKENS, StreamingDetokenizer
from mlx_manager.mlx_server.models.token_texts import PlainTexts
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer, make_decoder

WORD_START = "\u2581"
REPLACE, FALLBACK, FUSE = decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse()
DECODERS = {
    "one space dropped": decoders.Sequence([REPLACE, FALLBACK, FUSE, decoders.Strip(" ", 1, 0)]),
    "all spaces kept": decoders.Sequence([REPLACE, FALLBACK, FUSE]),
    "metaspace": decoders.Metaspace(prepend_scheme="first"),
    "words apart": decoders.WordPiece(),
    "none": None,
}
PLAIN = ("one space dropped", "all spaces kept", "metaspace")
SPECIAL = "<s>"
WORDS = [WORD_START, WORD_START * 2, f"{WORD_START}def", "def", "\n", "好", "\ufffd", "##s"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class Backed:
    """A tokenizer as far as its backend goes."""

    def __init__(self, backend: FastTokenizer) -> None:
        self.backend_tokenizer = backend


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load_tokenizer(demo_model_path())


def words_tokenizer(decoder: str) -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate([*WORDS, *BYTES])}
    fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    if DECODERS[decoder] is not None:
        fast.decoder = DECODERS[decoder]
    fast.add_special_tokens([SPECIAL])
    return cast(Tokenizer, Backed(fast))


def pieces_of(tokenizer: Tokenizer, tokens: list[int], context: list[int], plain: PlainTexts | None) -> list[str]:
    detokenizer = StreamingDetokenizer(make_decoder(tokenizer), context, plain)
    return [*(detokenizer.feed([token]) for token in tokens), detokenizer.flush()]


@pytest.mark.parametrize("decoder", DECODERS)
@given(
    context=st.lists(st.integers(0, len(WORDS)), max_size=3),
    tokens=st.lists(st.one_of(st.integers(0, len(WORDS) - 1), st.integers(0, len(WORDS) + len(BYTES))), max_size=100),
)
@example(context=[], tokens=[0, 0, 2, len(WORDS) + 0xC3, len(WORDS) + 0xA9, 2])
@example(context=[2], tokens=[3] * 70 + [len(WORDS) + 0xE5, 2, len(WORDS) + len(BYTES), 0, 2])
def test_a_known_text_is_the_one_that_decoding_behind_the_neighbours_gives(
    decoder: str, context: list[int], tokens: list[int]
) -> None:
    tokenizer = words_tokenizer(decoder)
    assert pieces_of(tokenizer, tokens, context, PlainTexts(tokenizer)) == pieces_of(tokenizer, tokens, context, None)


@given(data=st.data(), context=st.text(max_size=5))
def test_a_known_text_of_bytes_is_the_one_that_decoding_behind_the_neighbours_gives(
    demo: Tokenizer, data: st.DataObject, context: str
) -> None:
    tokens = data.draw(st.lists(st.integers(0, len(demo) - 1), max_size=100))
    before = demo.encode(context, add_special_tokens=True)
    assert pieces_of(demo, tokens, before, PlainTexts(demo)) == pieces_of(demo, tokens, before, None)


@pytest.mark.parametrize("decoder", DECODERS)
def test_texts_are_known_of_the_decoders_that_join_tokens_as_they_are(decoder: str) -> None:
    plain = PlainTexts(words_tokenizer(decoder))
    assert plain[2] == (" def" if decoder in PLAIN else None)
    assert [plain[len(WORDS)], plain[len(WORDS) + len(BYTES)], plain[10**6]] == [None] * 3


def test_ordinary_text_is_not_decoded_at_all(demo: Tokenizer) -> None:
    """But for the first tokens of a long text, and those behind a part of a character."""
    decoded = 0

    def decode(tokens: list[int]) -> str:
        nonlocal decoded
        decoded += 1
        assert len(tokens) <= MAX_WINDOW_TOKENS + 1
        return make_decoder(demo)(tokens)

    tokens = demo.encode("Once upon a time there was a server. " * 40, add_special_tokens=False)
    detokenizer = StreamingDetokenizer(decode, None, PlainTexts(demo))
    for token in [*tokens, demo.convert_tokens_to_ids("<|python_tag|>"), *tokens]:
        detokenizer.feed([token])
    assert decoded < 6
