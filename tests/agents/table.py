"""The table of `docs/agents.md`: the clients, their versions, and what the tests saw of each."""

import platform
import time
from collections.abc import Sequence
from pathlib import Path

from tests.agents.installing import NPM, PYPI

Table = dict[tuple[str, str], list[str]]
"""The outcomes of tests, by client and check."""
BEGIN, END = "<!-- written by make test-agents -->", "<!-- end of what make test-agents writes -->"
CHECKS = ("first answer", "tool loop", "second turn")
_NAMES = {
    "claude": "Claude Code",
    "codex": "Codex",
    "opencode": "OpenCode",
    "qwen": "Qwen Code",
    "continue": "Continue",
}
_HAS_NONE = {("aider", "tool loop"): "has none"}
_WORDS = {"passed": "yes", "failed": "**failed**", "skipped": "skipped"}


def write_table(page: Path, table: Table) -> None:
    """Replaces the text between the marks of the page."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, f"{page} has no '{BEGIN}' before a '{END}'"
    page.write_text(f"{before}{BEGIN}\n{_text(table)}{END}{after}", "utf-8")


def _text(table: Table) -> str:
    versions = {client: version for client, (_, version, *_) in {**NPM, **PYPI}.items()}
    lines = [f"| client | version | {' | '.join(CHECKS)} |", "|---|---|" + "---|" * len(CHECKS)]
    for client, version in versions.items():
        cells = [_cell(client, check, table.get((client, check), ())) for check in CHECKS]
        lines.append(f"| {_NAMES.get(client, client)} | {version} | {' | '.join(cells)} |")
    return "\n".join([f"On {time.strftime('%Y-%m-%d')}, on {platform.system()}:", "", *lines]) + "\n"


def _cell(client: str, check: str, outcomes: Sequence[str]) -> str:
    """The worst outcome counts."""
    expected = next((outcome for outcome in outcomes if outcome.startswith("no: ")), "failed")
    worst = next((outcome for outcome in ("failed", expected, "passed", "skipped") if outcome in outcomes), None)
    return _HAS_NONE.get((client, check), "not tried") if worst is None else _WORDS.get(worst, worst)
