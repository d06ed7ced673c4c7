"""Our tokenizer against transformers' `PreTrainedTokenizerFast` over the same folder: ids, texts and special tokens."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlx_manager.mlx_server.models.tokenization import load_tokenizer

CORPUS = [line for file in sorted(Path(__file__).parents[3].glob("*.md")) for line in file.read_text().splitlines()]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPECIAL = (
    "<s>",
    "</s>",
    "<unk>",
    "[CLS]",
    "[SEP]",
    "<extra>",
    "<tool>",
    "<late>",
    "<img>",
    "word",
    " ",
    "\n",
    "don 't .",
)
TEXTS = st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=8)), max_size=8).map("".join)


def byte_level() -> Tokenizer:
    """As Llama 3 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    )
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """As Llama 2 has it, in the files that transformers 4 wrote."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *BYTES]))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """As T5 and XLM-RoBERTa have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=500, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def cut_and_padded() -> Tokenizer:
    """A file that was saved with the truncation and padding of its training."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<padding>"])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8, pad_token="<padding>", pad_id=600)
    return tokenizer


def with_added_tokens() -> Tokenizer:
    """Tokens that the file adds, but does not call special."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["<tool>", AddedToken("<late>", rstrip=True, normalized=True)])
    return tokenizer


def plain() -> Tokenizer:
    """Without special tokens around a text."""
    tokenizer = byte_level()
    tokenizer.post_processor = None
    return tokenizer


BUILT: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: made
    for made in (byte_level, sentencepiece_bpe, unigram, word_piece, cut_and_padded, with_added_tokens, plain)
}


def token(content: str, **flags: bool) -> dict[str, Any]:
    named = {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {**named, **flags}


LATE = {
    "700": token("<late>", special=True),
    "701": token("<tool>", lstrip=True, rstrip=True, special=False),
    "702": token("word", single_word=True, normalized=True, special=False),
}
BOS_AND_EOS = {"bos_token": "<s>", "eos_token": "</s>"}

FILES: dict[str, dict[str, dict[str, Any]]] = {
    "no files": {},
    "names": {"tokenizer_config": {**BOS_AND_EOS, "pad_token": "</s>", "unk_token": None, "model_max_length": 99}},
    "bos and eos that the file does not add": {
        "tokenizer_config": {**BOS_AND_EOS, "add_bos_token": False, "add_eos_token": True}
    },
    "tokens as objects": {
        "tokenizer_config": {"bos_token": {"__type": "AddedToken", **token("<s>")}, "eos_token": "</s>"},
    },
    "tokens that tokenizer.json lacks": {"tokenizer_config": {**BOS_AND_EOS, "added_tokens_decoder": LATE}},
    "a named token of those": {
        "tokenizer_config": {"eos_token": "<tool>", "pad_token": "<late>", "added_tokens_decoder": LATE}
    },
    "names that only tokenizer.json may have": {"tokenizer_config": {"eos_token": "<tool>", "pad_token": "<late>"}},
    "names that no file has": {"tokenizer_config": {"pad_token": "<late>", "mask_token": "word"}},
    "additional special tokens": {"tokenizer_config": {"additional_special_tokens": ["<extra>", "<tool>"]}},
    "extra special tokens": {"tokenizer_config": {"extra_special_tokens": ["<extra>"], "bos_token": "<s>"}},
    "special tokens of the model's own": {
        "tokenizer_config": {"extra_special_tokens": {"image_token": "<img>"}, "audio_token": "<tool>"}
    },
    "a map of special tokens": {
        "tokenizer_config": {"bos_token": "<s>"},
        "special_tokens_map": {"bos_token": "</s>", "eos_token": token("<late>", lstrip=True), "pad_token": "<s>"},
    },
    "a map with more of them": {"special_tokens_map": {"extra_special_tokens": ["<extra>"], "eos_token": "</s>"}},
    "a map beside added tokens": {
        "tokenizer_config": {**BOS_AND_EOS, "added_tokens_decoder": LATE},
        "special_tokens_map": {"bos_token": "</s>"},
    },
    "added_tokens.json": {
        "tokenizer_config": {"eos_token": "<late>"},
        "added_tokens": {"<tool>": 711, "<late>": 710},
    },
    "spaces cleaned up": {"tokenizer_config": {"clean_up_tokenization_spaces": True}},
    "special tokens read as text": {"tokenizer_config": {**BOS_AND_EOS, "split_special_tokens": True}},
}


@dataclass(frozen=True)
class Pair:
    ours: Any
    theirs: Any


def write(folder: Path, tokenizer: Tokenizer, files: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Pair]:
    root = tmp_path_factory.mktemp("tokenizers")
    built = {name: make() for name, make in BUILT.items()}
    pairs = {}
    for name, tokenizer in built.items():
        for number, (files, contents) in enumerate(FILES.items()):
            folder = write(root / f"{name}-{number}", tokenizer, contents)
            pairs[name, files] = Pair(load_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder))
    return pairs


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("name", BUILT)
def test_special_tokens_are_those_of_transformers(pairs: dict[tuple[str, str], Pair], name: str, files: str) -> None:
    pair = pairs[name, files]
    for attribute in (
        "special_tokens_map",
        "all_special_tokens",
        "all_special_ids",
        "vocab_size",
        "added_tokens_decoder",
    ):
        assert str(getattr(pair.ours, attribute)) == str(getattr(pair.theirs, attribute)), attribute
    for special in (*NAMES, *pair.theirs.special_tokens_map):
        ours, theirs = ((getattr(t, special), getattr(t, f"{special}_id")) for t in (pair.ours, pair.theirs))
        assert ours == theirs
    assert len(pair.ours) == len(pair.theirs)
    assert pair.ours.get_vocab() == pair.theirs.get_vocab()
    assert pair.ours.get_added_vocab() == pair.theirs.get_added_vocab()
    for text in (*SPECIAL, "no such token"):
        assert pair.ours.convert_tokens_to_ids(text) == pair.theirs.convert_tokens_to_ids(text)


@pytest.mark.parametrize("files", FILES)
@pytest.mark.parametrize("name", BUILT)
@settings(max_examples=25)
@given(text=TEXTS, other=TEXTS)
@example(text="", other="")
@example(text=" <s> a<tool> b</s> <late>word sword ", other="don 't . 's Grüße 你好 😀")
def test_any_text_has_the_ids_that_transformers_gives_it(
    pairs: dict[tuple[str, str], Pair], name: str, files: str, text: str, other: str
) -> None:
    pair = pairs[name, files]
    for adds in (True, False):
        ids = pair.ours.encode(text, add_special_tokens=adds)
        assert ids == pair.theirs.encode(text, add_special_tokens=adds)
        if other:  # an empty one is none to transformers
            both = pair.ours.encode(text, other, add_special_tokens=adds)
            assert both == pair.theirs.encode(text, other, add_special_tokens=adds)
        for skips in (True, False):
            assert pair.ours.decode(ids, skips) == pair.theirs.decode(ids, skip_special_tokens=skips)


@pytest.mark.parametrize("name", BUILT)
def test_a_batch_is_its_texts_one_by_one_and_pairs_have_types(pairs: dict[tuple[str, str], Pair], name: str) -> None:
    pair = pairs[name, "no files"]
    texts = ["one", ("one", "two and more"), "", "three"]
    assert pair.ours.encode_batch(texts) == [
        pair.theirs.encode(*([text] if isinstance(text, str) else text)) for text in texts
    ]
    for text in texts:
        (ours,) = pair.ours.encodings([text])
        theirs = pair.theirs(*([text] if isinstance(text, str) else text), return_token_type_ids=True)
        assert ours.type_ids == theirs["token_type_ids"]
    assert pair.ours.num_special_tokens_to_add(True) == pair.theirs.num_special_tokens_to_add(True)


@pytest.mark.parametrize(
    ("make", "config", "texts"),
    [
        (word_piece, {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}, ["Upper Case", "naïve"]),
        (word_piece, {"strip_accents": False, "tokenizer_class": "BertTokenizer"}, ["Naïve Café"]),
        (word_piece, {"tokenizer_class": "BertTokenizer"}, ["Upper [MASK] naïve 你好"]),
    ],
)
def test_a_class_reads_text_as_its_config_says(
    tmp_path: Path, make: Callable[[], Tokenizer], config: dict[str, Any], texts: list[str]
) -> None:
    write(tmp_path, make(), {"tokenizer_config": config, "config": {"model_type": "bert"}})
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.encode_batch(texts) == [theirs.encode(text) for text in texts]


def test_a_prefix_space_is_added_where_the_config_asks_for_it(tmp_path: Path) -> None:
    gpt2 = byte_level()
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.post_processor = processors.ByteLevel(trim_offsets=False)
    gpt2.add_special_tokens(["<|endoftext|>"])
    for prefix in (True, False):
        files = {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix}}
        folder = write(tmp_path / str(prefix), gpt2, files)
        ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        assert ours.encode("the server") == theirs.encode("the server")
        assert ours.decode(ours.encode("the server")) == (" the server" if prefix else "the server")
        assert ours.eos_token == theirs.eos_token == "<|endoftext|>"


def test_tokens_that_are_added_later_are_read(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, byte_level(), {}))
    assert tokenizer.add_tokens(["<new>", AddedToken("<newer>")], special_tokens=True) == 2
    assert tokenizer.tokenize("a<new>b") == ["a", "<new>", "b"]
    assert tokenizer.decode(tokenizer.encode("a<new>b"), skip_special_tokens=True) == "ab"
