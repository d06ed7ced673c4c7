"""Folders without a tokenizer.json get one that reads and writes as transformers does with their own files."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mlx_manager.mlx_server.models.conversion import NotConvertible, tokenizer_folder
from mlx_manager.mlx_server.models.tokenization import load_tokenizer

README = Path(__file__).parents[3] / "README.md"
TEXTS = ["", "Hello world", "  two  spaces, 1234 and\n\ttabs", "Grüße 你好 😀", "<s>a</s> b", "<|end|>x"]
IN_PYTHON = """
import base64, pathlib
pathlib.Path({marker!r}).touch()
import tiktoken
from transformers import PythonBackend

class OwnTokenizer(PythonBackend):
    vocab_files_names = {{"vocab_file": "own.tiktoken"}}

    def __init__(self, vocab_file, **kwargs):
        lines = pathlib.Path(vocab_file).read_text().splitlines()
        ranks = {{base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}}
        special = {{"<|end|>": 256}}
        self.model = tiktoken.Encoding("own", pat_str={pattern!r}, mergeable_ranks=ranks, special_tokens=special)
        super().__init__(eos_token="<|end|>", **kwargs)

    @property
    def vocab_size(self):
        return 257

    def get_vocab(self):
        return {{self.model.decode_single_token_bytes(number).decode("latin-1"): number for number in range(257)}}

    def encode(self, text, add_special_tokens=True, **kwargs):
        {encode}

    def decode(self, ids, skip_special_tokens=False, **kwargs):
        return self.model.decode(ids)

    def convert_tokens_to_ids(self, tokens):
        return 256 if tokens == "<|end|>" else None
"""
EXACTLY = 'return self.model.encode(text, allowed_special="all")'
BACKWARDS = 'return self.model.encode(text, allowed_special="all")[::-1]'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


def folder_with(path: Path, **files: dict[str, Any]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def llama(path: Path) -> Path:
    """With a SentencePiece model."""
    folder = folder_with(path, config={"model_type": "llama"}, tokenizer_config={"tokenizer_class": "LlamaTokenizer"})
    sentencepiece.SentencePieceTrainer.train(
        input=str(README), model_prefix=str(folder / "tokenizer"), vocab_size=500, model_type="bpe", byte_fallback=True,
        minloglevel=2,
    )  # fmt: skip
    return folder


def gpt2(path: Path) -> Path:
    """With a vocabulary and its merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trained.train([str(README)], trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=special))
    folder = folder_with(path, config={"model_type": "gpt2"}, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    trained.model.save(str(folder))
    return folder


def bert(path: Path) -> Path:
    """With a list of words."""
    folder = folder_with(path, config={"model_type": "bert"}, tokenizer_config={"do_lower_case": True})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "two", "##s", "a", "b", ",", "gru", "##ße"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def with_code(path: Path, marker: Path, encode: str = EXACTLY) -> Path:
    """With a tokenizer in Python over a tiktoken file, as Kimi's."""
    auto_map = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": auto_map}
    folder = folder_with(path, config={"model_type": "llama"}, tokenizer_config=config)
    code = IN_PYTHON.format(marker=str(marker), pattern=r"\p{L}+| ?[^\s\p{L}]+|\s+", encode=encode)
    (folder / "own.py").write_text(code)
    ranks = "\n".join(f"{_base64(bytes([byte]))} {byte}" for byte in range(256))
    (folder / "own.tiktoken").write_text(ranks)
    return folder


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_other_files_are_converted_to_what_transformers_makes_of_them(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    folder = make(tmp_path / "model")
    before = sorted(folder.iterdir())
    ours, theirs = load_tokenizer(tokenizer_folder(folder)), AutoTokenizer.from_pretrained(folder)
    assert sorted(folder.iterdir()) == before
    assert ours.special_tokens_map == theirs.special_tokens_map
    for text in TEXTS:
        for adds in (True, False):
            assert ours.encode(text, add_special_tokens=adds) == theirs.encode(text, add_special_tokens=adds), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_a_conversion_is_kept_until_the_files_change(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "model")
    converted = tokenizer_folder(folder)
    made_at = (converted / "tokenizer.json").stat().st_mtime_ns
    assert tokenizer_folder(folder) == converted
    assert (converted / "tokenizer.json").stat().st_mtime_ns == made_at
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "pad_token": "!"}))
    assert tokenizer_folder(folder) != converted


def test_a_folder_with_tokenizer_json_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert tokenizer_folder(tmp_path, trust_remote_code=True) == tmp_path
    assert not (tmp_path / "cache").exists()


def test_code_that_is_trusted_is_converted_where_a_tokenizer_json_does_the_same(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "model", tmp_path / "ran")
    tokenizer = load_tokenizer(tokenizer_folder(folder, trust_remote_code=True))
    assert (tmp_path / "ran").exists()
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.encode("ab<|end|> 😀") == [*b"ab", 256, *" 😀".encode()]
    assert tokenizer.decode(tokenizer.encode("ab<|end|> 😀"), skip_special_tokens=True) == "ab 😀"


def test_code_that_no_tokenizer_json_does_the_same_as_is_refused(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "model", tmp_path / "ran", BACKWARDS)
    with pytest.raises(NotConvertible, match=r"OwnTokenizer is Python code without .* Copy tokenizer\.json"):
        tokenizer_folder(folder, trust_remote_code=True)


def test_code_that_is_not_trusted_does_not_run(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "model", tmp_path / "ran")
    with pytest.raises(NotConvertible, match="Set trust_remote_code = true"):
        tokenizer_folder(folder)
    assert not (tmp_path / "ran").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(NotConvertible, match="XDG_CACHE_HOME"):
        tokenizer_folder(bert(tmp_path / "model"))
