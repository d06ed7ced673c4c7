"""Translates the grammars of requests for llguidance. Pure; runs in the checking process."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from mlx_manager.mlx_server.grammars.json_schemas import SchemaRewriter
from mlx_manager.mlx_server.grammars.keywords import Json, JsonObject
from mlx_manager.mlx_server.grammars.verdict import GrammarRefused, Question
from mlx_manager.mlx_server.types import SCHEMA_LABEL

JSON_OPTIONS: JsonObject = {
    "whitespace_flexible": False,
    "key_separator": ": ?",
    "item_separator": ", ?",
    "coerce_one_of": True,
}
"""llguidance options. JSON is on one line; a space after colons and commas is optional."""

_OPTIONS = '%llguidance {"no_forcing": true}'
"""Without this option, llguidance forces the tokenizer's tokens if only one text is possible.

If the text looks like a special token, the forced token is the special one; a stop token would end the answer.
"""


@dataclass(slots=True)
class Translation:
    """llguidance's serialised grammar, and a sentence for each schema keyword that it does not enforce.

    `parts`: the schemas with their names, so that a message can name the faulty schema.
    """

    text: str = ""
    unenforced: list[str] = field(default_factory=list)
    parts: list[tuple[str, JsonObject]] = field(default_factory=list)


def translate(question: Question, without: Collection[str] = ()) -> Translation:
    """`without`: JSON schema keywords to remove, which llguidance failed on. Raises GrammarRefused."""
    translation, source = Translation(), question.source
    match question.kind:
        case "json_object" | "json_schema":
            schema = _parse(source) if question.kind == "json_schema" else {"type": "object"}
            lark = f"start: %json {json.dumps(_expressed(schema, question, without, translation))}"
        case "regex":
            lark = f"start: /{_escape_slashes(source)}/"
        case "choice":
            lark = "start: " + " | ".join(map(json.dumps, _choices(source)))
        case "lark":
            lark = _express_inline_schemas(question, without, translation)
    translation.text = serialised(lark)
    return translation


def serialised(lark: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": f"{lark}\n{_OPTIONS}"}]})


def _parse(source: str) -> Json:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as exc:
        raise GrammarRefused(f"it is not JSON: {exc}") from exc


def _choices(source: str) -> list[str]:
    choices = _parse(source)
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise GrammarRefused("it is not a list of strings")
    if not choices:
        raise GrammarRefused("it has no choices")
    return choices


def _escape_slashes(regex: str) -> str:
    """The regex escaped for use between slashes, on one line."""
    escaped, is_escape = "", False
    for character in regex:
        if is_escape:
            escaped += {"/": "/", "\n": "n"}.get(character, character)
        else:
            escaped += {"/": r"\/", "\n": r"\n"}.get(character, character)
        is_escape = character == "\\" and not is_escape
    return escaped


def _express_inline_schemas(question: Question, without: Collection[str], translation: Translation) -> str:
    """The Lark text with each `%json {...}` rewritten like a separate schema."""
    lark, decoder = question.source, json.JSONDecoder()
    pieces, end = [], 0
    while (found := lark.find("%json", end)) >= 0:
        start = found + len("%json")
        start += len(lark[start:]) - len(lark[start:].lstrip())
        pieces.append(lark[end:start])
        try:
            schema, end = decoder.raw_decode(lark, start)
        except (ValueError, RecursionError):
            end = start
        else:
            pieces.append(json.dumps(_expressed(schema, _labelled(question, schema), without, translation)))
    return "".join([*pieces, lark[end:]])


def _labelled(question: Question, schema: Json) -> Question:
    """The question for one schema of the grammar."""
    label = schema.get(SCHEMA_LABEL) if isinstance(schema, dict) else None
    if not isinstance(label, dict):
        return question
    return replace(question, what=str(label.get("what")), strict=label.get("strict") is True)


def _expressed(schema: Json, question: Question, without: Collection[str], translation: Translation) -> JsonObject:
    rewriter = SchemaRewriter(schema, without)
    try:
        rewritten = rewriter.rewrite()
    except RecursionError as exc:
        raise GrammarRefused("its chain of references is too long") from exc
    if isinstance(rewritten, bool):
        rewritten = {} if rewritten else {"enum": []}
    if not isinstance(rewritten, dict):
        raise GrammarRefused(f"it is not an object: {json.dumps(schema)[:80]}")
    prefix = f"{_in_ascii(question.what)}: " if question.what else ""
    for keyword in map(_in_ascii, rewriter.unenforced):
        if question.strict:
            raise GrammarRefused(
                f"{prefix}{keyword} cannot be enforced, as strict=true requires (strict=false does not)",
                unsupported=True,
            )
        translation.unenforced.append(f"{prefix}{keyword} is not enforced")
    rewritten.pop(SCHEMA_LABEL, None)
    expressed = {"x-guidance": JSON_OPTIONS, **rewritten}
    translation.parts.append((question.what, expressed))
    return expressed


def _in_ascii(text: str) -> str:
    """ASCII text for a message that is also logged and sent in a header."""
    return text[:300].encode("unicode_escape").decode()
