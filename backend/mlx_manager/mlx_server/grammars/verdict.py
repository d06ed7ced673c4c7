"""What a checking process says of a grammar."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """llguidance's serialised grammar, or why it is refused: `unsupported` when only llguidance lacks what it asks.

    `unenforced` are sentences, one for each keyword of a JSON schema that the grammar leaves out.
    """

    grammar: str = ""
    unenforced: tuple[str, ...] = ()
    refusal: str | None = None
    unsupported: bool = False
