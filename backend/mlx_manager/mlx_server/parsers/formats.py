"""The output formats: parser, grammar, and the special tokens that the parser needs in the text."""

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
    """The format of a model's output."""

    @property
    def name(self) -> str: ...

    @property
    def reasoning(self) -> ReasoningMarkers | None:
        """The markers around reasoning; None if the model does not reason."""
        ...

    @property
    def has_custom_calls(self) -> bool:
        """Whether calls of custom tools have raw text; else they are function calls with one argument."""
        ...

    def visible_special_tokens(self, *, with_tools: bool) -> frozenset[str]:
        """The special tokens that the text must include for the parser."""
        ...

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether the prompt ends inside reasoning, so that the output begins with reasoning."""
        ...

    def make_parser(self, tools: Sequence[Tool], *, opened_reasoning: bool) -> OutputParser:
        """A parser for one output. Without `tools` it parses no calls."""
        ...

    def tool_call_grammar(
        self, tools: Sequence[Tool], *, parallel: bool, special_tokens: Mapping[str, int]
    ) -> ToolGrammar | None:
        """llguidance Lark that matches only calls of `tools`; None if this format has no grammar.

        `special_tokens`: ids of the visible special tokens in the vocabulary. Raises UnsupportedToolSchema.
        """
        ...


@dataclass(frozen=True, slots=True)
class TaggedFormat:
    """Reasoning between markers, then text and calls in one or more formats. Grammars use the format of `syntax`."""

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
    """gpt-oss. Every output has markers, so the parser needs the special tokens even without tools."""

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
        """One call after optional reasoning and an optional message header."""
        grammar = CallGrammar(HARMONY, special_tokens)
        analysis = f"{grammar.literal(self.reasoning.start)} {grammar.text_until(self.reasoning.end)}"
        return grammar.of_calls(tools, parallel, f"({analysis})? ({grammar.literal('<|start|>assistant')})?")
