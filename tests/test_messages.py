"""Every error message ends with a full stop, says what to do, and uses no word that the style guide retired."""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_manager.mlx_server import errors

BACKEND = Path(__file__).parents[1] / "backend" / "mlx_manager"

SETTINGS_FILES = ("addresses.py", "config.py", "security_settings.py", "upstream_settings.py", "providers/settings.py")
"""Files whose ValueErrors users read."""
MESSAGE_ARGUMENTS = {
    "CommandFailed": 0,
    "ConfigFileError": 0,
    "ModelError": 0,
    "UnusableProxy": 0,
    "_exit_with": 0,
    "_ErrorReply": 1,
} | {name: 0 for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ServerError)}
"""The position of the message among the arguments of each error."""

VERBS = frozenset(
    "accept add change check choose close convert copy correct create delete download fix flatten free give "
    "increase install keep leave lower omit open pass raise reduce reload remove rename repair replace resend "
    "restart retry rewrite run see send set shorten simplify specify split start stop try unload unset update "
    "upgrade use wait write".split()
)
"""The imperative with which a remedy begins."""
RETIRED = (
    r"nobody|somebody|whoever|(is|are) none|(?<!here )is no|mend(ed|s)?|gave|(does|do) so|it does|goes? on|told|"
    r"for ever|harm|goes? with|(is|are) the most|at work|(said|says|say) nothing|broke off|broke the connection off|"
    r"in vain|which one is meant|did nothing|that of|(?<!one )of them|knows? no|wants?|dear|lies|brings?|makes? sense"
)

EXCEPTIONS: dict[str, str] = {
    "--base-url: {}": "ends with the message of the address",
    "The server ended while it started, with status {}": "ends with the server's own messages",
    "Model {} cannot be downloaded: {}": "ends with the message of the proxy",
    "Model {} cannot be loaded: {}": "ends with the message about the model's files",
    "{} cannot be reached. {}": "ends with the message of the proxy",
    "Upstream {} does not list its models yet. {}": "ends with the message of the health check",
    "{} at {} {}": "ends with a reason and a remedy",
}
"""Beginnings of messages without a remedy of their own, and why: they end with another message, or no remedy exists."""

PLACEHOLDER = "{}"
MAX_TEXTS = 16
MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Message:
    place: str
    text: str


class Module:
    """Finds the texts that expressions of a module may have; a value that only a run knows is a placeholder."""

    def __init__(self, tree: ast.Module) -> None:
        self._function: dict[ast.AST, str] = {}
        """The innermost function around each node."""
        self._assigned: dict[tuple[str, str], list[ast.expr]] = {}
        """Values of names, by function ("" for the module) and name."""
        self._returned: dict[str, list[ast.expr]] = {}
        self._visit(tree, "")

    def _visit(self, node: ast.AST, function: str) -> None:
        self._function[node] = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self._assigned.setdefault((function, node.targets[0].id), []).append(node.value)
        elif isinstance(node, ast.Return) and node.value is not None:
            self._returned.setdefault(function, []).append(node.value)
        for child in ast.iter_child_nodes(node):
            self._visit(child, function)

    def texts(self, node: ast.expr, depth: int = 0) -> list[str]:
        """Every alternative, through at most MAX_DEPTH names and calls."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                combinations = itertools.product(*(self.texts(part, depth) for part in parts))
                return ["".join(combination) for combination in itertools.islice(combinations, MAX_TEXTS)]
            case ast.FormattedValue(value=ast.Name() | ast.IfExp() as value, conversion=-1, format_spec=None):
                return self.texts(value, depth)
            case ast.BinOp(left=left, op=ast.Mod()):
                return [re.sub(r"%[a-z]", PLACEHOLDER, text) for text in self.texts(left, depth)]
            case ast.IfExp(body=body, orelse=orelse):
                return self.texts(body, depth) + self.texts(orelse, depth)
            case ast.Name(id=name):
                local = self._assigned.get((self._function[node], name))
                return self._texts_of(local or self._assigned.get(("", name), []), depth)
            case ast.Call(func=ast.Name(id=name)):
                return self._texts_of(self._returned.get(name, []), depth)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self")), args=[text]):  # redacts the text
                return self.texts(text, depth)
            case _:
                return [PLACEHOLDER]

    def _texts_of(self, values: list[ast.expr], depth: int) -> list[str]:
        if not values or depth == MAX_DEPTH:
            return [PLACEHOLDER]
        return [text for value in values for text in self.texts(value, depth + 1)]


def messages_of(place: str, source: str) -> Iterator[Message]:
    """Messages that consist of a placeholder alone were made, and are judged, elsewhere."""
    tree = ast.parse(source)
    module = Module(tree)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        is_setting = node.func.id == "ValueError" and place.endswith(SETTINGS_FILES)
        index = 0 if is_setting else MESSAGE_ARGUMENTS.get(node.func.id)
        if index is None or len(node.args) <= index:
            continue
        for text in dict.fromkeys(module.texts(node.args[index])):
            if re.search(r"\w", text):
                yield Message(f"{place}:{node.lineno}", text)


def all_messages() -> Iterator[Message]:
    for file in sorted(BACKEND.rglob("*.py")):
        place = file.relative_to(BACKEND).as_posix()
        yield from messages_of(place, file.read_text("utf-8"))


MESSAGES = list(all_messages())
EACH_MESSAGE = pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.place)


def has_remedy(text: str) -> bool:
    """Whether a sentence or clause after the first begins with an imperative."""
    clauses = re.split(r"(?<=[.:;,?}])\s+", text)[1:]
    starts = [re.sub(r"^(and|or|then|otherwise,?) ", "", clause) for clause in clauses]
    return any(start.partition(" ")[0].strip(".,:;").lower() in VERBS for start in starts)


def retired_words(text: str) -> list[str]:
    return [found[0] for found in re.finditer(rf"\b({RETIRED})\b", text)]


@EACH_MESSAGE
def test_a_message_ends_with_a_full_stop_and_says_what_to_do(message: Message) -> None:
    is_exception = message.text.startswith(tuple(EXCEPTIONS))
    assert message.text.endswith((".", PLACEHOLDER) if is_exception else "."), message.text
    assert is_exception or has_remedy(message.text), message.text


@EACH_MESSAGE
def test_a_message_uses_no_retired_word(message: Message) -> None:
    assert retired_words(message.text) == [], message.text


def test_every_exception_is_still_needed() -> None:
    texts = [message.text for message in MESSAGES if not (has_remedy(message.text) and message.text.endswith("."))]
    assert [start for start in EXCEPTIONS if not any(text.startswith(start) for text in texts)] == []


SOURCE = """
HINT = "Send fewer."

def refuse(self, count, is_late, cause):
    why = f"{count} items" if is_late else "No item"
    raise InvalidRequest(f"{why}: {cause!r}. {HINT}", param="items")
    raise UpstreamError(self._redacted(f"It said {cause}"))
    raise ServerBusy(_busy(count))
    raise NotReady("Model %s is at work." % count)
    raise BrokenBody(cause)
    raise KeyError("not for users")

def _busy(count):
    return f"{count} requests wait. Retry later."
"""


def test_the_texts_of_messages_are_found_in_every_way_in_which_they_are_written() -> None:
    assert [message.text for message in messages_of("a.py", SOURCE)] == [
        "{} items: {}. Send fewer.",
        "No item: {}. Send fewer.",
        "It said {}",
        "{} requests wait. Retry later.",
        "Model {} is at work.",
    ]


def test_value_errors_count_where_users_read_them() -> None:
    source = 'raise ValueError("no number. Use one.")'
    assert [message.text for message in messages_of("mlx_server/config.py", source)] == ["no number. Use one."]
    assert list(messages_of("mlx_server/folding.py", source)) == []
