"""Prompts as a model reads them, with a real model loaded."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mlx_manager.mlx_server.models.budget import Budget
from mlx_manager.mlx_server.models.catalog import Catalog
from mlx_manager.mlx_server.models.pool import LoadedModel, ModelPoolManager
from mlx_manager.mlx_server.protocols import chat, completions
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.services.prompts import PromptRules, fill_in_the_middle_tokens, read_prompts
from tests.small_models import make_random_llama

pytestmark = pytest.mark.anyio

MARKS = {
    "<|finetune_right_pad_id|>": "<|fim_prefix|>",
    "<|python_tag|>": "<|fim_suffix|>",
    "<|eom_id|>": "<|fim_middle|>",
}


@pytest.fixture(scope="module")
async def coder(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LoadedModel]:
    """A model whose vocabulary can mark a prefix, a suffix and a middle, as Qwen's coders do."""
    folder = make_random_llama(tmp_path_factory.mktemp("models") / "coder")
    tokenizer = (folder / "tokenizer.json").read_text("utf-8")
    for ours, theirs in MARKS.items():
        tokenizer = tokenizer.replace(ours, theirs)
    (folder / "tokenizer.json").write_text(tokenizer)
    pool = ModelPoolManager(Catalog(str(folder), []), Budget(2**33, 1, 2**26))
    async with pool.lease("coder") as model:
        yield model
    await pool.cleanup()


async def rendered(model: LoadedModel, *messages: dict[str, Any], **fields: Any) -> str:
    body = {"model": "coder", "messages": list(messages), **fields}
    request = chat.to_request(openai.ChatCompletionRequest.model_validate(body), 10)
    (prompt,) = await read_prompts(model, request, PromptRules())
    return str(model.tokenizer.decode(prompt.tokens))


@pytest.mark.parametrize("prompt", ["def f(", "", [5, 6, 7]])
async def test_a_suffix_is_written_with_the_models_own_marks(coder: LoadedModel, prompt: Any) -> None:
    body = openai.CompletionRequest.model_validate({"model": "coder", "prompt": prompt, "suffix": "return 1"})
    (read,) = await read_prompts(coder, completions.to_request(body), PromptRules())
    begin = coder.tokenizer.encode("", add_special_tokens=True)
    before, after = (
        text if isinstance(text, list) else coder.tokenizer.encode(text, add_special_tokens=False)
        for text in (prompt, "return 1")
    )
    prefix, suffix, middle = fill_in_the_middle_tokens(coder.tokenizer) or (0, 0, 0)
    assert read.tokens == [*begin, prefix, *before, suffix, *after, middle]
    assert coder.tokenizer.convert_ids_to_tokens([prefix, suffix, middle]) == list(MARKS.values())


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', '{"city":"Oslo"}', '{"city": \n"Oslo"}'])
async def test_templates_get_the_arguments_of_a_call_as_a_mapping(coder: LoadedModel, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    text = await rendered(coder, {"role": "assistant", "tool_calls": [call]})
    assert json.dumps({"name": "get_weather", "parameters": {"city": "Oslo"}}) in text


@pytest.mark.parametrize("arguments", ["{broken", "[1]", "7", "[" * 100_000])
async def test_arguments_that_are_no_mapping_stay_as_they_are(coder: LoadedModel, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    assert arguments in await rendered(coder, {"role": "assistant", "tool_calls": [call]})


async def test_a_tools_result_and_a_functions_are_the_same_to_the_template(coder: LoadedModel) -> None:
    result = {"role": "tool", "tool_call_id": "1", "content": "7"}
    legacy = {"role": "function", "name": "f", "content": "7"}
    assert await rendered(coder, result) == await rendered(coder, legacy)


async def test_template_kwargs_reach_the_template(coder: LoadedModel) -> None:
    hi = {"role": "user", "content": "Hi"}
    thinking = await rendered(coder, hi, chat_template_kwargs={"enable_thinking": True})
    assert "Think before you answer." in thinking
    assert thinking == await rendered(coder, hi, reasoning_effort="low")
    assert await rendered(coder, hi) == await rendered(coder, hi, reasoning_effort="none")


async def test_no_new_message_is_begun_where_the_last_goes_on(coder: LoadedModel) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    assert (await rendered(coder, *turns, continue_final_message=True)).endswith("Hel")
    assert (await rendered(coder, *turns, add_generation_prompt=False)).endswith("Hel<|eot_id|>")
