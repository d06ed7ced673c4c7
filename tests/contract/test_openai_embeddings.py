"""The openai package and recorded clients ask the running server for embeddings."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.contract.test_agent_requests import REQUESTS
from tests.mlx_server.engine.embedding.tiny import EMBEDDERS, make_model
from tests.running_server import HANG_SECONDS, RunningServer, running_server

RECORDED = [name for name, request in REQUESTS.items() if request["path"] == "/v1/embeddings"]


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("embedding")
    make_model(folder / "models" / "tiny", EMBEDDERS["bert"])
    with running_server(folder, models_dir=folder / "models") as server:
        yield server


@pytest.fixture(scope="module")
def client(embedding: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{embedding.url}/v1", api_key="not-needed", max_retries=0)


def test_every_shape_of_input_is_read(client: openai.OpenAI) -> None:
    """Without `encoding_format` the package asks for base64, and decodes it."""
    for given in ("w1 w2", ["w1 w2", "w3"], [2, 5, 6, 3], [[2, 5, 6, 3], [2, 7, 3]]):
        answer = client.embeddings.create(model="tiny", input=given)
        plain = client.embeddings.create(model="tiny", input=given, encoding_format="float")
        assert answer.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
        assert [one.index for one in answer.data] == list(range(len(answer.data)))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_dimensions_are_as_asked(client: openai.OpenAI) -> None:
    assert len(client.embeddings.create(model="tiny", input="w1", dimensions=5).data[0].embedding) == 5


def test_faults_are_the_packages_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="tiny", input=["w1", ""])
    assert refused.value.param == "input[1]"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="no-such-model", input="w1")
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="tiny", input=[])
    with pytest.raises(openai.BadRequestError, match="reads 130") as too_long:
        client.embeddings.create(model="tiny", input="w1 " * 200)
    assert too_long.value.code == "context_length_exceeded"


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_clients_are_answered(embedding: RunningServer, name: str) -> None:
    request = REQUESTS[name]
    headers = {field: value for field, value in request["headers"].items() if field.lower() != "content-type"}
    body = {**request["body"], "model": "tiny"}
    answer = httpx.post(f"{embedding.url}{request['path']}", json=body, headers=headers, timeout=HANG_SECONDS)
    assert answer.status_code == 200, answer.text
    (one,) = answer.json()["data"]
    assert isinstance(one["embedding"], str if body.get("encoding_format") == "base64" else list)


def test_three_clients_are_recorded() -> None:
    assert RECORDED == ["ai_sdk_embeddings", "langchain_embeddings", "openwebui_embeddings"]
