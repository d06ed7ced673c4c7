"""The result of a check of `doctor`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """`broken` prevents the server from running. A `warning` makes it slower or smaller."""

    name: str
    state: Literal["ok", "warning", "broken"]
    found: str
    remedy: str = ""
