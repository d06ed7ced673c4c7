"""The entry points for programs that run the app's lifespan themselves."""

from collections.abc import AsyncIterator

import pytest

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.errors import InvalidRequest, ModelNotFound
from mlx_manager.mlx_server.main import create_app, lifespan
from mlx_manager.mlx_server.schemas.openai import ChatCompletionChunk, ChatCompletionResponse, CompletionResponse
from mlx_manager.mlx_server.services.inference import generate_chat_completion, generate_completion

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Count to 4"}]


@pytest.fixture(scope="module", autouse=True)
async def running(anyio_backend: str) -> AsyncIterator[None]:
    app = create_app(MLXServerSettings(logfire_enabled=False))
    async with lifespan(app):
        yield


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


async def test_faults_are_server_errors() -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        await generate_chat_completion("demo", MESSAGES, temperature=9)
    with pytest.raises(ModelNotFound):
        await generate_chat_completion("nobody", MESSAGES)
