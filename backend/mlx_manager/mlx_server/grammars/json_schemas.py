"""Rewrites JSON schemas for llguidance: closes objects, and removes and lists unenforceable keywords. Pure.

An object that lists its keys allows no other keys unless it says so, as in OpenAI's strict mode, xgrammar and
outlines. Several schemas may apply to one value: the keywords themselves, `allOf`, `$ref`, and one branch of each
`anyOf` and `oneOf`. The keys of all these schemas are allowed. The rewriter therefore closes an object at the common
parent or in each branch, and copies a `$ref` target for each set of keys that the copy is closed with.
"""

import re
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from mlx_manager.mlx_server.grammars.keywords import (
    LEFT_OUT,
    Json,
    JsonObject,
    are_disjoint,
    is_unenforced,
    says_nothing,
)
from mlx_manager.mlx_server.grammars.verdict import GrammarRefused

MAX_DEPTH = 100
MAX_SCHEMAS = 50_000
"""Limit including copies; llguidance has the same limit."""

Path = tuple[str, ...]
_BRANCHES = ("anyOf", "oneOf")


@dataclass(frozen=True, slots=True)
class _Listing:
    """What the schemas of one value say about its keys.

    `lists`: they list keys. `is_open`: they specify additional keys themselves. `has_branches`: some of these
    keywords are in branches.
    """

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    lists: bool = False
    is_open: bool = False
    has_branches: bool = False

    def __or__(self, other: "_Listing") -> "_Listing":
        return _Listing(
            tuple(dict.fromkeys(self.names + other.names)),
            tuple(dict.fromkeys(self.patterns + other.patterns)),
            self.lists or other.lists,
            self.is_open or other.is_open,
            self.has_branches or other.has_branches,
        )


@dataclass(frozen=True, slots=True)
class _Around:
    """The keys that the value's other schemas list, in order, and whether to close this schema."""

    before: _Listing = _Listing()
    after: _Listing = _Listing()
    closes: bool = True


_ALONE = _Around()
_NOTHING = _Listing()
_OWN = "own keywords"


class SchemaRewriter:
    """`rewrite` returns the schema and fills `unenforced` with the removed keywords and their places."""

    def __init__(self, root: Json, without: Collection[str] = ()) -> None:
        """`without`: further keywords to remove, which llguidance failed on."""
        self._root = root
        self._without = without
        self._listings: dict[int, _Listing] = {}
        self._copies: dict[Hashable, str] = {}
        self._pending: deque[tuple[str, Json, Path, _Around]] = deque()
        self._schemas = 0
        self.unenforced: dict[str, None] = {}

    def rewrite(self) -> Json:
        """Raises GrammarRefused if the schema is too large."""
        rewritten = self._schema(self._root, (), _ALONE)
        definitions: JsonObject = {}
        while self._pending:
            name, target, path, around = self._pending.popleft()
            definitions[name] = self._schema(target, path, around)
        return {**rewritten, "$defs": definitions} if definitions else rewritten

    def _schema(self, schema: Json, path: Path, around: _Around) -> Json:
        self._schemas += 1
        if len(path) > MAX_DEPTH or self._schemas > MAX_SCHEMAS:
            raise GrammarRefused(
                f"it is nested more than {MAX_DEPTH} levels deep"
                if len(path) > MAX_DEPTH
                else f"it has more than {MAX_SCHEMAS} schemas in it"
            )
        if not isinstance(schema, dict):
            return schema
        conjuncts = self._conjuncts(schema)
        listing = _merged(conjuncts.values())
        if is_own_object := "unevaluatedProperties" in schema:
            around = _Around(_Listing(lists=True))
        whole = around.before | listing | around.after
        speaking = [key for key, said in conjuncts.items() if said != _NOTHING]
        delegate = speaking[0] if len(speaking) == 1 and speaking != [_OWN] and not is_own_object else None

        def beside(key: Hashable) -> _Around:
            keys = list(conjuncts)
            before, after = keys[: keys.index(key)], keys[keys.index(key) + 1 :]
            return _Around(
                around.before | _merged(conjuncts[other] for other in before),
                _merged(conjuncts[other] for other in after) | around.after,
                not whole.is_open and (key in _BRANCHES or (key == delegate and around.closes)),
            )

        rewritten = {
            keyword: self._value(keyword, value, (*path, keyword), beside)
            for keyword, value in schema.items()
            if self._is_kept(keyword, value, schema, path)
        }
        if around.closes and delegate is None and whole.lists and not whole.is_open and not listing.has_branches:
            rest = schema.get("unevaluatedProperties", False)
            _close(rewritten, whole, self._schema(rest, (*path, "unevaluatedProperties"), _ALONE))
        return rewritten

    def _is_kept(self, keyword: str, value: Json, schema: JsonObject, path: Path) -> bool:
        if keyword in LEFT_OUT or says_nothing(keyword, value, schema):
            return False
        if keyword == "additionalProperties" and self._has_unenforced_patterns(schema):
            return value is True
        if keyword in self._without or is_unenforced(keyword, value, schema):
            self._note(keyword, path)
            return False
        if keyword == "oneOf" and isinstance(value, list) and not self._are_disjoint(value):
            self._note(keyword, path)
        return True

    def _note(self, keyword: str, path: Path) -> None:
        self.unenforced.setdefault(f"{keyword!r} at {'.'.join(path) or 'the top level'}")

    def _value(self, keyword: str, value: Json, path: Path, beside: Callable[[Hashable], _Around]) -> Json:
        match keyword, value:
            case (("properties" | "patternProperties"), dict()):
                return {name: self._schema(part, (*path, name), _ALONE) for name, part in value.items()}
            case (("items" | "additionalItems" | "additionalProperties"), dict()):
                return self._schema(value, path, _ALONE)
            case (("items" | "prefixItems"), list()):
                return [self._schema(part, (*path, str(n)), _ALONE) for n, part in enumerate(value)]
            case "allOf", list():
                return [self._schema(part, (*path, str(n)), beside((keyword, n))) for n, part in enumerate(value)]
            case (("anyOf" | "oneOf"), list()):
                return [self._schema(part, (*path, str(n)), beside(keyword)) for n, part in enumerate(value)]
            case "$ref", str():
                return self._reference(value, beside(keyword))
        return value

    def _reference(self, reference: str, around: _Around) -> str:
        path, target = self._target(reference)
        if path is None:  # llguidance reports the error
            return reference
        key = (path, around)
        if key not in self._copies:
            name = self._copies[key] = f"copy_{len(self._copies)}"
            self._pending.append((name, target, path, around))
        return f"#/$defs/{self._copies[key]}"

    def _target(self, reference: str) -> tuple[Path | None, Json]:
        """The path and value of a reference within the root; None for external or unresolvable references."""
        base, _, fragment = unquote(reference).partition("#")
        is_pointer = not fragment or fragment.startswith("/")
        path: Path | None = ()
        target = self._root
        if base or not is_pointer:
            path, target = self._named.get(base if is_pointer else f"#{fragment}", (None, None))
        if path is None or not is_pointer:
            return path, target
        for part in fragment.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and part in target:
                target = target[part]
            elif isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                target = target[int(part)]
            else:
                return None, None
            path = (*path, part)
        return path, target

    @cached_property
    def _named(self) -> dict[str, tuple[Path | None, Json]]:
        """The schemas with an `$id`, or an `$anchor` (prefixed with `#`)."""
        named: dict[str, tuple[Path | None, Json]] = {}
        pending: list[tuple[Path, Json]] = [((), self._root)]
        while pending:
            path, value = pending.pop()
            if isinstance(value, dict):
                for keyword, mark in (("$id", ""), ("id", ""), ("$anchor", "#")):
                    if isinstance(name := value.get(keyword), str):
                        named.setdefault(mark + name.removesuffix("#"), (path, value))
            parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            pending += [((*path, str(key)), part) for key, part in parts]
        return named

    def _resolve(self, schema: Json) -> Json:
        if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
            return self._target(schema["$ref"])[1]
        return schema

    def _are_disjoint(self, branches: list[Json]) -> bool:
        return all(
            are_disjoint(branch, other, self._resolve)
            for n, branch in enumerate(branches)
            for other in branches[n + 1 :]
        )

    def _conjuncts(self, schema: JsonObject) -> dict[Hashable, _Listing]:
        """The keys listed by each part of the schema that applies to the same value."""
        conjuncts: dict[Hashable, _Listing] = {_OWN: self._own_listing(schema)}
        for n, part in enumerate(_list(schema.get("allOf"))):
            conjuncts["allOf", n] = self._listing(part)
        for keyword in _BRANCHES:
            if branches := _list(schema.get(keyword)):
                said = _merged(map(self._listing, branches))
                conjuncts[keyword] = _Listing(said.names, said.patterns, has_branches=True)
        if isinstance(reference := schema.get("$ref"), str):
            path, target = self._target(reference)
            conjuncts["$ref"] = self._listing(target) if path is not None else _Listing(is_open=True)
        return conjuncts

    def _listing(self, schema: Json) -> _Listing:
        if not isinstance(schema, dict):
            return _NOTHING
        if id(schema) not in self._listings:
            self._listings[id(schema)] = _NOTHING  # ends recursive references
            listing = _merged(self._conjuncts(schema).values())
            self._listings[id(schema)] = listing | _Listing(is_open="unevaluatedProperties" in schema)
        return self._listings[id(schema)]

    def _own_listing(self, schema: JsonObject) -> _Listing:
        """Allows keys that only a removed keyword names."""
        conditional = [schema.get("then"), schema.get("else"), *_dict(schema.get("dependentSchemas")).values()]
        patterns = _dict(schema.get("patternProperties"))
        required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        return _Listing(
            (*_dict(schema.get("properties")), *required, *_merged(map(self._listing, conditional)).names),
            tuple(patterns),
            lists="properties" in schema or "patternProperties" in schema,
            is_open="additionalProperties" in schema or self._has_unenforced_patterns(schema),
        )

    def _has_unenforced_patterns(self, schema: JsonObject) -> bool:
        patterns = schema.get("patternProperties")
        return bool(patterns) and (
            "patternProperties" in self._without or is_unenforced("patternProperties", patterns, schema)
        )


def _close(schema: JsonObject, listing: _Listing, rest: Json) -> None:
    """Closes via an extra `allOf` part beside `allOf` and `$ref`: llguidance reads siblings in its own order."""
    own = schema if not {"allOf", "$ref"} & schema.keys() else {}
    properties = own.get("properties", {})
    if not isinstance(properties, dict):  # llguidance reports the error
        return
    named = {name: True for name in listing.names if not _matches_any(listing.patterns, name)}
    own["properties"] = {**named, **properties}
    if listing.patterns:
        own["patternProperties"] = {**dict.fromkeys(listing.patterns, True), **_dict(own.get("patternProperties"))}
    own["additionalProperties"] = rest
    if own is not schema:
        schema["allOf"] = [*schema.get("allOf", []), own]


def _matches_any(patterns: Iterable[str], name: str) -> bool:
    try:
        return any(re.search(pattern, name) for pattern in patterns)
    except re.error:
        return False


def _merged(listings: Iterable[_Listing]) -> _Listing:
    merged = _NOTHING
    for listing in listings:
        merged |= listing
    return merged


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _dict(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}
