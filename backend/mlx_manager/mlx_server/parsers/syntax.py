"""The syntax of calls, as data for `call_grammar`. `{name}` and `{key}` are placeholders."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ParameterSyntax:
    """Arguments that are written separately. `strings`: raw up to `after`, JSON, or raw between two `quote`s."""

    before: str
    after: str = ""
    between: str = ""
    strings: Literal["raw", "json", "quoted"] = "raw"
    quote: str = ""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """A call is `before`, arguments and `after`; `begin` and `end` enclose all calls.

    Without `parameters` the arguments are a JSON object. Without `between` only one call is possible.
    """

    before: str
    after: str = ""
    between: str | None = None
    begin: str = ""
    end: str = ""
    parameters: ParameterSyntax | None = None


HERMES = CallSyntax('<tool_call>\n{"name": "{name}", "arguments": ', "}\n</tool_call>", between="\n")
LLAMA = CallSyntax('{"name": "{name}", "parameters": ', "}", between="; ")
PYTHONIC = CallSyntax(
    "{name}(", ")", between=", ", begin="[", end="]", parameters=ParameterSyntax("{key}=", between=", ", strings="json")
)
BRACKETED_PYTHONIC = CallSyntax(
    "{name}(",
    ")",
    between=", ",
    begin="<|tool_call_start|>[",
    end="]<|tool_call_end|>",
    parameters=PYTHONIC.parameters,
)
QWEN_CODER = CallSyntax(
    "<tool_call>\n<function={name}>\n",
    "</function>\n</tool_call>",
    between="\n",
    parameters=ParameterSyntax("<parameter={key}>\n", "\n</parameter>\n"),
)
GLM = CallSyntax(
    "<tool_call>{name}\n",
    "</tool_call>",
    between="\n",
    parameters=ParameterSyntax("<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n"),
)
LONGCAT = CallSyntax(
    "<longcat_tool_call>{name}\n",
    "</longcat_tool_call>",
    between="\n",
    parameters=ParameterSyntax(
        "<longcat_arg_key>{key}</longcat_arg_key>\n<longcat_arg_value>", "</longcat_arg_value>\n"
    ),
)
MINIMAX = CallSyntax(
    '<invoke name="{name}">\n',
    "</invoke>",
    between="\n",
    begin="<minimax:tool_call>\n",
    end="\n</minimax:tool_call>",
    parameters=ParameterSyntax('<parameter name="{key}">', "</parameter>\n"),
)
MUSE = CallSyntax(
    '<atem:invoke name="{name}">\n',
    "</atem:invoke>",
    between="\n",
    begin="<atem:function_calls>\n",
    end="\n</atem:function_calls>",
    parameters=ParameterSyntax('<atem:parameter name="{key}">', "</atem:parameter>\n"),
)
MINICPM = CallSyntax(
    '<function name="{name}">',
    "</function>",
    between="\n",
    parameters=ParameterSyntax('<param name="{key}">', "</param>"),
)
KIMI_K2 = CallSyntax(
    "<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    begin="<|tool_calls_section_begin|>",
    end="<|tool_calls_section_end|>",
)
KIMI_K3 = CallSyntax(
    '<|open|>call tool="{name}" index="1"<|sep|><|open|>json type="object"<|sep|>',
    "<|close|>json<|sep|><|close|>call<|sep|>",
    begin="<|open|>tools<|sep|>",
    end="<|close|>tools<|sep|>",
)
MISTRAL_LIST = CallSyntax('{"name": "{name}", "arguments": ', "}", between=", ", begin="[TOOL_CALLS][", end="]")
MISTRAL = CallSyntax("[TOOL_CALLS]{name}[ARGS]", between="")
PHI = CallSyntax('{"name": "{name}", "arguments": ', "}", between=", ", begin="<|tool_call|>[", end="]<|/tool_call|>")
DEEPSEEK_FENCED = CallSyntax(
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
    "\n```<｜tool▁call▁end｜>",
    between="\n",
    begin="<｜tool▁calls▁begin｜>",
    end="<｜tool▁calls▁end｜>",
)
DEEPSEEK = CallSyntax(
    "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    between="",
    begin="<｜tool▁calls▁begin｜>",
    end="<｜tool▁calls▁end｜>",
)
FUNCTION_GEMMA = CallSyntax(
    "<start_function_call>call:{name}{",
    "}<end_function_call>",
    between="",
    parameters=ParameterSyntax("{key}:", between=",", strings="quoted", quote="<escape>"),
)
GEMMA_4 = CallSyntax(
    "<|tool_call>call:{name}{",
    "}<tool_call|>",
    between="",
    parameters=ParameterSyntax("{key}:", between=",", strings="quoted", quote='<|"|>'),
)
HARMONY = CallSyntax("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
