"""OpenAI Responses: converts bodies to a request. Pure: the input already contains the previous response."""

import time
import uuid
from collections.abc import Sequence

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.answer_format import json_object_grammar, json_schema_grammar
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.openai import OpenAIProtocol
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.responses_items import ItemOptions
from mlx_manager.mlx_server.protocols.responses_parameters import RESPONSES
from mlx_manager.mlx_server.protocols.responses_tools import ResponseTools, response_tools
from mlx_manager.mlx_server.protocols.responses_turns import response_turns
from mlx_manager.mlx_server.protocols.responses_writer import ResponsesChat, ResponsesWriter
from mlx_manager.mlx_server.protocols.wire import JsonObject, keeps_off_disk, reasoning_kwargs
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.schemas.responses import (
    AnyItem,
    InputTokensRequest,
    Item,
    PromptCacheOptions,
    Reasoning,
    ResponsesRequest,
    TextConfig,
    Tool,
)
from mlx_manager.mlx_server.types import ChatTurn, Grammar, SamplingOverrides

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"


class Responses(OpenAIProtocol[InputTokensRequest, ResponsesChat]):
    """A body of `InputTokensRequest` alone is a request to count the prompt tokens."""

    paths = ("/v1/responses", "/v1/responses/input_tokens")

    def __init__(self) -> None:
        """Codex sends a request six times if it gets status 422."""
        super().__init__(broken_body_status=400)

    def parse(self, body: InputTokensRequest, options: ParseOptions) -> ResponsesChat:
        reject_unknown = options.reject_unknown
        check_unused(body.model_extra, reject_unknown, table=RESPONSES)
        record = GenerationRecord()
        tools = response_tools(body, reject_unknown, record.warnings)
        answer = body if isinstance(body, ResponsesRequest) else ResponsesRequest(model=body.model)
        cache = _cache_options(answer, reject_unknown)
        serial = uuid.uuid4().hex
        return ResponsesChat(
            id=f"resp_{serial}",
            created=int(time.time()),
            model=body.model,
            sampling=SamplingOverrides(temperature=answer.temperature, top_p=answer.top_p),
            max_tokens=0 if cache.prewarm else answer.max_output_tokens,
            default_max_tokens=options.default_max_tokens,
            stop=(),
            include_usage=True,
            logprobs=_logprobs(answer),
            grammar=_grammar(body.text, reject_unknown),
            keep_alive_seconds=answer.keep_alive,
            keep_off_disk=keeps_off_disk(answer.prompt_cache_retention),
            turns=_turns(body, tools, reject_unknown, record),
            template_kwargs=_template_kwargs(body.reasoning, reject_unknown),
            tool_use=tools.use,
            record=record,
            options=ItemOptions(
                serial,
                tools.by_name,
                summarizes=_summary(body.reasoning) is not None,
                encodes_reasoning=ENCRYPTED_REASONING in (answer.include or ()),
            ),
            echo=_echo(body, answer),
            truncates=body.truncation == "auto",
            prewarms=cache.prewarm,
            compare_with=cache.comparison_response_id,
        )

    def writer(self, request: ResponsesChat) -> ResponsesWriter:
        return ResponsesWriter(request)


def input_items(body: InputTokensRequest) -> Sequence[AnyItem]:
    """A string is a user message. It may be empty: Codex sends one to load the model."""
    if isinstance(body.input, str):
        return [Item(role="user", content=body.input)]
    return body.input or ()


def _turns(
    body: InputTokensRequest, tools: ResponseTools, reject_unknown: bool, record: GenerationRecord
) -> tuple[ChatTurn, ...]:
    turns = response_turns(input_items(body), tools.name_of_call, reject_unknown, record)
    if body.instructions:
        turns.insert(0, ChatTurn("system", body.instructions))
    if not turns:
        raise InvalidRequest("input is empty. Send a string or items.", param="input")
    return tuple(turns)


def _cache_options(body: ResponsesRequest, reject_unknown: bool) -> PromptCacheOptions:
    if body.prompt_cache_options is None:
        return PromptCacheOptions()
    check_unused(body.prompt_cache_options.model_extra, reject_unknown, "prompt_cache_options.", RESPONSES)
    return body.prompt_cache_options


def _logprobs(body: ResponsesRequest) -> int | None:
    if body.top_logprobs or LOGPROBS in (body.include or ()):
        return body.top_logprobs if body.top_logprobs is not None else 0
    return None


def _grammar(text: TextConfig | None, reject_unknown: bool) -> Grammar | None:
    if text is None:
        return None
    check_unused(text.model_extra, reject_unknown, "text.", RESPONSES)
    requested = text.format
    if requested is None:
        return None
    check_unused(requested.model_extra, reject_unknown, "text.format.", RESPONSES)
    match requested.type:
        case "text":
            return None
        case "json_object":
            return json_object_grammar("text.format")
        case "json_schema":
            return json_schema_grammar(requested, "text.format.schema")
        case other:
            raise UnsupportedParameter(
                f"text.format of type {other[:100]!r} is not supported. Use 'text', 'json_object' or 'json_schema'.",
                param="text.format.type",
            )


def _template_kwargs(reasoning: Reasoning | None, reject_unknown: bool) -> dict[str, object]:
    if reasoning is None:
        return {}
    check_unused(reasoning.model_extra, reject_unknown, "reasoning.", RESPONSES)
    return reasoning_kwargs(reasoning.effort)


def _summary(reasoning: Reasoning | None) -> str | None:
    """Also reads `generate_summary`, the older name of `summary`."""
    if reasoning is None:
        return None
    return reasoning.summary if reasoning.summary is not None else reasoning.generate_summary


def _echo(body: InputTokensRequest, answer: ResponsesRequest) -> JsonObject:
    """Request fields that SDKs expect in the response."""
    effort = body.reasoning.effort if body.reasoning is not None else None
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text is not None else {}
    choice = body.tool_choice if body.tool_choice is not None else "auto"
    cache = answer.prompt_cache_options
    return {
        "instructions": body.instructions,
        "max_output_tokens": answer.max_output_tokens,
        "max_tool_calls": None,
        "metadata": answer.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": answer.prompt_cache_key,
        **({"prompt_cache_options": _applied(cache)} if cache is not None else {}),
        "prompt_cache_retention": answer.prompt_cache_retention,
        "reasoning": {"effort": effort, "summary": _summary(body.reasoning)},
        "safety_identifier": answer.safety_identifier,
        "service_tier": "default",
        "store": answer.store is not False,
        "temperature": answer.temperature if answer.temperature is not None else 1.0,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(exclude_none=True),
        "tools": [_tool(tool) for tool in body.tools or ()],
        "top_logprobs": answer.top_logprobs if answer.top_logprobs is not None else 0,
        "top_p": answer.top_p if answer.top_p is not None else 1.0,
        "truncation": body.truncation if body.truncation is not None else "disabled",
        "user": answer.user,
    }


def _applied(options: PromptCacheOptions) -> JsonObject:
    """SDKs require the first two."""
    return {
        "mode": options.mode if options.mode is not None else "implicit",
        "ttl": options.ttl if options.ttl is not None else "30m",
        "comparison_response_id": options.comparison_response_id,
    }


def _tool(tool: Tool) -> JsonObject:
    written: JsonObject = tool.model_dump(exclude_unset=True)
    return {"parameters": None, "strict": None, **written} if tool.type == "function" else written
