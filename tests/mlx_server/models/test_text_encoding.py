"""Texts and pairs in token ids, whole or cut: what a model is given is what its tokenizer.json says."""

import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from mlx_manager.mlx_server.models.text_encoding import TextEncoder
from tests.mlx_server.engine.embedding.tiny import make_tokenizer

CLS, SEP, W0 = 2, 3, 4
"""w0, w1, ... have the ids from 4 on."""


@pytest.fixture
def encoder(tmp_path: Path) -> TextEncoder:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return TextEncoder(tmp_path)


def words(count: int, first: int = 0) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


def test_a_text_is_whole_whatever_padding_and_truncation_its_file_sets(encoder: TextEncoder) -> None:
    short, long = encoder.encode(["w1", words(40)])
    assert short == [CLS, W0 + 1, SEP]
    assert long == [CLS, *range(W0, W0 + 40), SEP]


def test_a_cut_text_keeps_its_special_tokens(encoder: TextEncoder) -> None:
    short, long = encoder.encode(["w1", words(40)], limit=10)
    assert short == [CLS, W0 + 1, SEP]
    assert long == [CLS, *range(W0, W0 + 8), SEP]


def test_a_pair_says_where_its_second_text_begins(encoder: TextEncoder) -> None:
    ids, second_at = encoder.encode_pairs("w0 w1", ["w2", "w3 w4 w5"])
    assert ids == [[CLS, 4, 5, SEP, 6, SEP], [CLS, 4, 5, SEP, 7, 8, 9, SEP]]
    assert second_at == [4, 4]


def test_of_a_pair_that_is_too_long_the_document_is_cut(encoder: TextEncoder) -> None:
    ids, second_at = encoder.encode_pairs("w0 w1", [words(40, 2), "w9"], limit=10)
    assert ids[0] == [CLS, 4, 5, SEP, 6, 7, 8, 9, 10, SEP]
    assert ids[1] == [CLS, 4, 5, SEP, 13, SEP]
    assert second_at == [4, 4]


def test_a_query_that_leaves_no_room_is_cut_to_half(encoder: TextEncoder) -> None:
    ids, _ = encoder.encode_pairs(words(40), [words(40, 50)], limit=13)
    assert ids == [[CLS, *range(4, 9), SEP, *range(54, 59), SEP]]


def test_documents_are_cut_to_their_own_limit_first(encoder: TextEncoder) -> None:
    ids, _ = encoder.encode_pairs("w0", [words(40, 1), "w5"], document_limit=2)
    assert ids == [[CLS, 4, SEP, 5, 6, SEP], [CLS, 4, SEP, 9, SEP]]


def test_an_end_token_that_the_config_asks_for_is_added_once(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", CLS)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = tmp_path / "tokenizer_config.json"
    for written, ending in (({}, []), ({"add_eos_token": True, "eos_token": "[SEP]"}, [SEP])):
        config.write_text(json.dumps(written))
        encoder = TextEncoder(tmp_path)
        assert encoder.encode(["w1"]) == [[CLS, W0 + 1, *ending]]
        assert encoder.encode([words(9)], limit=5) == [[CLS, *range(W0, W0 + 4 - len(ending)), *ending]]
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert TextEncoder(tmp_path).encode(["w1"]) == [[CLS, W0 + 1, SEP]]
