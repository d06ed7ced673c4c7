"""Which format a model's output has: read from its chat template, for fine-tunes keep that, then from its family."""

from collections.abc import Container
from dataclasses import replace

from mlx_manager.mlx_server.parsers import deepseek, syntax
from mlx_manager.mlx_server.parsers.deepseek import DeepSeekCalls
from mlx_manager.mlx_server.parsers.formats import HarmonyFormat, OutputFormat, TaggedFormat
from mlx_manager.mlx_server.parsers.gemma import GemmaCalls, ToolCodeCalls
from mlx_manager.mlx_server.parsers.glm import GlmCalls
from mlx_manager.mlx_server.parsers.hermes import HermesCalls
from mlx_manager.mlx_server.parsers.llama import LlamaCalls
from mlx_manager.mlx_server.parsers.mistral import MistralCalls
from mlx_manager.mlx_server.parsers.output import ReasoningMarkers
from mlx_manager.mlx_server.parsers.phi import PhiCalls
from mlx_manager.mlx_server.parsers.pythonic import BracketedPythonicCalls
from mlx_manager.mlx_server.parsers.qwen_coder import QwenCoderCalls
from mlx_manager.mlx_server.parsers.whole_call import WholeCalls

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
QWEN_CODER = TaggedFormat("qwen_coder", (QwenCoderCalls(),), syntax.QWEN_CODER, TOOL_CALL_TAGS)
GLM = TaggedFormat(
    "glm",
    (GlmCalls(),),
    syntax.GLM,
    TOOL_CALL_TAGS | {"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"},
)
MISTRAL_LIST = TaggedFormat(
    "mistral_list", (MistralCalls(),), syntax.MISTRAL_LIST, frozenset({"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"})
)
MISTRAL = replace(MISTRAL_LIST, name="mistral", syntax=syntax.MISTRAL)
PHI = TaggedFormat("phi", (PhiCalls(),), syntax.PHI, frozenset({"<|tool_call|>", "<|/tool_call|>"}))
DEEPSEEK = TaggedFormat(
    "deepseek",
    (DeepSeekCalls(),),
    syntax.DEEPSEEK,
    frozenset({deepseek.CALLS_BEGIN, deepseek.CALLS_END, deepseek.CALL_BEGIN, deepseek.CALL_END, deepseek.SEPARATOR}),
)
DEEPSEEK_FENCED = replace(DEEPSEEK, name="deepseek_fenced", syntax=syntax.DEEPSEEK_FENCED)
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
    (("<arg_key>",), GLM),
    (("<tool_call>", "<function="), QWEN_CODER),
    ((deepseek.CALL_BEGIN, "```json"), DEEPSEEK_FENCED),
    ((deepseek.CALL_BEGIN,), DEEPSEEK),
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
"""Formats with the strings that all stand in their templates; the first that fits is it."""

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
)


def detect_format(
    family: str, template: str, vocabulary: Container[str] = (), other_calls: WholeCalls | None = None
) -> OutputFormat:
    """The format that the template shows, else `other_calls`, which mlx-lm found for it, else the family's.

    Reasoning is there when the template or the vocabulary has its markers.
    """
    if all(marker in template for marker in ("<|start|>", "<|channel|>", "<|message|>")):
        return HarmonyFormat()
    return replace(_tagged(family, template, other_calls), reasoning=_reasoning(template, vocabulary))


def prompted_format(shown: OutputFormat) -> OutputFormat:
    """The format of a model that is told by a prompt to call tools as Hermes does.

    Small models leave the tags out, and others keep to the form that they were trained on: those calls are read too.
    """
    if not isinstance(shown, TaggedFormat):
        return shown
    calls = (*HERMES.calls, *LLAMA.calls, *shown.calls)
    return replace(HERMES, calls=calls, call_tokens=HERMES.call_tokens | shown.call_tokens, reasoning=shown.reasoning)


def _tagged(family: str, template: str, other_calls: WholeCalls | None) -> TaggedFormat:
    for markers, found in _BY_TEMPLATE:
        if all(marker in template for marker in markers):
            return found
    if other_calls is not None:
        return TaggedFormat("mlx_lm", (other_calls,), call_tokens=other_calls.tokens)
    return _BY_FAMILY.get(family, PLAIN)


def _reasoning(template: str, vocabulary: Container[str]) -> ReasoningMarkers | None:
    for markers in _REASONING:
        tokens = markers.tokens if markers.tokens else (markers.start, markers.end)
        if markers.end in template or all(token in vocabulary for token in tokens):
            return markers
    return None
