"""Embeddings and rankings over HTTP, beside a model that generates: results, limits, refusals, turns, and faults."""

import asyncio
import base64
import json
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers.processors import TemplateProcessing

from tests.collector import collector
from tests.mlx_server.engine.embedding.tiny import EMBEDDERS, RERANKERS, make_model, make_tokenizer
from tests.prometheus import scrape
from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server

LONG_LIST = {
    "model": "tiny-bert",
    "input": [" ".join(f"w{(row + at) % 190}" for at in range(100)) for row in range(2048)],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding") / "models"
    make_model(folder / "tiny-bert", EMBEDDERS["bert"], prompts={"query": "w1 w2 ", "document": ""})
    make_model(folder / "tiny-qwen3", EMBEDDERS["qwen3"])
    make_model(folder / "tiny-reranker", RERANKERS["bert"])
    bare = make_tokenizer()
    bare.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    bare.save(str(make_model(folder / "tiny-bare", EMBEDDERS["bert"]) / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def embedding(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("server"), models_dir=models) as server:
        yield server


def embed(server: RunningServer, given: object, **fields: Any) -> list[list[float]]:
    answer = server.post("/v1/embeddings", {"model": "tiny-bert", "input": given, **fields})
    assert answer.status_code == 200, answer.text
    return [one["embedding"] for one in answer.json()["data"]]


def cosine(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def waiting(server: RunningServer, model: str = "tiny-bert") -> int:
    pool = httpx.get(f"{server.url}/admin/pool", timeout=HANG_SECONDS).json()["models"]
    return next(int(one["sequences"]["waiting"] + one["sequences"]["running"]) for one in pool if one["id"] == model)


def test_a_response_has_openais_shape_and_counts_tokens(embedding: RunningServer) -> None:
    answer = embedding.post("/v1/embeddings", {"model": "tiny-bert", "input": ["w1 w2", "w3"]}).json()
    assert answer.keys() == {"object", "data", "model", "usage"}
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert answer["model"] == "tiny-bert"
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}  # with [CLS] and [SEP] of each


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-qwen3"])
def test_a_text_has_the_same_vector_in_every_shape_and_company(embedding: RunningServer, model: str) -> None:
    (alone,) = embed(embedding, "w5 w6 w7", model=model)
    company = embed(embedding, ["w1", "w5 w6 w7", "w9 " * 90], model=model)
    ids = [2, 9, 10, 11, 3]  # [CLS] w5 w6 w7 [SEP]
    shapes = [company[1], *embed(embedding, ids, model=model), *embed(embedding, [[7], ids], model=model)[1:]]
    assert all(cosine(alone, other) > 0.99999 for other in shapes)
    assert cosine(alone, company[0]) < 0.9999


def test_base64_holds_the_same_floats(embedding: RunningServer) -> None:
    (text,) = embed(embedding, "w5", encoding_format="base64")
    floats = array("f", base64.b64decode(text)).tolist()  # type: ignore[arg-type]
    assert floats == embed(embedding, "w5", encoding_format="float")[0]


def test_dimensions_cuts_the_vector_and_normalises_it_again(embedding: RunningServer) -> None:
    whole, short = embed(embedding, "w5 w6")[0], embed(embedding, "w5 w6", dimensions=8)[0]
    length = cosine(whole[:8], whole[:8]) ** 0.5
    assert short == pytest.approx([value / length for value in whole[:8]], abs=1e-6)


def test_a_prompt_of_the_model_goes_before_the_text(embedding: RunningServer) -> None:
    (prompted,), (written,) = embed(embedding, "w5", prompt_name="query"), embed(embedding, "w1 w2 w5")
    assert cosine(prompted, written) > 0.99999
    refused = embedding.post("/v1/embeddings", {"model": "tiny-bert", "input": "w5", "prompt_name": "passage"})
    assert refused.json()["error"]["param"] == "prompt_name"
    assert "'query', 'document'" in refused.json()["error"]["message"]


def test_a_text_is_cut_where_that_is_asked(embedding: RunningServer) -> None:
    long, start = " ".join(f"w{number}" for number in range(190)), "w0 w1 w2"
    (cut,), (written,) = embed(embedding, long, truncate_prompt_tokens=5), embed(embedding, start)
    assert cosine(cut, written) > 0.99999
    answer = embedding.post("/v1/embeddings", {"model": "tiny-bert", "input": long, "truncate_prompt_tokens": -1})
    assert answer.json()["usage"]["prompt_tokens"] == 130


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"input": ["w1", ""]}, 400, "input[1]", "is empty"),
        ({"input": [[5], []]}, 400, "input[1]", "is empty"),
        ({"input": []}, 422, "input", "at least 1 item"),
        ({"input": 5}, 422, "input", "list"),
        ({"input": ["w1", 5]}, 422, "input[1]", "string"),
        ({"input": ["w1"] * 2049}, 400, "input", "2049 entries"),
        ({"input": ["w1", "w1 " * 200]}, 400, "input[1]", "input[1] has 202 tokens"),
        ({"input": [[5], [5] * 131]}, 400, "input[1]", "reads 130"),
        ({"input": [[5, 200]]}, 400, "input[0]", "token id 200"),
        ({"input": ["w1", " "], "model": "tiny-bare"}, 400, "input[1]", "no tokens"),
        ({"input": [5, -1]}, 400, "input", "token id -1"),
        ({"input": "w1", "dimensions": 33}, 400, "dimensions", "have 32"),
        ({"input": "w1", "dimensions": 0}, 422, "dimensions", "greater than"),
        ({"input": "w1", "encoding_format": "hex"}, 422, "encoding_format", "'base64'"),
        ({"input": "w1", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens", "-1"),
        ({"input": "w1", "truncate_prompt_tokens": 131}, 400, "truncate_prompt_tokens", "131"),
        ({"input": [5], "prompt_name": "query"}, 400, "prompt_name", "token ids"),
        ({"input": "w1", "input_type": "query"}, 400, "input_type", "not supported"),
        ({"input": "w1", "model": "demo"}, 400, "model", "POST /v1/chat/completions"),
        ({"input": "w1", "model": "tiny-reranker"}, 400, "model", "POST /v1/rerank"),
        ({"input": "w1", "model": "tiny"}, 404, "model", "does not exist"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_its_field(
    embedding: RunningServer, fields: dict[str, Any], status: int, param: str, said: str
) -> None:
    refused = embedding.post("/v1/embeddings", {"model": "tiny-bert", **fields})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (status, param), error
    assert said in error["message"]


def test_the_best_documents_come_first(embedding: RunningServer) -> None:
    body = {"model": "tiny-reranker", "query": "w1 w2", "documents": ["w3", {"text": "w4 w5"}, "w6 " * 40]}
    whole = embedding.post("/v1/rerank", body).json()
    scores = [one["relevance_score"] for one in whole["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert sorted(one["index"] for one in whole["results"]) == [0, 1, 2]
    assert whole["usage"]["total_tokens"] == 3 * 5 + 1 + 2 + 40
    best = embedding.post("/rerank", {**body, "top_n": 1, "return_documents": True}).json()["results"]
    shown = [{"text": "w3"}, {"text": "w4 w5"}, {"text": "w6 " * 40}]
    assert best == [{**whole["results"][0], "document": shown[whole["results"][0]["index"]]}]


def test_a_document_has_the_same_score_alone(embedding: RunningServer) -> None:
    body = {"model": "tiny-reranker", "query": "w1", "documents": ["w3", "w4 " * 90, "w5 w6"]}
    together = {one["index"]: one["relevance_score"] for one in embedding.post("/rerank", body).json()["results"]}
    for index, document in enumerate(body["documents"]):
        (alone,) = embedding.post("/rerank", {**body, "documents": [document]}).json()["results"]
        assert alone["relevance_score"] == pytest.approx(together[index], abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"documents": []}, 422, "documents", "at least 1 item"),
        ({"documents": ["w1", {"body": "w2"}]}, 422, "documents[1].text", "required"),
        ({"documents": ["w1"] * 2049}, 400, "documents", "2049 entries"),
        ({"documents": ["w1", "w1 " * 200]}, 400, "documents[1]", "truncate_prompt_tokens = -1"),
        ({"query": ""}, 400, "query", "empty"),
        ({"top_n": 0}, 422, "top_n", "greater than"),
        ({"instruction": "Judge"}, 400, "instruction", "classifier"),
        ({"model": "tiny-bert"}, 400, "model", "POST /v1/embeddings"),
        ({"model": "demo"}, 400, "model", "POST /v1/chat/completions"),
    ],
)
def test_what_cannot_be_ranked_is_refused_by_its_field(
    embedding: RunningServer, fields: dict[str, Any], status: int, param: str, said: str
) -> None:
    body = {"model": "tiny-reranker", "query": "w1", "documents": ["w2"], **fields}
    refused = embedding.post("/v1/rerank", body)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (status, param), error
    assert said in error["message"]


def test_a_long_document_is_cut_where_that_is_asked(embedding: RunningServer) -> None:
    body = {"model": "tiny-reranker", "query": "w1", "documents": ["w2 " * 200], "truncate_prompt_tokens": -1}
    assert embedding.post("/rerank", body).json()["usage"]["total_tokens"] == 130
    del body["truncate_prompt_tokens"]
    assert embedding.post("/rerank", {**body, "max_tokens_per_doc": 9}).json()["usage"]["total_tokens"] == 13


def test_a_short_request_overtakes_a_list_of_2048(embedding: RunningServer) -> None:
    embed(embedding, "w1")
    ended = threading.Event()

    def send_list() -> None:
        assert embedding.post("/v1/embeddings", LONG_LIST).status_code == 200
        ended.set()

    sending = threading.Thread(target=send_list)
    sending.start()
    eventually(lambda: waiting(embedding), lambda texts: texts > 0)
    embed(embedding, "w1")
    assert not ended.is_set()
    sending.join(HANG_SECONDS)
    assert ended.is_set()


def test_nothing_is_computed_for_a_client_that_has_left(embedding: RunningServer) -> None:
    embed(embedding, "w1")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{embedding.url}/v1/embeddings", json=LONG_LIST, timeout=httpx.Timeout(HANG_SECONDS, read=0.3))
    embedding.wait_for_log("499 POST /v1/embeddings")
    eventually(lambda: waiting(embedding), lambda texts: texts == 0)


def test_requests_are_counted_and_tokens_with_them(embedding: RunningServer) -> None:
    embed(embedding, "w1")
    before = scrape(embedding)
    embed(embedding, "w1 w2")
    after = scrape(embedding)
    labels = {"endpoint": "/v1/embeddings", "model": "tiny-bert", "status": "200"}
    assert after.value("requests_total", **labels) == before.value("requests_total", **labels) + 1
    tokens = [one.value("prompt_tokens_total", model="tiny-bert") for one in (before, after)]
    assert tokens[1] - tokens[0] == 4


def test_a_worker_that_dies_fails_its_requests_and_is_replaced(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=models) as server:
        embed(server, "w1")
        pool = httpx.get(f"{server.url}/admin/pool").json()["models"]
        pid = next(one["pid"] for one in pool if one["id"] == "tiny-bert")
        answers: list[httpx.Response] = []
        sending = threading.Thread(target=lambda: answers.append(server.post("/v1/embeddings", LONG_LIST)))
        sending.start()
        eventually(lambda: waiting(server), lambda texts: texts > 0)
        next(worker for worker in server.workers() if worker.pid == pid).kill()
        sending.join(HANG_SECONDS)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (500, "engine_failed")
        embed(server, "w1")


def test_what_takes_too_long_is_ended(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=models, preload='["tiny-bert"]', request_timeout_seconds=0.2) as server:
        eventually(lambda: server.workers(), lambda workers: len(workers) == 2)
        answer = server.post("/v1/embeddings", LONG_LIST)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
        eventually(lambda: waiting(server), lambda texts: texts == 0)


async def test_too_many_requests_at_once_are_turned_away(models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=models, max_queue=1) as server:
        embed(server, "w1")
        async with httpx.AsyncClient(timeout=HANG_SECONDS, limits=httpx.Limits(max_connections=None)) as client:
            body = json.dumps({"model": "tiny-bert", "input": LONG_LIST["input"][:500]})
            headers = {"content-type": "application/json"}
            url = f"{server.url}/v1/embeddings"
            sent = [asyncio.create_task(client.post(url, content=body, headers=headers)) for _ in range(80)]
            for done in asyncio.as_completed(sent):
                answer = await done
                if answer.status_code != 200:
                    break
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "server_busy")
        assert int(answer.headers["retry-after"]) >= 1


def test_keys_and_token_limits_hold(models: Path, tmp_path: Path) -> None:
    with running_server(
        tmp_path, models_dir=models, api_keys='["embedding-key-0123456789"]', rate_limit_tokens_per_minute=10
    ) as server:
        body = {"model": "tiny-bert", "input": "w1 " * 20}
        assert server.post("/v1/embeddings", body).status_code == 401
        headers = {"authorization": "Bearer embedding-key-0123456789"}
        asked: list[httpx.Response] = [
            httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers, timeout=HANG_SECONDS)
            for _ in range(2)
        ]
        assert [answer.status_code for answer in asked] == [200, 429]
        assert asked[1].json()["error"]["type"] == "tokens"


def test_spans_tell_of_the_request(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as receiving:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
        with running_server(tmp_path, models_dir=models) as server:
            embed(server, "w1 w2")
            server.post("/rerank", {"model": "tiny-reranker", "query": "w1", "documents": ["w2"]})
        spans = {span.name: span for span in receiving.spans}
        embeddings = spans["embeddings tiny-bert"]
        recorded = {pair.key: pair.value for pair in embeddings.attributes}
        assert recorded["gen_ai.usage.input_tokens"].int_value == 4
        assert embeddings.parent_span_id == spans["POST /v1/embeddings"].span_id
        phases = {span.name for span in receiving.spans if span.parent_span_id == embeddings.span_id}
        assert phases >= {"load", "queue", "encode"}
        assert "rerank tiny-reranker" in spans
