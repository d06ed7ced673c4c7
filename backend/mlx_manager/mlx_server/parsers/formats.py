"""The output formats, each with its parser, its grammar and the special tokens that it needs to see in the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mlx_manager.mlx_server.parsers.call_grammar import CallGrammar
from mlx_manager.mlx_server.parsers.custom import CustomCalls
from mlx_manager.mlx_server.parsers.harmony import HARMONY_TOKENS, parse_harmony
from mlx_manager.mlx_server.parsers.output import CallFormat, OutputParser, ReasoningMarkers, parse_output
from mlx_manager.mlx_server.parsers.pieces import Tool, ToolGrammar
from mlx_manager.mlx_server.parsers.syntax import HARMONY, CallSyntax


class OutputFormat(Protocol):
    """What a model's output looks like."""

    @property
    def name(self) -> str: ...

    @property
    def reasoning(self) -> ReasoningMarkers | None:
        """What reasoning stands between; None when the model does not reason."""
        ...

    @property
    def has_custom_calls(self) -> bool:
        """Whether the text for a custom tool is written as it is; else as a function's argument."""
        ...

    def visible_special_tokens(self, *, with_tools: bool) -> frozenset[str]:
        """The special tokens that the parser needs to see in the text; the others are left out of it."""
        ...

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether the prompt ends inside of reasoning, so that the output begins there."""
        ...

    def make_parser(self, tools: Sequence[Tool], *, opened_reasoning: bool) -> OutputParser:
        """A parser for one output. Without `tools` it finds no calls."""
        ...

    def tool_call_grammar(
        self, tools: Sequence[Tool], *, parallel: bool, special_tokens: Mapping[str, int]
    ) -> ToolGrammar | None:
        """A grammar, in llguidance's Lark, of nothing but calls of `tools`; None when there is none for this format.

        `special_tokens` are the ids of the visible special tokens that the vocabulary has. Raises
        UnsupportedToolSchema.
        """
        ...


@dataclass(frozen=True, slots=True)
class TaggedFormat:
    """Reasoning between markers, then text and calls. The calls may be of several formats; `syntax` is one of them."""

    name: str
    calls: tuple[CallFormat, ...] = ()
    syntax: CallSyntax | None = None
    call_tokens: frozenset[str] = frozenset()
    reasoning: ReasoningMarkers | None = None
    has_custom_calls: bool = True

    def visible_special_tokens(self, *, with_tools: bool) -> frozenset[str]:
        reasoning = self.reasoning.special_tokens if self.reasoning is not None else frozenset()
        return reasoning | self.call_tokens if with_tools else reasoning

    def opens_reasoning(self, prompt: str) -> bool:
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning.start)

    def make_parser(self, tools: Sequence[Tool], *, opened_reasoning: bool) -> OutputParser:
        calls = (*self.calls, CustomCalls()) if any(tool.custom for tool in tools) else self.calls
        return OutputParser(
            lambda source: parse_output(source, calls, tuple(tools), self.reasoning, opened_reasoning),
            tools,
            opened_reasoning,
        )

    def tool_call_grammar(
        self, tools: Sequence[Tool], *, parallel: bool, special_tokens: Mapping[str, int]
    ) -> ToolGrammar | None:
        if self.syntax is None:
            return None
        return CallGrammar(self.syntax, special_tokens).of_calls(tools, parallel)


HARMONY_REASONING = ReasoningMarkers("<|channel|>analysis<|message|>", "<|end|>")


@dataclass(frozen=True, slots=True)
class HarmonyFormat:
    """gpt-oss. Every output has markers, so the special tokens are needed without tools too."""

    name: str = "harmony"
    reasoning: ReasoningMarkers = HARMONY_REASONING
    has_custom_calls: bool = False

    def visible_special_tokens(self, *, with_tools: bool) -> frozenset[str]:
        return HARMONY_TOKENS

    def opens_reasoning(self, prompt: str) -> bool:
        return False

    def make_parser(self, tools: Sequence[Tool], *, opened_reasoning: bool) -> OutputParser:
        return OutputParser(parse_harmony, tools)

    def tool_call_grammar(
        self, tools: Sequence[Tool], *, parallel: bool, special_tokens: Mapping[str, int]
    ) -> ToolGrammar | None:
        """One call, behind reasoning and the header of the message that it is in, each of which may be missing."""
        grammar = CallGrammar(HARMONY, special_tokens)
        analysis = f"{grammar.literal(self.reasoning.start)} {grammar.text_until(self.reasoning.end)}"
        return grammar.of_calls(tools, parallel, f"({analysis})? ({grammar.literal('<|start|>assistant')})?")
