"""`bench --tools`: how answers are judged, by a server that gives the answers a test wants; and the demo model."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mlx_manager.command_line.tool_questions import KINDS, QUESTIONS, TOOLS, Call, Question
from tests.command_line.commands import mlx_manager
from tests.local_http import QuietHandler, local_server
from tests.running_server import RunningServer

FALLBACK = {
    "get_weather": {"city": "Oslo"},
    "read_file": {"path": "a"},
    "delete_file": {"path": "a"},
    "run_command": {"command": "a"},
    "add_numbers": {"a": 1, "b": 2},
    "set_timer": {"minutes": 4, "label": "tea"},
    "place_order": {"customer": "Mia", "items": []},
}
Model = Callable[[Question], Sequence[tuple[str, str]]]
"""From a question to the calls that are made: names, and arguments as the model writes them."""


def right(question: Question) -> list[tuple[str, str]]:
    return [(call.name, json.dumps(call.arguments or FALLBACK[call.name])) for call in question.calls]


def reversed_and_in_capitals(question: Question) -> list[tuple[str, str]]:
    return [(name, arguments.replace("Rome", "ROME ")) for name, arguments in reversed(right(question))]


def numbers_as_texts(question: Question) -> list[tuple[str, str]]:
    return [(name, arguments.replace("90", '"90"')) for name, arguments in right(question)]


def nothing(question: Question) -> list[tuple[str, str]]:
    return []


def the_first_alone(question: Question) -> list[tuple[str, str]]:
    return right(question)[:1]


def broken_json(question: Question) -> list[tuple[str, str]]:
    return [(name, arguments[:-1]) for name, arguments in right(question)]


def the_same_call_again(question: Question) -> list[tuple[str, str]]:
    failed = question.failed
    return right(question) if failed is None else [(failed.call.name, json.dumps(failed.call.arguments))]


def always_a_call(question: Question) -> list[tuple[str, str]]:
    return right(question) or [("get_weather", '{"city": "Oslo"}')]


@contextlib.contextmanager
def serving(model: Model) -> Iterator[str]:
    asked = {question.text: question for question in QUESTIONS}

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert len(body["tools"]) == len(TOOLS)
            calls = [
                {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for n, (name, arguments) in enumerate(model(asked[body["messages"][1]["content"]]))
            ]
            message = {"role": "assistant", "content": None, "tool_calls": calls or None}
            content = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with local_server(Handler) as url:
        yield url


def wrong_kinds(model: Model) -> Counter[str]:
    """How many questions of each kind the bench counts as wrong."""
    with serving(model) as url:
        ran = mlx_manager("bench", "--tools", "--model", "any", "--base-url", url, "--json")
    assert ran.returncode == 0, ran.stderr
    outcomes = json.loads(ran.stdout)["questions"]
    assert len(outcomes) == 40
    return Counter(outcome["kind"] for outcome in outcomes if not outcome["right"])


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (right, {}),
        (reversed_and_in_capitals, {}),
        (nothing, {"tool": 8, "arguments": 8, "parallel": 6, "nested": 5, "error": 5}),
        (numbers_as_texts, {"arguments": 1}),
        (the_first_alone, {"parallel": 6}),
        (broken_json, {"tool": 8, "arguments": 8, "parallel": 6, "nested": 5, "error": 5}),
        (the_same_call_again, {"error": 5}),
        (always_a_call, {"none": 8}),
    ],
)
def test_each_kind_of_mistake_is_counted_where_it_belongs(model: Model, wrong: dict[str, int]) -> None:
    assert wrong_kinds(model) == wrong


def test_every_expected_call_names_a_tool_and_has_all_of_its_arguments() -> None:
    required = {tool["function"]["name"]: set(tool["function"]["parameters"]["required"]) for tool in TOOLS}  # type: ignore[index]
    calls: list[Call] = [call for question in QUESTIONS for call in question.calls]
    assert {call.name for call in calls} <= required.keys()
    assert all(set(call.arguments) == required[call.name] for call in calls if call.arguments is not None)
    assert (len(QUESTIONS), {question.kind for question in QUESTIONS}) == (40, set(KINDS))


def test_a_table_and_a_picture_of_the_demo_model(server: RunningServer, tmp_path: Path) -> None:
    picture = tmp_path / "tools.svg"
    ran = mlx_manager("bench", "--tools", "--model", "demo", "--picture", picture, server=server)
    assert ran.returncode == 0, ran.stderr
    header, *rows = ran.stdout.splitlines()
    assert header.split()[:3] == ["KIND", "RIGHT", "OF"]
    assert [row.split()[0] for row in rows] == [*KINDS, "all"]
    total = rows[-1].split()
    assert int(total[1]) == sum(int(row.split()[1]) for row in rows[:-1])
    assert total[2] == "40"
    texts = [element.text for element in ElementTree.parse(picture).iter() if element.tag.endswith("text")]
    assert f"{total[1]} of 40" in texts


def test_a_picture_without_tools_is_refused(tmp_path: Path) -> None:
    ran = mlx_manager("bench", "--picture", tmp_path / "a.svg")
    assert ran.returncode == 2
    assert "--tools" in ran.stderr
