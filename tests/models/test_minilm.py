"""all-MiniLM-L6-v2, a trained embedding model which `make test-models` builds, against float64 numpy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from mlx_manager.mlx_server.models.defaults import read_json
from tests.mlx_server.engine.embedding import references
from tests.mlx_server.engine.embedding.references import Array
from tests.running_server import RunningServer, running_server

FOLDER = Path(__file__).parents[2] / ".cache" / "models" / "all-MiniLM-L6-v2"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="`make test-models` builds the model first")

TEXTS = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell sharply on Tuesday.",
    "ÜBERGRÖSSE naïve 東京 🙂",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 20,
    *(f"Sentence number {number} has {'very ' * number}little to say." for number in range(20)),
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("minilm"), models_dir=FOLDER.parent) as server:
        yield server


def embed(server: RunningServer, texts: list[str]) -> Array:
    answer = server.post("/v1/embeddings", {"model": FOLDER.name, "input": texts})
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]])


def reference() -> Array:
    loaded: Any = mx.load(str(FOLDER / "model.safetensors"))
    weights = {name: np.array(array, np.float64) for name, array in loaded.items()}
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = read_json(FOLDER / "config.json")
    hidden = [references.bert(config, weights, tokenizer.encode(text).ids) for text in TEXTS]
    return np.array([references.unit(h.mean(0)) for h in hidden])


def test_vectors_are_those_of_the_reference_alone_and_in_any_batch(minilm: RunningServer) -> None:
    expected = reference()
    together, alone = embed(minilm, TEXTS), np.concatenate([embed(minilm, [text]) for text in TEXTS])
    backwards = embed(minilm, TEXTS[::-1])[::-1]
    for found in (together, alone, backwards):
        assert (found * expected).sum(-1).min() >= 0.9999


def test_sentences_that_mean_the_same_are_near_each_other(minilm: RunningServer) -> None:
    eating, meal, stocks = embed(minilm, TEXTS[:3])
    assert eating @ meal > 0.6
    assert eating @ stocks < 0.2
