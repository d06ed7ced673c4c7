"""The entry points for programs that run the app's lifespan themselves."""

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.errors import InvalidRequest, ModelNotFound, RequestTimeout
from mlx_manager.mlx_server.main import create_app, lifespan
from mlx_manager.mlx_server.schemas.openai import ChatCompletionChunk, ChatCompletionResponse, CompletionResponse, Usage
from mlx_manager.mlx_server.services.inference import Answer, generate_chat_completion, generate_completion
from mlx_manager.mlx_server.upstream_settings import UpstreamSettings
from tests import faulty_upstream as faulty
from tests.small_models import make_random_llama

pytestmark = pytest.mark.anyio

WELL = faulty.Answer((faulty.piece("Hello you", finish_reason="stop"), faulty.DONE))
MESSAGES = [{"role": "user", "content": "Count to 4"}]


@pytest.fixture(scope="module", autouse=True)
async def running(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FastAPI]:
    """With `brief`, whose own limit is 7 tokens, `endless` without one, an upstream's models, and limits of its own."""
    endless = make_random_llama(tmp_path_factory.mktemp("models") / "endless")
    brief = make_random_llama(tmp_path_factory.mktemp("models") / "brief", do_sample=False, max_new_tokens=7)
    with faulty.faulty_upstream({"well": WELL, "silent": faulty.Answer(hangs=True)}) as upstream:
        entry = UpstreamSettings(name="lab", kind="openai", base_url=upstream.url, models=["well", "silent"])
        settings = MLXServerSettings(
            logfire_enabled=False,
            available_models=[str(brief), str(endless)],
            default_max_tokens=20,
            upstreams=[entry],
        )
        app = create_app(settings, Bounds(max_prompt_characters=1000))
        async with lifespan(app):
            yield app


def tokens_of(answer: Answer) -> int:
    assert isinstance(answer, dict)
    return Usage.model_validate(answer["usage"]).completion_tokens


async def test_chat_completion_is_one_dict_or_its_chunks() -> None:
    whole = await generate_chat_completion("demo", MESSAGES, temperature=0)
    stream = await generate_chat_completion("demo", MESSAGES, temperature=0, stream=True)
    assert not isinstance(stream, dict)
    chunks = [ChatCompletionChunk.model_validate(chunk) async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "1, 2, 3, 4"
    assert ChatCompletionResponse.model_validate(whole).choices[0].message.content == "1, 2, 3, 4"


async def test_completion_keeps_its_prompt_when_asked_to() -> None:
    whole = await generate_completion("demo", "Once upon a time", temperature=0, echo=True)
    completion = CompletionResponse.model_validate(whole)
    assert completion.choices[0].text.startswith("Once upon a time")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16


async def test_limit_that_is_not_asked_for_is_the_models_own() -> None:
    answers = [
        await generate_chat_completion("brief", MESSAGES, temperature=0),
        await generate_completion("brief", "Hi", temperature=0),
        await generate_chat_completion("brief", MESSAGES, temperature=0, max_tokens=16),
        await generate_completion("brief", "Hi", temperature=0, max_tokens=16),
    ]
    assert [tokens_of(answer) for answer in answers] == [7, 7, 16, 16]


async def test_limit_that_neither_caller_nor_model_has_is_the_settings_own() -> None:
    assert tokens_of(await generate_chat_completion("endless", MESSAGES, temperature=0)) == 20


async def test_models_of_upstreams_answer() -> None:
    whole = CompletionResponse.model_validate(await generate_completion("well", "Hi"))
    assert whole.choices[0].text == "Hello you"


async def test_limits_of_the_server_hold(running: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="the limit is 1000"):
        await generate_completion("demo", "word " * 300)
    monkeypatch.setattr(running.state.server.inference, "timeout_seconds", 0.1)
    with pytest.raises(RequestTimeout):
        await generate_completion("silent", "Hi")


async def test_faults_are_server_errors() -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        await generate_chat_completion("demo", MESSAGES, temperature=9)
    with pytest.raises(ModelNotFound):
        await generate_chat_completion("nobody", MESSAGES)
