"""Turns a request's prompts into token ids: chats through the model's template, completions as given. Knows no HTTP."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from jinja2 import TemplateSyntaxError

from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.errors import ChatTemplateMissing, InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.models.adapters.base import TEMPLATE_FAILURES
from mlx_manager.mlx_server.models.adapters.round_trip import with_null_content
from mlx_manager.mlx_server.models.pool import LoadedModel
from mlx_manager.mlx_server.models.tokenization import Tokenizer, make_decoder
from mlx_manager.mlx_server.protocols.sizes import too_long
from mlx_manager.mlx_server.services.tool_prompt import with_custom_tools_as_text, with_tools_as_text
from mlx_manager.mlx_server.services.turns import fit_turns
from mlx_manager.mlx_server.types import ChatRequest, ChatTurn, CompletionRequest, ToolCall, ToolDefinition

LONG_TEXT_CHARACTERS = 20_000
"""Longer prompts are tokenised in a thread."""

FILL_IN_THE_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<｜fim\u2581begin｜>", "<｜fim\u2581hole｜>", "<｜fim\u2581end｜>"),
)
"""The tokens before prefix, suffix and middle, of Qwen and Gemma, StarCoder and Granite, SantaCoder, Code Llama, and
DeepSeek."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """`echo` is the prompt text that an echoing completion starts with.

    With `opens_reasoning` the answer starts inside a reasoning block.
    """

    tokens: list[int]
    echo: str = ""
    opens_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class PromptRules:
    """Settings for all prompts. Longer prompts than `max_characters` are refused; 0 means no limit."""

    max_characters: int = 0
    tool_prompt: bool = True
    hoist_system_messages: bool = False


def prompt_rules(settings: MLXServerSettings, bounds: Bounds) -> PromptRules:
    return PromptRules(bounds.max_prompt_characters, settings.tool_prompt, settings.hoist_system_messages)


def check_length(request: ChatRequest | CompletionRequest, max_characters: int) -> None:
    """Raises InvalidRequest for more than `max_characters` of text; 0 means no limit."""
    if 0 < max_characters < request.text_length:
        raise too_long("The prompt", request.text_length, max_characters, request.prompt_field)


async def read_prompts(
    model: LoadedModel, request: ChatRequest | CompletionRequest, rules: PromptRules
) -> list[Prompt]:
    """Raises InvalidRequest, with the field in `param`, for a prompt that this model cannot read."""
    match request:
        case ChatRequest():
            prompts = [await _chat_prompt(model, request, rules)]
        case CompletionRequest() if request.text_length > LONG_TEXT_CHARACTERS:
            prompts = await asyncio.to_thread(_completion_prompts, model, request)
        case CompletionRequest():
            prompts = _completion_prompts(model, request)
        case _:
            assert_never(request)
    if not all(prompt.tokens for prompt in prompts):
        raise InvalidRequest("The prompt has 0 tokens. Send at least one token.", param=request.prompt_field)
    return prompts


async def _chat_prompt(model: LoadedModel, request: ChatRequest, rules: PromptRules) -> Prompt:
    """A separate process renders the template, and a thread waits for it."""
    language = model.language
    if request.tool_use.tools and not language.traits.native_tools and not rules.tool_prompt:
        raise UnsupportedParameter(
            f"The chat template of model {model.model_id!r} does not support tools, and MLX_SERVER_TOOL_PROMPT is off. "
            "Remove 'tools', use a model with tool support, or set MLX_SERVER_TOOL_PROMPT=true.",
            param="tools",
        )
    async with language.rendering:
        text = await language.templates.in_thread(lambda: render(model, request, rules))
    if 0 < rules.max_characters < len(text):
        what = "The prompt, as rendered by the model's chat template,"
        raise too_long(what, len(text), rules.max_characters, request.prompt_field)
    if len(text) > LONG_TEXT_CHARACTERS:
        tokens = await asyncio.to_thread(language.tokenizer.encode, text, add_special_tokens=False)
    else:
        tokens = language.tokenizer.encode(text, add_special_tokens=False)  # the template adds special tokens
    return Prompt(tokens, opens_reasoning=language.output_format.opens_reasoning(text))


def _completion_prompts(model: LoadedModel, request: CompletionRequest) -> list[Prompt]:
    return [_completion_prompt(model, request, prompt) for prompt in request.prompts]


def _completion_prompt(model: LoadedModel, request: CompletionRequest, prompt: str | tuple[int, ...]) -> Prompt:
    if request.suffix is not None:
        return Prompt(_fill_in_the_middle(model, prompt, request.suffix))
    if isinstance(prompt, str):
        return Prompt(model.tokenizer.encode(prompt, add_special_tokens=True), prompt)
    tokens = _ids(model, prompt)
    return Prompt(tokens, make_decoder(model.tokenizer, request.skip_special_tokens)(tokens) if request.echo else "")


def _ids(model: LoadedModel, tokens: tuple[int, ...]) -> list[int]:
    size = model.engine.vocabulary_size
    unknown = next((token for token in tokens if not 0 <= token < size), None)
    if unknown is not None:
        raise InvalidRequest(
            f"The prompt has token id {unknown}, but the model's largest is {size - 1}. Send ids of its tokenizer.",
            param="prompt",
        )
    return list(tokens)


def _fill_in_the_middle(model: LoadedModel, prefix: str | tuple[int, ...], suffix: str) -> list[int]:
    tokenizer = model.tokenizer
    markers = fill_in_the_middle_tokens(tokenizer)
    if markers is None:
        raise UnsupportedParameter(
            f"Model {model.model_id!r} does not support 'suffix': its vocabulary has no fill-in-the-middle tokens. "
            "Remove 'suffix', or use a code model.",
            param="suffix",
        )
    before = tokenizer.encode(prefix, add_special_tokens=False) if isinstance(prefix, str) else _ids(model, prefix)
    after = tokenizer.encode(suffix, add_special_tokens=False)
    begin_of_text = tokenizer.encode("", add_special_tokens=True)
    return [*begin_of_text, markers[0], *before, markers[1], *after, markers[2]]


def fill_in_the_middle_tokens(tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    """Ids of the tokens before prefix, suffix and middle; None if the vocabulary has none."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    for names in FILL_IN_THE_MIDDLE:
        first, second, third = (tokenizer.convert_tokens_to_ids(name) for name in names)
        if not {None, unknown} & {first, second, third}:
            return first, second, third
    return None


def render(model: LoadedModel, request: ChatRequest, rules: PromptRules) -> str:
    traits = model.language.traits
    options: dict[str, object] = dict(request.template_kwargs)
    if request.continue_final_message:
        options["continue_final_message"] = True
    turns, functions = list(request.turns), request.tool_use.tools
    custom = [tool for tool in functions if tool.custom] if model.language.output_format.has_custom_calls else []
    if custom:
        turns = with_custom_tools_as_text(turns, custom)
        functions = tuple(tool for tool in functions if not tool.custom)
    tools = [_tool(tool) for tool in functions]
    if not traits.native_tools:
        turns = with_tools_as_text(turns, tools)
    elif tools:
        options["tools"] = tools
    fitted = fit_turns(turns, traits, hoist=rules.hoist_system_messages)
    try:
        return model.adapter.apply_chat_template(
            model.tokenizer,
            [with_null_content(_message(turn), traits.null_content) for turn in fitted],
            add_generation_prompt=request.add_generation_prompt,
            **options,
        )
    except TemplateSyntaxError as exc:
        raise ChatTemplateMissing(
            f"The chat template of model {model.model_id!r} has a syntax error: {exc}. Fix it, or use another model.",
            param="model",
        ) from exc
    except TEMPLATE_FAILURES as exc:
        raise InvalidRequest(
            f"The chat template of model {model.model_id!r} rejects these messages: "
            f"{str(exc).rstrip('.')}. Change them.",
            param=request.prompt_field,
        ) from exc


def _message(turn: ChatTurn) -> dict[str, Any]:
    """The turn in the form that chat templates read."""
    optional: Mapping[str, object] = {
        "name": turn.name,
        "tool_calls": [_tool_call(call) for call in turn.tool_calls] or None,
        "tool_call_id": turn.tool_call_id,
        "reasoning_content": turn.reasoning,
    }
    present = {name: value for name, value in optional.items() if value is not None}
    return {"role": turn.role, "content": turn.content, **present}


def _tool(tool: ToolDefinition) -> dict[str, object]:
    """The tool in the form that chat templates read: OpenAI's."""
    description = {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": {"name": tool.name, **description, "parameters": tool.parameters}}


def _tool_call(call: ToolCall) -> dict[str, object]:
    """Adapters convert the arguments' text to the form that their templates read."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
