"""What holds an answer to its form: a grammar, found valid before admission, and where the model's thoughts end."""

import json
import logging
from functools import lru_cache

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.grammars.validation import GrammarValidator
from mlx_manager.mlx_server.grammars.verdict import Verdict
from mlx_manager.mlx_server.models.pool import LoadedModel
from mlx_manager.mlx_server.parsers.output import ReasoningMarkers
from mlx_manager.mlx_server.parsers.pieces import Tool, ToolGrammar
from mlx_manager.mlx_server.services.prompts import Prompt
from mlx_manager.mlx_server.types import SCHEMA_LABEL, ChatRequest, CompletionRequest, Grammar, Thinking

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
    if request.tool_use.required:
        calls = _calls(model, request, "tool_choice")
        return _noted(await validator.compile(Grammar("lark", calls.lark, "tools")), request, calls.unenforced)
    if request.grammar is None:
        return None
    calls = _calls(model, request, request.grammar.param)
    grammar = Grammar("lark", _calls_or(request.grammar, calls), "tools")
    return _noted(await validator.compile(grammar), request, calls.unenforced)


def _noted(verdict: Verdict, request: ChatRequest | CompletionRequest, unenforced: tuple[str, ...] = ()) -> str:
    """The verdict's grammar; the keywords that it does not enforce go into the request's record and, once, the log."""
    request.record.warnings += [*unenforced, *verdict.unenforced]
    for sentence in request.record.warnings:
        _warn_once(sentence)
    return verdict.grammar


@lru_cache(maxsize=1000)
def _warn_once(sentence: str) -> None:
    logger.warning("A grammar leaves out a keyword of a JSON schema: %s", sentence)


def _calls(model: LoadedModel, request: ChatRequest, param: str) -> ToolGrammar:
    """A grammar of nothing but calls, which begins with its rule `start`."""
    tools = [Tool(tool.name, tool.parameters, tool.strict) for tool in request.tool_use.callable]
    visible = model.output_format.visible_special_tokens(with_tools=True)
    special_tokens = {name: token for name, token in model.language.special_tokens.items() if name in visible}
    grammar = model.output_format.tool_call_grammar(
        tools, parallel=request.tool_use.parallel, special_tokens=special_tokens
    )
    if grammar is None:
        raise UnsupportedParameter(
            f"Model {model.model_id!r} writes tool calls in the form {model.output_format.name!r}, which cannot be "
            "enforced. Leave tool_choice at 'auto', and response_format out.",
            param=param,
        )
    return grammar


def _calls_or(answer: Grammar, calls: ToolGrammar) -> str:
    if answer.kind not in ("json_object", "json_schema"):
        raise InvalidRequest(
            f"{answer.param} does not go with tools that may be called: set tool_choice to 'none', or ask for JSON.",
            param=answer.param,
        )
    schema = json.loads(answer.source) if answer.kind == "json_schema" else {"type": "object"}
    if isinstance(schema, dict):
        schema[SCHEMA_LABEL] = {"what": answer.param.partition(".")[0], "strict": answer.strict}
    calls_rule = calls.lark.replace("\nstart:", "\ncalls:", 1)
    return f"{calls_rule}\nanswer: %json {json.dumps(schema)}\nstart: calls | answer\n"


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
