from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.detokenizing import StreamingDetokenizer
from mlx_manager.mlx_server.models.tokenization import (
    Tokenizer,
    load_tokenizer,
    make_decoder,
)

REPLACEMENT = "\ufffd"
TEXT = st.text().filter(lambda text: "<|" not in text)  # what spells a special token is one
SAMPLES = [
    "",
    " leading, double  and trailing ",
    "Grüße, 你好世界, こんにちは, 안녕하세요, שלום, नमस्ते",
    "😀👩‍👩‍👧🇩🇪👍🏽 in a row 😀😀😀",
    "tabs\tand\r\nnew\n\n\nlines\n",
    "e\u0301 is not é, and \u200b is invisible",
    "a \ufffd of its own",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓂀 \U0010ffff",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_model_path())


@pytest.fixture(scope="module")
def byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Byte -> the id of the token that is this byte alone."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2's table of bytes as characters
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return {byte: tokenizer.convert_tokens_to_ids(name) for byte, name in names.items()}


def stream(tokenizer: Tokenizer, tokens: list[int], context: list[int] | None = None) -> list[str]:
    """The pieces that come out, token by token, and the flushed one last."""
    detokenizer = StreamingDetokenizer(make_decoder(tokenizer), context)
    return [*(detokenizer.feed([token]) for token in tokens), detokenizer.flush()]


@given(text=st.one_of(TEXT, st.text("aé好😀\ufffd \n", max_size=40)))
@example(text=REPLACEMENT * 6 + "😀")
@example(text=REPLACEMENT * 40 + "好😀 end")
def test_any_text_comes_out_of_the_stream_as_it_went_in(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    assert REPLACEMENT in text or not any(REPLACEMENT in piece for piece in pieces)


@given(text=st.text("aé好😀 ", max_size=20), cuts=st.lists(st.integers(1, 5), min_size=1))
@example(text="ééaé好好好好", cuts=[3])
def test_the_text_does_not_depend_on_how_many_tokens_come_at_once(
    tokenizer: Tokenizer, text: str, cuts: list[int]
) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = StreamingDetokenizer(make_decoder(tokenizer))
    out = ""
    while tokens:
        size = cuts[len(tokens) % len(cuts)]
        out, tokens = out + detokenizer.feed(tokens[:size]), tokens[size:]
    assert out + detokenizer.flush() == text


@given(prompt=TEXT, text=TEXT)
def test_a_completion_goes_on_from_any_prompt(tokenizer: Tokenizer, prompt: str, text: str) -> None:
    context = tokenizer.encode(prompt, add_special_tokens=True)
    assert "".join(stream(tokenizer, tokenizer.encode(text, add_special_tokens=False), context)) == text


@pytest.mark.parametrize("character", ["é", "好", "😀", "\U0010ffff"])
def test_a_character_of_several_tokens_comes_whole_with_its_last_token(
    tokenizer: Tokenizer, byte_tokens: dict[int, int], character: str
) -> None:
    tokens = [byte_tokens[byte] for byte in character.encode()]
    *held, last, flushed = stream(tokenizer, tokens)
    assert (held, last, flushed) == ([""] * (len(tokens) - 1), character, "")


def test_text_before_an_unfinished_character_is_not_lost(tokenizer: Tokenizer, byte_tokens: dict[int, int]) -> None:
    tokens = [
        *tokenizer.encode("cut off ", add_special_tokens=False),
        *(byte_tokens[byte] for byte in "😀".encode()[:2]),
    ]
    assert "".join(stream(tokenizer, tokens)) == "cut off " + REPLACEMENT


@given(raw=st.binary(max_size=60))
@example(raw=b"\xff" * 15 + "😀 end".encode())
@example(raw=b"\xf0\x9f" * 20 + b"a")
def test_invalid_bytes_are_replaced_and_the_text_around_them_is_kept(
    tokenizer: Tokenizer, byte_tokens: dict[int, int], raw: bytes
) -> None:
    pieces = stream(tokenizer, [byte_tokens[byte] for byte in raw])
    assert "".join(pieces) == raw.decode(errors="replace")


def test_a_stream_of_invalid_bytes_does_not_hang_back(tokenizer: Tokenizer, byte_tokens: dict[int, int]) -> None:
    pieces = stream(tokenizer, [byte_tokens[0xFF]] * 200)
    assert sum(map(len, pieces[:100])) > 50


@pytest.mark.parametrize("text", SAMPLES)
def test_encoding_without_special_tokens_is_the_text_alone(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.bos_token_id not in tokens
    assert make_decoder(tokenizer)(tokens) == text


@pytest.mark.parametrize("text", SAMPLES)
def test_encoding_with_special_tokens_begins_with_the_models_bos_once(tokenizer: Tokenizer, text: str) -> None:
    alone = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text, add_special_tokens=True) == [tokenizer.bos_token_id, *alone]


def test_special_tokens_that_a_template_wrote_out_are_single_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("<|begin_of_text|>hi<|eot_id|>", add_special_tokens=False)
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert tokens[1:-1] == tokenizer.encode("hi", add_special_tokens=False)


@pytest.mark.parametrize("special", ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|python_tag|>"])
@pytest.mark.parametrize("times", [1, 20])
def test_special_tokens_leave_no_text_and_harm_none(tokenizer: Tokenizer, special: str, times: int) -> None:
    between = [tokenizer.convert_tokens_to_ids(special)] * times
    tokens = [
        *tokenizer.encode("你好", add_special_tokens=False),
        *between,
        *tokenizer.encode(" 😀", add_special_tokens=False),
    ]
    assert "".join(stream(tokenizer, tokens)) == "你好 😀"


def test_the_window_stays_small_so_that_a_token_costs_the_same_late_and_early(tokenizer: Tokenizer) -> None:
    longest = 0

    def decode(tokens: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return make_decoder(tokenizer)(tokens)

    python_tag = tokenizer.convert_tokens_to_ids("<|python_tag|>")
    detokenizer = StreamingDetokenizer(decode)
    for token in [*tokenizer.encode("Once upon a time. " * 30, add_special_tokens=False), *[python_tag] * 300]:
        detokenizer.feed([token])
    assert longest <= 64


STRIPS = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
KEEPS = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
METASPACE = decoders.Metaspace(prepend_scheme="first")
SPECIAL = "<s>"


def sentencepiece_like(
    *words: str, decoder: decoders.Decoder = STRIPS
) -> tuple[Callable[[list[int]], str], dict[str, int]]:
    """A decoder as Llama 2 and Mistral have it: a space opens each word, the text's first one is dropped."""
    vocabulary = {word: i for i, word in enumerate(words)}
    fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    fast.decoder = decoder
    fast.add_special_tokens([SPECIAL])
    special = fast.token_to_id(SPECIAL)
    assert special is not None
    return lambda tokens: str(fast.decode(tokens)), vocabulary | {SPECIAL: special}


WORDS = ["▁", "▁▁", "▁▁▁▁", "▁def", "def", "\n", SPECIAL]


@pytest.mark.parametrize("decoder", [STRIPS, KEEPS, METASPACE])
@given(words=st.lists(st.sampled_from(WORDS), max_size=30), size=st.integers(1, 4))
@example(words=["▁", "▁▁", "def"], size=1)
@example(words=[SPECIAL, "▁", SPECIAL, "▁def"], size=1)
@example(words=["def", "▁", "▁", SPECIAL, "▁▁", "▁def"], size=1)
def test_all_leading_spaces_are_kept_but_the_one_that_is_the_tokenizers(
    decoder: decoders.Decoder, words: list[str], size: int
) -> None:
    decode, ids = sentencepiece_like(*WORDS[:-1], decoder=decoder)
    tokens = [ids[word] for word in words]
    detokenizer = StreamingDetokenizer(decode)
    pieces = [detokenizer.feed(tokens[place : place + size]) for place in range(0, len(tokens), size)]
    assert "".join(pieces) + detokenizer.flush() == decode(tokens)


def test_the_space_before_a_completions_first_word_is_kept_behind_its_prompt() -> None:
    decode, ids = sentencepiece_like("▁Hello", "▁world", "▁again")
    detokenizer = StreamingDetokenizer(decode, [ids["▁Hello"]])
    assert detokenizer.feed([ids["▁world"]]) == " world"
    assert detokenizer.feed([ids["▁again"]]) == " again"


def test_a_chat_answer_begins_without_the_tokenizers_space_and_keeps_the_others() -> None:
    decode, ids = sentencepiece_like("▁Hello", "▁world")
    detokenizer = StreamingDetokenizer(decode)
    assert detokenizer.feed([ids["▁Hello"]]) == "Hello"
    assert detokenizer.feed([ids["▁world"]]) == " world"


def test_characters_that_fall_back_to_bytes_come_whole() -> None:
    decode, ids = sentencepiece_like("▁Hi", *(f"<0x{byte:02X}>" for byte in range(256)))
    detokenizer = StreamingDetokenizer(decode)
    tokens = [ids["▁Hi"], *(ids[f"<0x{byte:02X}>"] for byte in "😀好".encode())]
    assert [detokenizer.feed([token]) for token in tokens] == ["Hi", "", "", "", "😀", "", "", "好"]


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((OSError, ValueError)):
        load_tokenizer(tmp_path)
