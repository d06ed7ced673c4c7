"""Writes a request as the body for an upstream, or refuses it by the parameter that the upstream does not support.

It leaves unset parameters out: the upstream's defaults apply.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import assert_never

from mlx_manager.mlx_server.errors import UnsupportedParameter
from mlx_manager.mlx_server.protocols.base import Request
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import (
    NO_TOKEN_LIMIT,
    ChatRequest,
    ChatTurn,
    CompletionRequest,
    Grammar,
    ToolCall,
    ToolDefinition,
    ToolUse,
)
from mlx_manager.mlx_server.upstream_settings import UpstreamKind

_EVERYWHERE = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "seed",
        "stop",
        "max_tokens",
        "chat_template_kwargs",
        "tools",
    }
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The parameters that one kind of server supports."""

    title: str
    parameters: frozenset[str] | None
    """None if the upstream itself refuses unsupported parameters."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Its names for parameters that it names differently."""
    reads_token_ids: bool = False
    """Whether it accepts token ids and several prompts."""
    finds_stop_strings: bool = True
    """Whether it finds stop strings that cross token borders. If not, this server searches and sends none."""
    needs_default_limit: bool = True
    """Whether to send our default max_tokens, because its own is too small or unlimited."""


DIALECTS: Mapping[UpstreamKind, Dialect] = {
    # llama-cpp-python's server ignores unknown parameters, so we send only those that both llama.cpp servers support.
    "llamacpp": Dialect(
        "llama.cpp",
        _EVERYWHERE | {"logprobs", "top_logprobs", "tool_choice", "response_format"},
        names={"repetition_penalty": "repeat_penalty"},
    ),
    # It streams no logprobs, and misses stop strings that do not start and end at token borders.
    "mlxlm": Dialect("mlx_lm.server", _EVERYWHERE, finds_stop_strings=False),
    "openai": Dialect("an OpenAI server", None, reads_token_ids=True, needs_default_limit=False),
}


def upstream_body(request: Request, kind: UpstreamKind, model: str) -> JsonObject:
    """The body of a streaming request to the upstream's `model`. Raises UnsupportedParameter."""
    dialect = DIALECTS[kind]
    body: JsonObject = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    match request:
        case ChatRequest():
            body["messages"] = [_message(turn) for turn in request.turns]
            request.record.warnings += [
                f"tool {tool.name!r}: its grammar is not enforced: the model is on an upstream"
                for tool in request.tool_use.callable
                if tool.grammar is not None
            ]
            parameters = _common_parameters(request, dialect) | _chat_parameters(request, dialect)
        case CompletionRequest():
            body["prompt"] = _prompt(request, dialect)
            parameters = _common_parameters(request, dialect) | _completion_parameters(request)
        case _:
            assert_never(request)
    for name, value in parameters.items():
        if value is None:
            continue
        if dialect.parameters is not None and name not in dialect.parameters:
            raise _unsupported(request, dialect, name)
        body[dialect.names.get(name, name)] = value
    return body


def _unsupported(request: Request, dialect: Dialect, name: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"Model {request.model!r} is on {dialect.title}, which does not support {name!r}. Remove it.", param=name
    )


def _common_parameters(request: Request, dialect: Dialect) -> JsonObject:
    """Parameters of both kinds of requests, by name on the wire; None if unset."""
    sampling = {field.name: getattr(request.sampling, field.name) for field in fields(request.sampling)}
    return {
        **sampling,
        "max_tokens": _max_tokens(request, dialect),
        "stop": request.stop or None if dialect.finds_stop_strings else None,
        "n": request.n if request.n != 1 else None,
        "stop_token_ids": request.stop_token_ids or None,
        "ignore_eos": request.ignore_eos or None,
        "min_tokens": request.min_tokens or None,
        "include_stop_str_in_output": request.include_stop or None if dialect.finds_stop_strings else None,
        "skip_special_tokens": None if request.skip_special_tokens else False,
        "keep_alive": request.keep_alive_seconds,
        **_answer_format(request.grammar),
    }


def _answer_format(grammar: Grammar | None) -> JsonObject:
    match grammar:
        case None:
            return {}
        case Grammar("json_object"):
            return {"response_format": {"type": "json_object"}}
        case Grammar("json_schema"):
            schema = {"name": "answer", "schema": json.loads(grammar.source)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case Grammar("choice"):
            return {"guided_choice": json.loads(grammar.source)}
        case Grammar("regex"):
            return {"guided_regex": grammar.source}
        case _:
            return {"guided_grammar": grammar.source}


def _max_tokens(request: Request, dialect: Dialect) -> int | None:
    """Completions have the same default on every server."""
    sends_default = dialect.needs_default_limit or isinstance(request, CompletionRequest)
    if request.max_tokens == NO_TOKEN_LIMIT and not sends_default:
        return None
    return request.default_max_tokens if request.max_tokens is None and sends_default else request.max_tokens


def _chat_parameters(request: ChatRequest, dialect: Dialect) -> JsonObject:
    template_kwargs = dict(request.template_kwargs)
    effort = None
    if dialect.parameters is None and "reasoning_effort" in template_kwargs:
        effort = template_kwargs.pop("reasoning_effort")
        if template_kwargs.get("enable_thinking") is (effort != "none"):
            del template_kwargs["enable_thinking"]  # implied by the effort
    return {
        "logprobs": True if request.logprobs is not None else None,
        "top_logprobs": request.logprobs or None,
        "reasoning_effort": effort,
        "chat_template_kwargs": template_kwargs or None,
        "add_generation_prompt": None if request.add_generation_prompt or request.continue_final_message else False,
        "continue_final_message": request.continue_final_message or None,
        "thinking_budget": request.thinking_budget,
        **_tools(request.tool_use),
    }


def _tools(use: ToolUse) -> JsonObject:
    """Sends a custom tool as a function with one argument, without its grammar."""
    if not use.tools:
        return {}
    is_named = use.required and len(use.callable) < len(use.tools)
    named = {"type": "function", "function": {"name": use.callable[0].name}} if is_named else "required"
    return {
        "tools": [_tool(tool) for tool in use.tools],
        "tool_choice": named if use.required else None,
        "parallel_tool_calls": None if use.parallel or is_named else False,
    }


def _tool(tool: ToolDefinition) -> JsonObject:
    described: JsonObject = {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.parameters}}


def _completion_parameters(request: CompletionRequest) -> JsonObject:
    if request.best_of > request.n:
        raise UnsupportedParameter(
            f"Model {request.model!r} is on an upstream, which streams its answers. best_of > n cannot be streamed. "
            "Remove 'best_of'.",
            param="best_of",
        )
    return {"logprobs": request.logprobs, "echo": request.echo or None, "suffix": request.suffix}


def _prompt(request: CompletionRequest, dialect: Dialect) -> object:
    prompts = request.prompts
    if dialect.reads_token_ids:
        return prompts[0] if len(prompts) == 1 else prompts
    if len(prompts) == 1 and isinstance(prompts[0], str):
        return prompts[0]
    raise UnsupportedParameter(
        f"Model {request.model!r} is on {dialect.title}, which accepts one text as prompt, and no token ids. "
        "Send one string.",
        param="prompt",
    )


def _message(turn: ChatTurn) -> JsonObject:
    optional: JsonObject = {
        "name": turn.name,
        "tool_calls": [_tool_call(call) for call in turn.tool_calls] or None,
        "tool_call_id": turn.tool_call_id,
        "reasoning_content": turn.reasoning,
    }
    present = {name: value for name, value in optional.items() if value is not None}
    return {"role": turn.role, "content": turn.content, **present}


def _tool_call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
