"""Models whose folders have no tokenizer.json, served."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.running_server import RunningServer, running_server
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
    """`pieces` has a SentencePiece model, `coder` a tokenizer in Python that nobody trusts."""
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
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with running_server(folder, models_dir=folder / "models", hub_cache=False) as server:
            yield server


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
