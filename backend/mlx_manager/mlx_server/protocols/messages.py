"""Anthropic's Messages: the wire's shapes to a request, and errors in Anthropic's envelope. Pure."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.base import ErrorReply, ParseOptions, Protocol
from mlx_manager.mlx_server.protocols.messages_errors import anthropic_error
from mlx_manager.mlx_server.protocols.messages_parameters import MESSAGES
from mlx_manager.mlx_server.protocols.messages_tools import messages_tool_use
from mlx_manager.mlx_server.protocols.messages_turns import message_turns
from mlx_manager.mlx_server.protocols.messages_writer import MessagesChat, MessagesWriter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.wire import json_text
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.schemas import anthropic
from mlx_manager.mlx_server.types import ChatTurn, Grammar, SamplingOverrides


@dataclass(frozen=True, slots=True)
class _Thoughts:
    """What the body says about thinking."""

    enabled: bool | None = None
    budget: int | None = None
    shown: bool = True


class Messages(Protocol[anthropic.CountTokensRequest, MessagesChat]):
    """A body without max_tokens asks for the tokens of its prompt to be counted."""

    paths = ("/v1/messages", "/v1/messages/count_tokens")
    request_id_headers = (b"request-id", b"x-request-id")
    client_header = b"anthropic-version"

    def parse(self, body: anthropic.CountTokensRequest, options: ParseOptions) -> MessagesChat:
        reject_unknown = options.reject_unknown
        check_unused(body.model_extra, reject_unknown, table=MESSAGES)
        _check_edits(body, reject_unknown)
        turns = message_turns(body, reject_unknown)
        turns, continues = _with_prefill(turns)
        limits = body if isinstance(body, anthropic.MessagesRequest) else None
        thoughts = _thoughts(body, limits.max_tokens if limits is not None else None, reject_unknown)
        record = GenerationRecord()
        return MessagesChat(
            id=f"msg_{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.model,
            sampling=_sampling(limits) if limits is not None else SamplingOverrides(),
            max_tokens=limits.max_tokens if limits is not None else 1,
            default_max_tokens=options.default_max_tokens,
            stop=tuple(filter(None, limits.stop_sequences or ())) if limits is not None else (),
            include_usage=True,
            grammar=_grammar(body, reject_unknown),
            turns=turns,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            template_kwargs=_template_kwargs(body, thoughts),
            tool_use=messages_tool_use(body, reject_unknown, record.warnings),
            thinking_budget=thoughts.budget,
            shows_thoughts=thoughts.shown,
            marks_cache=any(_cache_marks(body)),
            record=record,
        )

    def writer(self, request: MessagesChat) -> MessagesWriter:
        return MessagesWriter(request)

    def error(self, error: Exception, request_id: str) -> ErrorReply:
        return anthropic_error(error, request_id)


def _check_edits(body: anthropic.CountTokensRequest, reject_unknown: bool) -> None:
    """Clearing is for the server's own convenience, and needs nothing done; compaction would change the prompt."""
    management = body.context_management
    if management is None:
        return
    check_unused(management.model_extra, reject_unknown, "context_management.", MESSAGES)
    for i, edit in enumerate(management.edits or ()):
        if not edit.type.startswith("clear_"):
            raise UnsupportedParameter(
                f"Context edits of type {edit.type[:100]!r} are not supported: remove it.",
                param=f"context_management.edits[{i}].type",
            )


def _with_prefill(turns: tuple[ChatTurn, ...]) -> tuple[tuple[ChatTurn, ...], bool]:
    """A trailing assistant turn is the beginning of the answer."""
    last = turns[-1]
    if last.role != "assistant":
        return turns, False
    if last.tool_calls:
        raise InvalidRequest(
            "The last message calls tools: send their results as 'tool_result' blocks of a user message.",
            param="messages",
        )
    return (turns, True) if last.content else (turns[:-1], False)


def _sampling(body: anthropic.MessagesRequest) -> SamplingOverrides:
    return SamplingOverrides(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k)


def _thoughts(body: anthropic.CountTokensRequest, max_tokens: int | None, reject_unknown: bool) -> _Thoughts:
    thinking = body.thinking
    if thinking is None:
        return _Thoughts()
    check_unused(thinking.model_extra, reject_unknown, "thinking.", MESSAGES)
    shown = thinking.display != "omitted"
    match thinking.type:
        case "disabled":
            return _Thoughts(enabled=False, shown=shown)
        case "adaptive" | "between_tools":
            return _Thoughts(shown=shown)
        case "enabled":
            budget = thinking.budget_tokens
            if budget is None:
                raise InvalidRequest("thinking of type 'enabled' needs budget_tokens.", param="thinking.budget_tokens")
            if max_tokens is not None and budget >= max_tokens:
                raise InvalidRequest(
                    f"thinking.budget_tokens is {budget}, and max_tokens is {max_tokens}: the budget must be smaller.",
                    param="thinking.budget_tokens",
                )
            return _Thoughts(enabled=True, budget=budget, shown=shown)
        case other:
            raise UnsupportedParameter(
                f"thinking of type {other[:100]!r} is not supported: give 'enabled', 'adaptive' or 'disabled'.",
                param="thinking.type",
            )


def _template_kwargs(body: anthropic.CountTokensRequest, thoughts: _Thoughts) -> dict[str, object]:
    effort = body.output_config.effort if body.output_config is not None else None
    asked = {"enable_thinking": thoughts.enabled, "reasoning_effort": effort}
    return {name: value for name, value in asked.items() if value is not None}


def _grammar(body: anthropic.CountTokensRequest, reject_unknown: bool) -> Grammar | None:
    """`output_format` is the older name of `output_config.format`."""
    where, asked = "output_format", body.output_format
    if body.output_config is not None:
        check_unused(body.output_config.model_extra, reject_unknown, "output_config.", MESSAGES)
        if body.output_config.format is not None:
            where, asked = "output_config.format", body.output_config.format
    if asked is None:
        return None
    check_unused(asked.model_extra, reject_unknown, f"{where}.", MESSAGES)
    if asked.type != "json_schema":
        raise UnsupportedParameter(
            f"{where} of type {asked.type[:100]!r} is not supported: give 'json_schema'.", param=f"{where}.type"
        )
    if asked.schema_ is None:
        raise InvalidRequest(f"{where} needs a 'schema'.", param=f"{where}.schema")
    return Grammar("json_schema", json_text(asked.schema_, f"{where}.schema"), f"{where}.schema")


def _cache_marks(body: anthropic.CountTokensRequest) -> Iterator[bool]:
    """Whether the client asks for the prompt to be kept, at each place where it can."""
    yield body.cache_control is not None
    contents = [body.system, *(message.content for message in body.messages)]
    for content in contents:
        if isinstance(content, list):
            yield from (block.cache_control is not None for block in content)
    yield from (tool.cache_control is not None for tool in body.tools or ())
