"""What holds an answer to its form: a grammar, found valid before admission, and where the model's thoughts end."""

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
    """llguidance's form of what the request's answers have to follow. Raises InvalidRequest, which names the field.

    Where a call is required that is a call; where one is possible, an answer in a form asked for is that, or calls.
    What the grammar leaves out of a schema goes into the request's record.
    """
    asked = await validator.compile(request.grammar) if request.grammar is not None else None
    if not isinstance(request, ChatRequest) or not request.tool_use.callable:
        return _noted(asked, request) if asked is not None else None
    custom_rules = await _custom_rules(validator, model, request)
    use = request.tool_use
    if not use.required and request.grammar is None:
        if not custom_rules or all(tool.grammar is None for tool in use.callable):
            return None
        special_tokens = tuple(_visible_tokens(model).values())
        lark = text_with_custom_calls(custom_rules, special_tokens, parallel=use.parallel)
        return _noted(await validator.compile(Grammar("lark", lark, "tools")), request)
    functions = [tool for tool in use.callable if not (tool.custom and custom_rules)]
    calls = _calls(model, request, functions) if functions else ToolGrammar("%llguidance {}\n")
    lark = _any_of(calls, custom_rules, None if use.required else request.grammar)
    return _noted(await validator.compile(Grammar("lark", lark, "tools")), request, calls.unenforced)


async def _custom_rules(validator: GrammarValidator, model: LoadedModel, request: ChatRequest) -> str:
    """Rules for the calls of custom tools; "" where there are none, or where they are written as functions' are.

    Each tool's grammar is found valid by itself, so that a message is about the tool.
    """
    use = request.tool_use
    custom = [tool for tool in use.callable if tool.custom]
    if not model.output_format.has_custom_calls:
        request.record.warnings += [
            f"tool {tool.name!r}: its grammar is not enforced with this model's way to write calls"
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


def _noted(verdict: Verdict, request: ChatRequest | CompletionRequest, unenforced: tuple[str, ...] = ()) -> str:
    """The verdict's grammar; the keywords that it does not enforce go into the request's record and, once, the log."""
    left_out = [*unenforced, *verdict.unenforced]
    request.record.warnings += left_out
    for sentence in left_out:
        _warn_once(sentence)
    return verdict.grammar


@lru_cache(maxsize=1000)
def _warn_once(sentence: str) -> None:
    logger.warning("A grammar leaves out a keyword of a JSON schema: %s", sentence)


def _calls(model: LoadedModel, request: ChatRequest, functions: list[ToolDefinition]) -> ToolGrammar:
    """A grammar of nothing but calls, which begins with its rule `start`."""
    grammar = model.output_format.tool_call_grammar(
        [Tool(tool.name, tool.parameters, tool.strict) for tool in functions],
        parallel=request.tool_use.parallel,
        special_tokens=_visible_tokens(model),
    )
    if grammar is None:
        asked = None if request.tool_use.required else request.grammar
        raise UnsupportedParameter(
            f"Model {model.model_id!r} writes tool calls in the form {model.output_format.name!r}, which cannot be "
            "enforced. Leave tool_choice at 'auto', and response_format out.",
            param=asked.param if asked is not None else "tool_choice",
        )
    return grammar


def _visible_tokens(model: LoadedModel) -> dict[str, int]:
    visible = model.output_format.visible_special_tokens(with_tools=True)
    return {name: token for name, token in model.language.special_tokens.items() if name in visible}


def _any_of(calls: ToolGrammar, custom_rules: str, answer: Grammar | None) -> str:
    """Calls of functions or of custom tools, or an answer in the form that is asked for."""
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
            f"{answer.param} does not go with tools that may be called: set tool_choice to 'none', or ask for JSON.",
            param=answer.param,
        )
    schema = json.loads(answer.source) if answer.kind == "json_schema" else {"type": "object"}
    if isinstance(schema, dict):
        schema[SCHEMA_LABEL] = {"what": answer.param.partition(".")[0], "strict": answer.strict}
    return json.dumps(schema)


def resolve_thinking(
    model: LoadedModel, request: ChatRequest | CompletionRequest, prompt: Prompt, has_grammar: bool
) -> Thinking | None:
    """Where thoughts begin and end, for a grammar that is for what comes behind them, or for a budget of thoughts.

    None where neither is asked for, or no thoughts are to be expected. Raises UnsupportedParameter for a budget that
    cannot be held.
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
            f"Model {model.model_id!r} has no single token that begins its reasoning, so its length cannot be bounded. "
            "Leave thinking_budget out.",
            param="thinking_budget",
        )
    return None


def _marker_tokens(model: LoadedModel, markers: ReasoningMarkers) -> tuple[tuple[int, ...], tuple[int, ...]]:
    begin, end = markers.tokens if markers.tokens else (markers.start, markers.end)
    return _tokens(model, begin), _tokens(model, end)


def _tokens(model: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(model.tokenizer.encode(text, add_special_tokens=False))
