"""Constraints on an answer: its grammar, validated before admission, and the markers of its reasoning."""

import json
import logging
from functools import lru_cache

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.grammars.validation import GrammarValidator
from mlx_manager.mlx_server.grammars.verdict import Verdict
from mlx_manager.mlx_server.models.pool import LoadedModel
from mlx_manager.mlx_server.parsers.custom import custom_call_rules, text_with_custom_calls
from mlx_manager.mlx_server.parsers.output import ReasoningMarkers
from mlx_manager.mlx_server.parsers.pieces import Tool, ToolGrammar
from mlx_manager.mlx_server.services.prompts import Prompt
from mlx_manager.mlx_server.types import SCHEMA_LABEL, ChatRequest, CompletionRequest, Grammar, Thinking, ToolDefinition

logger = logging.getLogger(__name__)


async def compile_grammar(
    validator: GrammarValidator, model: LoadedModel, request: ChatRequest | CompletionRequest
) -> str | None:
    """The llguidance grammar of the request's answers. Raises InvalidRequest with the field in `param`.

    A required tool call makes it a grammar of calls. With optional calls and a response format, it allows either.
    The request's record gets a warning for each schema keyword that the grammar does not enforce.
    """
    asked = await validator.compile(request.grammar) if request.grammar is not None else None
    if not isinstance(request, ChatRequest) or not request.tool_use.callable:
        return _with_warnings(asked, request) if asked is not None else None
    custom_rules = await _custom_rules(validator, model, request)
    use = request.tool_use
    if not use.required and request.grammar is None:
        if not custom_rules or all(tool.grammar is None for tool in use.callable):
            return None
        special_tokens = tuple(_visible_tokens(model).values())
        lark = text_with_custom_calls(custom_rules, special_tokens, parallel=use.parallel)
        return _with_warnings(await validator.compile(Grammar("lark", lark, "tools")), request)
    functions = [tool for tool in use.callable if not (tool.custom and custom_rules)]
    calls = _calls(model, request, functions) if functions else ToolGrammar("%llguidance {}\n")
    lark = _any_of(calls, custom_rules, None if use.required else request.grammar)
    return _with_warnings(await validator.compile(Grammar("lark", lark, "tools")), request, calls.unenforced)


async def _custom_rules(validator: GrammarValidator, model: LoadedModel, request: ChatRequest) -> str:
    """Rules for calls of custom tools; "" without custom tools, or if the model writes them like function calls.

    Each tool's grammar is validated alone, so an error names the tool.
    """
    use = request.tool_use
    custom = [tool for tool in use.callable if tool.custom]
    if not model.output_format.has_custom_calls:
        request.record.warnings += [
            f"tool {tool.name!r}: its grammar is not enforced with this model's call format"
            for tool in custom
            if tool.grammar is not None
        ]
        return ""
    grammars = {
        tool.name: _lark_of(await validator.compile(tool.grammar)) for tool in custom if tool.grammar is not None
    }
    tools = [Tool(tool.name, tool.parameters, custom=True) for tool in custom]
    return custom_call_rules(tools, grammars, parallel=use.parallel) if custom else ""


def _lark_of(verdict: Verdict) -> str:
    lark: str = json.loads(verdict.grammar)["grammars"][0]["lark_grammar"]
    return lark


def _with_warnings(verdict: Verdict, request: ChatRequest | CompletionRequest, unenforced: tuple[str, ...] = ()) -> str:
    """The verdict's grammar. Adds the keywords that it does not enforce to the record and, once each, to the log."""
    left_out = [*unenforced, *verdict.unenforced]
    request.record.warnings += left_out
    for sentence in left_out:
        _warn_once(sentence)
    return verdict.grammar


@lru_cache(maxsize=1000)
def _warn_once(sentence: str) -> None:
    logger.warning("A grammar does not enforce a keyword of a JSON schema: %s", sentence)


def _calls(model: LoadedModel, request: ChatRequest, functions: list[ToolDefinition]) -> ToolGrammar:
    """A grammar of calls only. Its start rule is `start`."""
    grammar = model.output_format.tool_call_grammar(
        [Tool(tool.name, tool.parameters, tool.strict) for tool in functions],
        parallel=request.tool_use.parallel,
        special_tokens=_visible_tokens(model),
    )
    if grammar is None:
        asked = None if request.tool_use.required else request.grammar
        raise UnsupportedParameter(
            f"Model {model.model_id!r} writes tool calls in the format {model.output_format.name!r}, which a grammar "
            "cannot enforce. Set tool_choice='auto', and remove response_format.",
            param=asked.param if asked is not None else "tool_choice",
        )
    return grammar


def _visible_tokens(model: LoadedModel) -> dict[str, int]:
    visible = model.output_format.visible_special_tokens(with_tools=True)
    return {name: token for name, token in model.language.special_tokens.items() if name in visible}


def _any_of(calls: ToolGrammar, custom_rules: str, answer: Grammar | None) -> str:
    """Lark for calls of functions or custom tools, or an answer in the requested format."""
    lark = calls.lark.replace("\nstart:", "\ncalls:", 1)
    options = ["calls"] if lark != calls.lark else []
    if custom_rules:
        options.append("custom_calls")
        lark += custom_rules
    if answer is not None:
        options.append("answer")
        lark += f"answer: %json {_answer_schema(answer)}\n"
    return f"{lark}start: {' | '.join(options)}\n"


def _answer_schema(answer: Grammar) -> str:
    if answer.kind not in ("json_object", "json_schema"):
        raise InvalidRequest(
            f"{answer.param} cannot be combined with callable tools. Set tool_choice='none', or use a JSON format.",
            param=answer.param,
        )
    schema = json.loads(answer.source) if answer.kind == "json_schema" else {"type": "object"}
    if isinstance(schema, dict):
        schema[SCHEMA_LABEL] = {"what": answer.param.partition(".")[0], "strict": answer.strict}
    return json.dumps(schema)


def resolve_thinking(
    model: LoadedModel, request: ChatRequest | CompletionRequest, prompt: Prompt, has_grammar: bool
) -> Thinking | None:
    """The tokens around the model's reasoning, for a grammar of the answer after it, or for a thinking budget.

    None if the request has neither, or the model will not think. Raises UnsupportedParameter for a budget that cannot
    be enforced.
    """
    if not isinstance(request, ChatRequest) or (markers := model.output_format.reasoning) is None:
        return None
    is_off = request.template_kwargs.get("enable_thinking") is False and not prompt.opens_reasoning
    if request.thinking_budget is None and (is_off or not has_grammar):
        return None
    open_tokens, close_tokens = _marker_tokens(model, markers)
    open_token = open_tokens[0] if len(open_tokens) == 1 else None
    if prompt.opens_reasoning or open_token is not None:
        return Thinking(
            open_token=None if prompt.opens_reasoning else open_token,
            close_tokens=close_tokens,
            budget=request.thinking_budget,
            again_token=open_token if request.thinking_budget is not None else None,
        )
    if request.thinking_budget is not None:
        raise UnsupportedParameter(
            f"Model {model.model_id!r} has no single token that starts its reasoning, so thinking_budget cannot be "
            "enforced. Remove it.",
            param="thinking_budget",
        )
    return None


def _marker_tokens(model: LoadedModel, markers: ReasoningMarkers) -> tuple[tuple[int, ...], tuple[int, ...]]:
    begin, end = markers.tokens if markers.tokens else (markers.start, markers.end)
    return _tokens(model, begin), _tokens(model, end)


def _tokens(model: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer.encode(text, add_special_tokens=False))
