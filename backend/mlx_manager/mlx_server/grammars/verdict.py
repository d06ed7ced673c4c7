"""The messages between the server and the checking process of grammars."""

from dataclasses import dataclass

from mlx_manager.mlx_server.types import GrammarKind


class GrammarRefused(Exception):
    """The grammar cannot be served, for the reason in the message. `unsupported`: valid, but not in llguidance."""

    def __init__(self, message: str, unsupported: bool = False) -> None:
        super().__init__(message)
        self.unsupported = unsupported


@dataclass(frozen=True, slots=True)
class Question:
    """A grammar to check. `what`: its name in messages. `strict`: refuse it if a keyword cannot be enforced."""

    kind: GrammarKind
    source: str
    what: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """llguidance's serialised grammar, or the reason for a refusal. `unsupported`: valid, but not in llguidance.

    `unenforced`: one sentence for each JSON schema keyword that the grammar leaves out.
    """

    grammar: str = ""
    unenforced: tuple[str, ...] = ()
    refusal: str | None = None
    unsupported: bool = False
