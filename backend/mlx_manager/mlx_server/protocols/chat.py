"""Chat Completions: converts bodies to `ChatRequest`, and events to chunks or one response. Pure."""

import time
import uuid
from typing import assert_never

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.answer_format import chat_grammar
from mlx_manager.mlx_server.protocols.base import ParseOptions
from mlx_manager.mlx_server.protocols.chat_turns import chat_turns
from mlx_manager.mlx_server.protocols.logprobs import chat_logprobs
from mlx_manager.mlx_server.protocols.openai import ChunkProtocol, OpenAIWriter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.tools import tool_use
from mlx_manager.mlx_server.protocols.wire import (
    JsonObject,
    keeps_off_disk,
    min_tokens,
    reasoning_kwargs,
    sampling_overrides,
    stop_strings,
    system_fingerprint,
    token_limit,
    usage_json,
    wants_usage,
)
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import (
    ChatRequest,
    Choice,
    ChoiceFinished,
    Completed,
    Generation,
    GenerationEvent,
    Logprobs,
    Prefilled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
)

RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Template arguments that the server sets itself. `chat_template_kwargs` must not override them."""


class ChatCompletions(ChunkProtocol[openai.ChatCompletionRequest, ChatRequest]):
    paths = ("/v1/chat/completions",)

    def parse(self, body: openai.ChatCompletionRequest, options: ParseOptions) -> ChatRequest:
        return to_request(body, options.default_max_tokens, options.reject_unknown)

    def writer(self, request: ChatRequest) -> "ChatBuilder":
        return ChatBuilder(request)


def to_request(
    body: openai.ChatCompletionRequest, default_max_tokens: int, reject_unknown: bool = False
) -> ChatRequest:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    check_unused(body.model_extra, reject_unknown)
    max_tokens = token_limit(
        num_predict=body.num_predict,
        max_tokens=body.max_tokens,
        max_completion_tokens=body.max_completion_tokens,
    )
    return ChatRequest(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        sampling=sampling_overrides(body),
        max_tokens=max_tokens,
        default_max_tokens=default_max_tokens,
        stop=stop_strings(body.stop),
        include_usage=wants_usage(body, reject_unknown),
        n=body.n if body.n is not None else 1,
        logprobs=_logprobs(body),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        min_tokens=min_tokens(body, max_tokens),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens is not False,
        grammar=chat_grammar(body, reject_unknown),
        keep_alive_seconds=body.keep_alive,
        keep_off_disk=keeps_off_disk(body.prompt_cache_retention),
        turns=chat_turns(body.messages, reject_unknown),
        add_generation_prompt=_add_generation_prompt(body),
        continue_final_message=body.continue_final_message,
        template_kwargs=_template_kwargs(body),
        tool_use=tool_use(body, reject_unknown),
        thinking_budget=body.thinking_budget,
    )


def _logprobs(body: openai.ChatCompletionRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs if body.top_logprobs is not None else 0
    if body.top_logprobs is not None:
        raise InvalidRequest("top_logprobs requires logprobs. Set logprobs to true.", param="top_logprobs")
    return None


def _add_generation_prompt(body: openai.ChatCompletionRequest) -> bool:
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidRequest(
            "add_generation_prompt and continue_final_message are mutually exclusive. Set only one of them to true.",
            param="continue_final_message",
        )
    return body.add_generation_prompt if body.add_generation_prompt is not None else not body.continue_final_message


def _template_kwargs(body: openai.ChatCompletionRequest) -> dict[str, object]:
    """`chat_template_kwargs` take precedence over the arguments derived from `reasoning_effort`."""
    given = body.chat_template_kwargs if body.chat_template_kwargs is not None else {}
    for name in sorted(RESERVED_TEMPLATE_KWARGS & given.keys()):
        raise UnsupportedParameter(
            f"chat_template_kwargs cannot set {name!r}. Remove it.", param=f"chat_template_kwargs.{name}"
        )
    requested = reasoning_kwargs(body.reasoning_effort)
    if body.enable_thinking is not None:
        if requested.get("enable_thinking", body.enable_thinking) != body.enable_thinking:
            raise InvalidRequest(
                f"enable_thinking={str(body.enable_thinking).lower()} contradicts "
                f"reasoning_effort={body.reasoning_effort!r}. Send only one of them.",
                param="enable_thinking",
            )
        requested["enable_thinking"] = body.enable_thinking
    return {**requested, **given}


class ChatBuilder(OpenAIWriter):
    def __init__(self, request: ChatRequest) -> None:
        super().__init__()
        self._request = request

    def event(self, event: GenerationEvent) -> list[JsonObject]:
        match event:
            case Started():
                return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._request.n)]
            case Prefilled():
                return []
            case TextDelta(index, text, logprobs):
                return [self._chunk(index, {"content": text}, logprobs)]
            case ReasoningDelta(index, text, logprobs):
                return [self._chunk(index, _reasoning(text), logprobs)]
            case RefusalDelta(index, text):
                return [self._chunk(index, {"refusal": text})]
            case ToolCallStarted():
                call: JsonObject = {
                    "id": event.id,
                    "type": "function",
                    "function": {"name": event.name, "arguments": ""},
                }
                return [self._chunk(event.index, {"tool_calls": [{"index": event.call, **call}]})]
            case ToolCallDelta(index, number, arguments):
                delta = {"index": number, "function": {"arguments": arguments}}
                return [self._chunk(index, {"tool_calls": [delta]})]
            case ChoiceFinished(index, reason):
                return [self._chunk(index, {}, finish_reason=reason)]
            case Completed(usage):
                if not self._request.include_usage:
                    return []
                return [{**self._head("chat.completion.chunk"), "choices": [], "usage": usage_json(usage)}]
            case _:
                assert_never(event)

    def response(self, generation: Generation) -> JsonObject:
        choices = [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": chat_logprobs(choice.logprobs) if self._request.logprobs is not None else None,
                "finish_reason": choice.finish_reason,
            }
            for choice in generation.choices
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_json(generation.usage)}

    def _chunk(
        self, index: int, delta: JsonObject, logprobs: Logprobs = (), finish_reason: str | None = None
    ) -> JsonObject:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": chat_logprobs(logprobs) if logprobs else None,
            "finish_reason": finish_reason,
        }
        usage: JsonObject = {"usage": None} if self._request.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, object_name: str) -> JsonObject:
        request = self._request
        return {
            "id": request.id,
            "object": object_name,
            "created": request.created,
            "model": request.model,
            "system_fingerprint": system_fingerprint(request.model),
        }


def _message(choice: Choice) -> JsonObject:
    """Content is null if the answer is only tool calls or a refusal."""
    content = choice.text if choice.text or not (choice.tool_calls or choice.refusal) else None
    message: JsonObject = {"role": "assistant", "content": content, "refusal": choice.refusal or None}
    if choice.reasoning:
        message |= _reasoning(choice.reasoning)
    if choice.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
    return message


def _reasoning(text: str) -> JsonObject:
    """Reasoning under both names that clients read."""
    return {"reasoning_content": text, "reasoning": text}


def _tool_call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
