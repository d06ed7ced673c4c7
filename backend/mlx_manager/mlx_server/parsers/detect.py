"""Detects the output format of a model, first from its chat template (fine-tunes keep it), then from its family."""

from collections.abc import Container
from dataclasses import replace

from mlx_manager.mlx_server.parsers import syntax
from mlx_manager.mlx_server.parsers.deepseek import DEEPSEEK_CALLS, KIMI_K2_CALLS
from mlx_manager.mlx_server.parsers.formats import HarmonyFormat, OutputFormat, TaggedFormat
from mlx_manager.mlx_server.parsers.gemma import GemmaCalls, ToolCodeCalls
from mlx_manager.mlx_server.parsers.glm import GlmCalls
from mlx_manager.mlx_server.parsers.hermes import HermesCalls
from mlx_manager.mlx_server.parsers.llama import LlamaCalls
from mlx_manager.mlx_server.parsers.mistral import MistralCalls
from mlx_manager.mlx_server.parsers.output import ReasoningMarkers
from mlx_manager.mlx_server.parsers.phi import PhiCalls
from mlx_manager.mlx_server.parsers.pythonic import BracketedPythonicCalls
from mlx_manager.mlx_server.parsers.qwen_coder import (
    DSML_CALLS,
    MINICPM_CALLS,
    MINIMAX_CALLS,
    MUSE_CALLS,
    QWEN_CODER_CALLS,
    FunctionCalls,
)
from mlx_manager.mlx_server.parsers.syntax import CallSyntax
from mlx_manager.mlx_server.parsers.xtml import CLOSE, OPEN, SEPARATOR, XtmlCalls

TOOL_CALL_TAGS = frozenset({"<tool_call>", "</tool_call>"})

PLAIN = TaggedFormat("plain")
HERMES = TaggedFormat("hermes", (HermesCalls(),), syntax.HERMES, TOOL_CALL_TAGS)
LLAMA = TaggedFormat(
    "llama", (LlamaCalls(),), syntax.LLAMA, frozenset({"<|python_tag|>", "<|python_start|>", "<|python_end|>"})
)
LLAMA_PYTHONIC = replace(LLAMA, name="llama_pythonic", syntax=syntax.PYTHONIC)
BRACKETED_PYTHONIC = TaggedFormat(
    "bracketed_pythonic",
    (BracketedPythonicCalls(),),
    syntax.BRACKETED_PYTHONIC,
    frozenset({"<|tool_call_start|>", "<|tool_call_end|>"}),
)


def _of_functions(name: str, calls: FunctionCalls, written: CallSyntax | None) -> TaggedFormat:
    return TaggedFormat(name, (calls,), written, frozenset(filter(None, (calls.call, calls.call_end))))


QWEN_CODER = _of_functions("qwen_coder", QWEN_CODER_CALLS, syntax.QWEN_CODER)
MINIMAX = _of_functions("minimax", MINIMAX_CALLS, syntax.MINIMAX)
MUSE = _of_functions("muse", MUSE_CALLS, syntax.MUSE)
MINICPM = _of_functions("minicpm", MINICPM_CALLS, syntax.MINICPM)
DSML = replace(_of_functions("dsml", DSML_CALLS, None), call_tokens=frozenset({"｜DSML｜"}))
GLM = TaggedFormat("glm", (GlmCalls(),), syntax.GLM, GlmCalls().tags)
LONGCAT = TaggedFormat("longcat", (GlmCalls("longcat_"),), syntax.LONGCAT, GlmCalls("longcat_").tags)
MISTRAL_LIST = TaggedFormat(
    "mistral_list", (MistralCalls(),), syntax.MISTRAL_LIST, frozenset({"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"})
)
MISTRAL = replace(MISTRAL_LIST, name="mistral", syntax=syntax.MISTRAL)
PHI = TaggedFormat("phi", (PhiCalls(),), syntax.PHI, frozenset({"<|tool_call|>", "<|/tool_call|>"}))
DEEPSEEK = TaggedFormat("deepseek", (DEEPSEEK_CALLS,), syntax.DEEPSEEK, DEEPSEEK_CALLS.tokens)
DEEPSEEK_FENCED = replace(DEEPSEEK, name="deepseek_fenced", syntax=syntax.DEEPSEEK_FENCED)
KIMI_K2 = TaggedFormat("kimi_k2", (KIMI_K2_CALLS,), syntax.KIMI_K2, KIMI_K2_CALLS.tokens)
KIMI_K3 = TaggedFormat("kimi_k3", (XtmlCalls(),), syntax.KIMI_K3, frozenset({OPEN, CLOSE, SEPARATOR}))
FUNCTION_GEMMA = TaggedFormat(
    "function_gemma",
    (GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>"),),
    syntax.FUNCTION_GEMMA,
    frozenset({"<start_function_call>", "<end_function_call>", "<escape>"}),
)
GEMMA_4 = TaggedFormat(
    "gemma_4",
    (GemmaCalls("<|tool_call>", "<tool_call|>", '<|"|>'),),
    syntax.GEMMA_4,
    frozenset({"<|tool_call>", "<tool_call|>", '<|"|>'}),
)
TOOL_CODE = TaggedFormat("tool_code", (ToolCodeCalls(),), syntax.PYTHONIC)

_BY_TEMPLATE: tuple[tuple[tuple[str, ...], TaggedFormat], ...] = (
    (("<|tool_call>", "<tool_call|>"), GEMMA_4),
    (("<start_function_call>",), FUNCTION_GEMMA),
    (("<minimax:tool_call>",), MINIMAX),
    (("<atem:function_calls>",), MUSE),
    (("｜DSML｜",), DSML),
    (("<longcat_tool_call>",), LONGCAT),
    (("<arg_key>",), GLM),
    (("<tool_call>", "<function="), QWEN_CODER),
    (('<function name="', '<param name="'), MINICPM),
    ((DEEPSEEK_CALLS.call_begin, "```json"), DEEPSEEK_FENCED),
    ((DEEPSEEK_CALLS.call_begin,), DEEPSEEK),
    ((KIMI_K2_CALLS.calls_begin,), KIMI_K2),
    ((f"{OPEN}tools{SEPARATOR}",), KIMI_K3),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL),
    (("[TOOL_CALLS]",), MISTRAL_LIST),
    (("<tool_call>",), HERMES),
    (("<|tool_call_start|>",), BRACKETED_PYTHONIC),
    (("<|tool_list_start|>",), BRACKETED_PYTHONIC),
    (("<|tool_call|>",), PHI),
    (("functools",), PHI),
    (("func_name1(", "<|python_start|>"), LLAMA_PYTHONIC),
    (("<|python_tag|>",), LLAMA),
    (("<|python_start|>",), LLAMA),
)
"""Strings that a template must all contain, and the format. The first match wins."""

_BY_VOCABULARY = (
    ((OPEN, CLOSE, SEPARATOR, "<|end_of_msg|>"), KIMI_K3),
    (("<|tool_call_start|>", "<|tool_call_end|>"), BRACKETED_PYTHONIC),
)
"""Tokens that a vocabulary must all contain, and the format; for templates that do not show the format."""

_BY_MLX_LM = {
    "function_gemma": FUNCTION_GEMMA,
    "gemma4": GEMMA_4,
    "glm47": GLM,
    "json_tools": HERMES,
    "kimi_k2": KIMI_K2,
    "kimi_k3": KIMI_K3,
    "laguna": GLM,
    "longcat": LONGCAT,
    "minicpm5": MINICPM,
    "minimax_m2": MINIMAX,
    "mistral": MISTRAL_LIST,
    "muse_spark": MUSE,
    "pythonic": BRACKETED_PYTHONIC,
    "qwen3_coder": QWEN_CODER,
}
"""Formats by the name of mlx-lm's parser: the `tool_parser_type` of a tokenizer_config.json."""

_BY_FAMILY = {
    "llama": LLAMA,
    "qwen": HERMES,
    "mistral": MISTRAL_LIST,
    "gemma": TOOL_CODE,
    "phi": PHI,
    "deepseek": DEEPSEEK_FENCED,
    "glm": GLM,
}

_REASONING = (
    ReasoningMarkers("<think>", "</think>"),
    ReasoningMarkers("[THINK]", "[/THINK]"),
    ReasoningMarkers("<|channel>thought", "<channel|>", ("<|channel>", "<channel|>")),
    ReasoningMarkers("<longcat_think>", "</longcat_think>"),
    ReasoningMarkers("<seed:think>", "</seed:think>"),
    ReasoningMarkers("<|think:start|>", "<|think:end|>"),
    ReasoningMarkers(f"{OPEN}think{SEPARATOR}", f"{CLOSE}think{SEPARATOR}", (OPEN, CLOSE, SEPARATOR)),
)


def detect_format(
    family: str, template: str, vocabulary: Container[str] = (), mlx_lm_parser: str | None = None
) -> OutputFormat:
    """Detects the format from the template, else from the mlx-lm parser that the model's files name, else from the
    tokens of the vocabulary, else from the family.

    The format has reasoning if the template or the vocabulary has reasoning markers.
    """
    if all(marker in template for marker in ("<|start|>", "<|channel|>", "<|message|>")):
        return HarmonyFormat()
    found = _tagged(family, template, vocabulary, mlx_lm_parser)
    return replace(found, reasoning=_reasoning(template, vocabulary))


def prompted_format(shown: OutputFormat) -> OutputFormat:
    """The format of a model that the server's prompt instructs to write Hermes calls.

    Also parses calls without tags, which small models write, and calls in the format that the model was trained on.
    """
    if not isinstance(shown, TaggedFormat):
        return shown
    calls = (*HERMES.calls, *LLAMA.calls, *shown.calls)
    return replace(HERMES, calls=calls, call_tokens=HERMES.call_tokens | shown.call_tokens, reasoning=shown.reasoning)


def _tagged(family: str, template: str, vocabulary: Container[str], mlx_lm_parser: str | None) -> TaggedFormat:
    for markers, found in _BY_TEMPLATE:
        if all(marker in template for marker in markers):
            return found
    if mlx_lm_parser in _BY_MLX_LM:
        return _BY_MLX_LM[mlx_lm_parser]
    for tokens, found in _BY_VOCABULARY:
        if all(token in vocabulary for token in tokens):
            return found
    return _BY_FAMILY.get(family, PLAIN)


def _reasoning(template: str, vocabulary: Container[str]) -> ReasoningMarkers | None:
    for markers in _REASONING:
        tokens = markers.tokens if markers.tokens else (markers.start, markers.end)
        if markers.end in template or all(token in vocabulary for token in tokens):
            return markers
    return None
