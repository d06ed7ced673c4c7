"""Qwen3-Reranker's way: a model that generates is asked for "yes" or "no", on the engine that serves chats."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from tests.running_server import RunningServer, running_server
from tests.small_models import make_random_model

BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QUERY = "How many legs has a cat?"
DOCUMENTS = [f"Document {number} is about {what}." for number, what in enumerate(["cats", "dogs", "tea"] * 7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Qwen3-Reranker-tiny"
    words = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "yes", "no")
    return make_random_model(folder, model_type="qwen3", context_length=512, extra_tokens=words)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), default_model=folder) as running:
        yield running


def rank(server: RunningServer, **fields: Any) -> dict[str, Any]:
    body = {"model": "Qwen3-Reranker-tiny", "query": QUERY, "documents": DOCUMENTS, **fields}
    answer = server.post("/v1/rerank", body)
    assert answer.status_code == 200, answer.text
    ranking: dict[str, Any] = answer.json()
    return ranking


def expected_scores(folder: Path, instruction: str) -> list[float]:
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scores = []
    for document in DOCUMENTS:
        middle = f"<Instruct>: {instruction}\n<Query>: {QUERY}\n<Document>: {document}"
        ids = [
            token for text in (BEFORE, middle, BEHIND) for token in tokenizer.encode(text, add_special_tokens=False).ids
        ]
        logits = model(mx.array([ids]))[0, -1]
        yes, no = (float(logits[tokenizer.token_to_id(word)]) for word in ("yes", "no"))
        scores.append(1 / (1 + math.exp(no - yes)))
    return scores


def test_scores_are_the_probability_of_yes_against_no(server: RunningServer, folder: Path) -> None:
    ranking = rank(server)
    default = "Given a web search query, retrieve relevant passages that answer the query"
    found = {one["index"]: one["relevance_score"] for one in ranking["results"]}
    expected = expected_scores(folder, default)
    assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.001
    scores = [one["relevance_score"] for one in ranking["results"]]
    assert scores == sorted(scores, reverse=True)


def test_the_instruction_is_the_requests_own(server: RunningServer, folder: Path) -> None:
    found = {one["index"]: one["relevance_score"] for one in rank(server, instruction="Find cats")["results"]}
    expected = expected_scores(folder, "Find cats")
    assert [found[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-4)


def test_a_document_that_is_too_long_is_named_or_cut(server: RunningServer) -> None:
    body = {"model": "Qwen3-Reranker-tiny", "query": QUERY, "documents": ["A cat.", "A cat. " * 400]}
    refused = server.post("/v1/rerank", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "documents[1]")
    cut = server.post("/v1/rerank", {**body, "truncate_prompt_tokens": -1})
    assert cut.status_code == 200, cut.text
    assert cut.json()["usage"]["total_tokens"] < 2 * 512


def test_the_model_still_chats_and_embeds_nothing(server: RunningServer) -> None:
    assert server.post("/v1/completions", {"model": "Qwen3-Reranker-tiny", "prompt": "Hi", "max_tokens": 2}).is_success
    refused = server.post("/v1/embeddings", {"model": "Qwen3-Reranker-tiny", "input": "Hi"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
