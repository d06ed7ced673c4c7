"""Models whose folders have no tokenizer.json, served."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sentencepiece

from tests.mlx_server.engine.embedding.tiny import EMBEDDERS, make_model
from tests.running_server import HANG_SECONDS, RunningServer, running_server
from tests.small_models import make_random_llama

AS_LLAMA_2: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 400,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "minloglevel": 2,
}
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`pieces` has a SentencePiece model, `coder` one in Python that is not trusted. `words` and `roberta` embed."""
    folder = tmp_path_factory.mktemp("tokenizer-files")
    pieces, coder = (make_random_llama(folder / "models" / name) for name in ("pieces", "coder"))
    for model in (pieces, coder):
        (model / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(**AS_LLAMA_2, input=str(README), model_prefix=str(pieces / "tokenizer"))
    (pieces / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    auto_map = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    (coder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": auto_map}))
    (coder / "tokenizer.model").write_bytes(b"of its own kind")
    make_embedders(folder / "models")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with running_server(folder, models_dir=folder / "models", hub_cache=False) as server:
            yield server


def make_embedders(models: Path) -> None:
    """A BERT with a list of words, and an XLM-RoBERTa with a SentencePiece model."""
    words = make_model(models / "words", EMBEDDERS["bert"])
    (words / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld"]))
    roberta = make_model(models / "roberta", EMBEDDERS["xlm-roberta"])
    sentencepiece.SentencePieceTrainer.train(
        input=str(README), model_prefix=str(roberta / "sentencepiece.bpe"), vocab_size=190, minloglevel=2,
        character_coverage=0.98, model_type="unigram",
    )  # fmt: skip
    for folder, name in ((words, "BertTokenizer"), (roberta, "XLMRobertaTokenizer")):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "do_lower_case": True}))


def vectors(server: RunningServer, model: str, texts: object) -> tuple[list[list[float]], int]:
    """And the number of tokens."""
    answer = server.post("/v1/embeddings", {"model": model, "input": texts})
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]], answer.json()["usage"]["prompt_tokens"]


def test_an_embedding_model_with_a_list_of_words_reads_its_words(server: RunningServer) -> None:
    (written,), tokens = vectors(server, "words", "Hello world")
    assert tokens == 5
    assert written == pytest.approx(vectors(server, "words", [[2, 5, 6, 7, 3]])[0][0], abs=1e-5)


def test_an_embedding_model_with_a_sentencepiece_model_reads_its_pieces(server: RunningServer) -> None:
    """XLM-RoBERTa's ids are one above SentencePiece's, between <s> and </s>."""
    text = "The server answers"
    file = server.log.parent / "models" / "roberta" / "sentencepiece.bpe.model"
    ids = [0, *(token + 1 for token in sentencepiece.SentencePieceProcessor(str(file)).encode(text)), 2]
    (written,), tokens = vectors(server, "roberta", text)
    assert tokens == len(ids)
    assert written == pytest.approx(vectors(server, "roberta", [ids])[0][0], abs=1e-5)


def test_a_grammar_follows_a_converted_tokenizer(server: RunningServer) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"model": "pieces", "messages": [{"role": "user", "content": "Hi"}], "response_format": response_format}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.json()["choices"][0]["message"]["content"]) in ({"a": "x"}, {"a": "y"})
    listed = {model["id"]: model for model in httpx.get(f"{server.url}/v1/models", timeout=HANG_SECONDS).json()["data"]}
    assert listed["pieces"]["capabilities"]["structured_output"]


def test_a_model_with_a_sentencepiece_model_is_served(server: RunningServer) -> None:
    prompt = "The server  answers,\n\t你好 😀"
    body = {"model": "pieces", "prompt": prompt, "max_tokens": 3, "echo": True}
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"].startswith(prompt)
    processor = sentencepiece.SentencePieceProcessor(str(server.log.parent / "models" / "pieces" / "tokenizer.model"))
    assert answer.json()["usage"]["prompt_tokens"] == len(processor.encode(prompt)) + 1  # and its BOS


def test_a_tokenizer_in_python_that_is_not_trusted_is_refused_with_the_remedy(server: RunningServer) -> None:
    answer = server.post("/v1/completions", {"model": "coder", "prompt": "Hi", "max_tokens": 1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "model_load_failed")
    assert "trust_remote_code = true in its [[models]] entry" in error["message"]
