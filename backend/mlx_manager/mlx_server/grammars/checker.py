"""The process that checks grammars. A grammar that exhausts time, memory or stack ends only this process.

Run as `python -m mlx_manager.mlx_server.grammars.checker`. It reads a JSON `Question` and writes a JSON `Verdict`.
"""

import json
import re

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from mlx_manager.mlx_server.grammars.sources import Translation, serialised, translate
from mlx_manager.mlx_server.grammars.verdict import GrammarRefused, Question, Verdict
from mlx_manager.mlx_server.isolation.answering import answer_questions

CPU_SECONDS = 2
MEMORY_BYTES = 2**30
NICENESS = 10

_PARTIAL_KEYWORDS = {
    "are not disjoint": ("patternProperties",),
    "Unable to determine": ("patternProperties",),
    "min/maxProperties": ("minProperties", "maxProperties"),
}
"""llguidance errors for a keyword that it supports in general, but not in this schema; and those keywords."""
_UNSUPPORTED = ("Unimplemented keys", "not supported", "Unknown format", "are not disjoint", "Unable to determine")
_REGEX_ERROR = re.compile(r"regex parse error:.*?^error: ([^\n]*)", re.DOTALL | re.MULTILINE)
_FRAME = "failed to compile JSON schema: "


class _Bytes:
    """A vocabulary of the 256 bytes and an end token."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def main() -> None:
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()))
    answer_questions(
        lambda question: msgspec.json.encode(_verdict(question, tokenizer)),
        cpu_seconds=CPU_SECONDS,
        memory_bytes=MEMORY_BYTES,
        niceness=NICENESS,
    )


def _verdict(question_json: bytes, tokenizer: LLTokenizer) -> Verdict:
    question = msgspec.json.decode(question_json, type=Question)
    try:
        translation, failure = _translated(question, tokenizer)
        if failure:
            part = _faulty_part(translation)
            raise GrammarRefused(f"{part}{_reason(failure)}", unsupported=any(sign in failure for sign in _UNSUPPORTED))
    except GrammarRefused as refusal:
        return Verdict(refusal=str(refusal), unsupported=refusal.unsupported)
    return Verdict(translation.text, tuple(dict.fromkeys(translation.unenforced)))


def _translated(question: Question, tokenizer: LLTokenizer) -> tuple[Translation, str]:
    """The grammar without keywords that llguidance cannot enforce, and the remaining error. Raises GrammarRefused."""
    without: frozenset[str] = frozenset()
    while True:
        translation = translate(question, without)
        failure = _failure(translation.text, tokenizer, has_special_tokens=question.kind == "lark")
        removed = {keyword for sign, keywords in _PARTIAL_KEYWORDS.items() if sign in failure for keyword in keywords}
        if removed <= without:
            return translation, failure
        without |= removed


def _faulty_part(translation: Translation) -> str:
    """The name of the first schema that llguidance refuses, as a message prefix."""
    for what, schema in translation.parts:
        if what and LLMatcher.validate_grammar(serialised(f"start: %json {json.dumps(schema)}")):
            return f"{what}: "
    return ""


def _failure(grammar: str, tokenizer: LLTokenizer, has_special_tokens: bool) -> str:
    """llguidance's error for the grammar or its first mask. Skips the mask if it needs the model's special tokens."""
    failure = LLMatcher.validate_grammar(grammar)
    if failure or has_special_tokens:
        return failure
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    matcher.compute_bitmask()
    failure = matcher.get_error()
    return "nothing matches it" if "NoExtensionBias" in failure else failure


def _reason(failure: str) -> str:
    """The error on one line, without the quoted source."""
    regex_error = _REGEX_ERROR.search(failure)
    if regex_error is not None:
        return f"invalid pattern: {regex_error[1]}"
    return (failure.partition(_FRAME)[2] or failure).strip().splitlines()[0]


if __name__ == "__main__":
    main()
