"""Anthropic Messages: converts bodies to a request, and errors to Anthropic's envelope. Pure."""

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
from mlx_manager.mlx_server.protocols.wire import json_text, keeps_off_disk
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.schemas import anthropic
from mlx_manager.mlx_server.types import ChatTurn, Grammar, SamplingOverrides


@dataclass(frozen=True, slots=True)
class _Thinking:
    """The thinking settings of a request body."""

    enabled: bool | None = None
    budget: int | None = None
    shown: bool = True


class Messages(Protocol[anthropic.CountTokensRequest, MessagesChat]):
    """A body without max_tokens is a request to count the prompt tokens."""

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
        thinking = _thinking(body, limits.max_tokens if limits is not None else None, reject_unknown)
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
            template_kwargs=_template_kwargs(body, thinking),
            tool_use=messages_tool_use(body, reject_unknown, record.warnings),
            thinking_budget=thinking.budget,
            keep_off_disk=keeps_off_disk(limits.prompt_cache_retention if limits is not None else None),
            shows_reasoning=thinking.shown,
            marks_cache=any(_cache_marks(body)),
            compare_with=_previous_message(limits, reject_unknown),
            record=record,
        )

    def writer(self, request: MessagesChat) -> MessagesWriter:
        return MessagesWriter(request)

    def error(self, error: Exception, request_id: str) -> ErrorReply:
        return anthropic_error(error, request_id)


def _check_edits(body: anthropic.CountTokensRequest, reject_unknown: bool) -> None:
    """Ignores clearing edits, which are optional for the server. Refuses compaction, which changes the prompt."""
    management = body.context_management
    if management is None:
        return
    check_unused(management.model_extra, reject_unknown, "context_management.", MESSAGES)
    for i, edit in enumerate(management.edits or ()):
        if not edit.type.startswith("clear_"):
            raise UnsupportedParameter(
                f"Context edits of type {edit.type[:100]!r} are not supported. Remove the edit.",
                param=f"context_management.edits[{i}].type",
            )


def _with_prefill(turns: tuple[ChatTurn, ...]) -> tuple[tuple[ChatTurn, ...], bool]:
    """Treats a trailing assistant turn as the beginning of the answer."""
    last = turns[-1]
    if last.role != "assistant":
        return turns, False
    if last.tool_calls:
        raise InvalidRequest(
            "The last message calls tools. Send their results as 'tool_result' blocks of a user message.",
            param="messages",
        )
    return (turns, True) if last.content else (turns[:-1], False)


def _sampling(body: anthropic.MessagesRequest) -> SamplingOverrides:
    return SamplingOverrides(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k)


def _thinking(body: anthropic.CountTokensRequest, max_tokens: int | None, reject_unknown: bool) -> _Thinking:
    thinking = body.thinking
    if thinking is None:
        return _Thinking()
    check_unused(thinking.model_extra, reject_unknown, "thinking.", MESSAGES)
    shown = thinking.display != "omitted"
    match thinking.type:
        case "disabled":
            return _Thinking(enabled=False, shown=shown)
        case "adaptive" | "between_tools":
            return _Thinking(shown=shown)
        case "enabled":
            budget = thinking.budget_tokens
            if budget is None:
                raise InvalidRequest(
                    "thinking of type 'enabled' has no budget_tokens. Send it.", param="thinking.budget_tokens"
                )
            if max_tokens is not None and budget >= max_tokens:
                raise InvalidRequest(
                    f"thinking.budget_tokens={budget} must be less than max_tokens={max_tokens}. Raise max_tokens.",
                    param="thinking.budget_tokens",
                )
            return _Thinking(enabled=True, budget=budget, shown=shown)
        case other:
            raise UnsupportedParameter(
                f"thinking of type {other[:100]!r} is not supported. Use 'enabled', 'adaptive' or 'disabled'.",
                param="thinking.type",
            )


def _template_kwargs(body: anthropic.CountTokensRequest, thinking: _Thinking) -> dict[str, object]:
    effort = body.output_config.effort if body.output_config is not None else None
    requested = {"enable_thinking": thinking.enabled, "reasoning_effort": effort}
    return {name: value for name, value in requested.items() if value is not None}


def _grammar(body: anthropic.CountTokensRequest, reject_unknown: bool) -> Grammar | None:
    """Also reads `output_format`, the older name of `output_config.format`."""
    where, requested = "output_format", body.output_format
    if body.output_config is not None:
        check_unused(body.output_config.model_extra, reject_unknown, "output_config.", MESSAGES)
        if body.output_config.format is not None:
            where, requested = "output_config.format", body.output_config.format
    if requested is None:
        return None
    check_unused(requested.model_extra, reject_unknown, f"{where}.", MESSAGES)
    if requested.type != "json_schema":
        raise UnsupportedParameter(
            f"{where} of type {requested.type[:100]!r} is not supported. Use 'json_schema'.", param=f"{where}.type"
        )
    if requested.schema_ is None:
        raise InvalidRequest(f"{where} has no 'schema'. Send a JSON schema.", param=f"{where}.schema")
    return Grammar("json_schema", json_text(requested.schema_, f"{where}.schema"), f"{where}.schema")


def _previous_message(body: anthropic.MessagesRequest | None, reject_unknown: bool) -> str | None:
    """The id of the answer to compare the prompt with. Null asks for no comparison."""
    if body is None or body.diagnostics is None:
        return None
    check_unused(body.diagnostics.model_extra, reject_unknown, "diagnostics.", MESSAGES)
    return body.diagnostics.previous_message_id


def _cache_marks(body: anthropic.CountTokensRequest) -> Iterator[bool]:
    """For each place that may have `cache_control`: whether it does."""
    yield body.cache_control is not None
    contents = [body.system, *(message.content for message in body.messages)]
    for content in contents:
        if isinstance(content, list):
            yield from (block.cache_control is not None for block in content)
    yield from (tool.cache_control is not None for tool in body.tools or ())
