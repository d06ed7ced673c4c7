"""What a checking process is asked about a grammar, and what it says."""

from dataclasses import dataclass

from mlx_manager.mlx_server.types import GrammarKind


class Refused(Exception):
    """The grammar cannot be served; the message says why. `unsupported` when it is right and llguidance lacks it."""

    def __init__(self, message: str, unsupported: bool = False) -> None:
        super().__init__(message)
        self.unsupported = unsupported


@dataclass(frozen=True, slots=True)
class Question:
    """A grammar to try out. `what` names it in messages. A `strict` one is refused if a keyword cannot be enforced."""

    kind: GrammarKind
    source: str
    what: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """llguidance's serialised grammar, or why it is refused: `unsupported` when only llguidance lacks what it asks.

    `unenforced` are sentences, one for each keyword of a JSON schema that the grammar leaves out.
    """

    grammar: str = ""
    unenforced: tuple[str, ...] = ()
    refusal: str | None = None
    unsupported: bool = False
