"""Grammars as requests write them, to grammars as llguidance reads them. Pure; runs in the checking process."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from mlx_manager.mlx_server.grammars.json_schemas import SchemaRewriter
from mlx_manager.mlx_server.grammars.keywords import Json, JsonObject
from mlx_manager.mlx_server.grammars.verdict import Question, Refused
from mlx_manager.mlx_server.types import SCHEMA_LABEL

WRITTEN_AS: JsonObject = {
    "whitespace_flexible": False,
    "key_separator": ": ?",
    "item_separator": ", ?",
    "coerce_one_of": True,
}
"""llguidance's options. JSON is one line, with a space behind colons and commas or with none."""

_OPTIONS = '%llguidance {"no_forcing": true}'
"""Where only one text is possible, llguidance would force the tokenizer's tokens for it.

They are special ones in text that looks like them, a stop token among them, which ends the answer.
"""


@dataclass(slots=True)
class Translation:
    """llguidance's serialised grammar, and the keywords of its schemas that it does not enforce, each in a sentence.

    `parts` are the schemas that have a name, for a message that says which of them is at fault.
    """

    text: str = ""
    unenforced: list[str] = field(default_factory=list)
    parts: list[tuple[str, JsonObject]] = field(default_factory=list)


def translate(question: Question, without: Collection[str] = ()) -> Translation:
    """`without` the keywords of JSON schemas that turned out to be too much for llguidance. Raises Refused."""
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
        raise Refused(f"it is not JSON: {exc}") from exc


def _choices(source: str) -> list[str]:
    choices = _parse(source)
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise Refused("it is to be a list of strings")
    if not choices:
        raise Refused("there is no choice in it")
    return choices


def _escape_slashes(regex: str) -> str:
    """The regex as it stands between slashes, on one line."""
    escaped, is_escape = "", False
    for character in regex:
        if is_escape:
            escaped += {"/": "/", "\n": "n"}.get(character, character)
        else:
            escaped += {"/": r"\/", "\n": r"\n"}.get(character, character)
        is_escape = character == "\\" and not is_escape
    return escaped


def _express_inline_schemas(question: Question, without: Collection[str], translation: Translation) -> str:
    """Lark text whose `%json {...}` are expressed as a schema by itself is."""
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
    """The question of one schema in a grammar."""
    label = schema.get(SCHEMA_LABEL) if isinstance(schema, dict) else None
    if not isinstance(label, dict):
        return question
    return replace(question, what=str(label.get("what")), strict=label.get("strict") is True)


def _expressed(schema: Json, question: Question, without: Collection[str], translation: Translation) -> JsonObject:
    rewriter = SchemaRewriter(schema, without)
    try:
        rewritten = rewriter.rewrite()
    except RecursionError as exc:
        raise Refused("its references lead through too many schemas") from exc
    if isinstance(rewritten, bool):
        rewritten = {} if rewritten else {"enum": []}
    if not isinstance(rewritten, dict):
        raise Refused(f"a JSON schema is an object, and this one is {json.dumps(schema)[:80]}")
    prefix = f"{_in_ascii(question.what)}: " if question.what else ""
    for keyword in map(_in_ascii, rewriter.unenforced):
        if question.strict:
            raise Refused(
                f"{prefix}{keyword} cannot be enforced, and strict is true. Remove the keyword, or set strict to false",
                unsupported=True,
            )
        translation.unenforced.append(f"{prefix}{keyword} is not enforced")
    rewritten.pop(SCHEMA_LABEL, None)
    expressed = {"x-guidance": WRITTEN_AS, **rewritten}
    translation.parts.append((question.what, expressed))
    return expressed


def _in_ascii(text: str) -> str:
    """For a message that also goes into a log and a header."""
    return text[:300].encode("unicode_escape").decode()
