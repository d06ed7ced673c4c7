"""Tokens one by one, in the kinds of tokenizers that models come with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.token_texts import TokenTexts
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer
from mlx_manager.mlx_server.models.tokenizer_files import TokenizerFiles

DEMO = load_tokenizer(demo_model_path())
PIECES = ["<unk>", "\u2581Hello", "lo", "<0xF0>", "<0x9F>", "<0x0A>"]


@pytest.fixture(scope="module")
def sentencepiece() -> TokenTexts:
    """A Llama 2 kind of vocabulary: words begin with a mark, and single bytes have names."""
    backend = Backend(models.BPE(vocab={piece: i for i, piece in enumerate(PIECES)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TokenTexts(Tokenizer(backend, TokenizerFiles()))


@given(text=st.text(max_size=20))
def test_bytes_of_a_texts_tokens_are_the_text(text: str) -> None:
    texts = TokenTexts(DEMO)
    assert b"".join(texts(token)[1] for token in DEMO.encode(text, add_special_tokens=False)) == text.encode()


def test_a_special_token_is_named_as_it_is_written() -> None:
    (token,) = DEMO.encode("<|eot_id|>", add_special_tokens=False)
    assert TokenTexts(DEMO)(token) == ("<|eot_id|>", b"<|eot_id|>")


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    names = [TokenTexts(DEMO)(token)[0] for token in DEMO.encode("🜁", add_special_tokens=False)]
    assert len(names) > 1
    assert all(name.startswith("bytes:\\x") for name in names)


def test_a_number_that_is_no_token_has_no_text() -> None:
    assert TokenTexts(DEMO)(10**6) == ("", b"")


@pytest.mark.parametrize(
    ("token", "named"),
    [
        (1, (" Hello", b" Hello")),
        (2, ("lo", b"lo")),
        (3, ("bytes:\\xf0", b"\xf0")),
        (5, ("\n", b"\n")),
    ],
)
def test_sentencepiece_tokens_are_what_they_stand_for(
    sentencepiece: TokenTexts, token: int, named: tuple[str, bytes]
) -> None:
    assert sentencepiece(token) == named
