"""Forty questions that show whether a model is fit for an agent: which tools it calls, with what, and when none.

Each has one right answer, which is in the question's own words. Pure data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = {
    "tool": "the right one of eight tools",
    "arguments": "the right arguments, types and all",
    "none": "no call where none is due",
    "parallel": "two or three calls at once",
    "nested": "arguments with objects and lists in them",
    "error": "a corrected call after a tool's error",
}


@dataclass(frozen=True, slots=True)
class Call:
    """`arguments` are None where any will do."""

    name: str
    arguments: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A call that went before, and the error that it was answered with."""

    call: Call
    error: str


@dataclass(frozen=True, slots=True)
class Question:
    kind: str
    text: str
    calls: tuple[Call, ...] = ()
    failed: Failed | None = field(default=None)


def _tool(name: str, description: str, **properties: object) -> dict[str, object]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": parameters | {"additionalProperties": False}}
    return {"type": "function", "function": function}


_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_PERSON = {"type": "object", "properties": {"name": _TEXT, "age": _WHOLE}, "required": ["name", "age"]}
_ITEM = {"type": "object", "properties": {"product": _TEXT, "count": _WHOLE}, "required": ["product", "count"]}

TOOLS = (
    _tool("get_weather", "Get the weather of a city.", city=_TEXT),
    _tool("read_file", "Read a text file.", path=_TEXT),
    _tool("delete_file", "Delete a file.", path=_TEXT),
    _tool("run_command", "Run a shell command.", command=_TEXT),
    _tool("add_numbers", "Add two numbers.", a=_NUMBER, b=_NUMBER),
    _tool("set_timer", "Set a timer.", minutes=_WHOLE, label=_TEXT),
    _tool("book_table", "Book a table in a restaurant.", restaurant=_TEXT, guests={"type": "array", "items": _PERSON}),
    _tool("place_order", "Order products.", customer=_TEXT, items={"type": "array", "items": _ITEM}),
)


def _weather(city: str) -> Call:
    return Call("get_weather", {"city": city})


def _read(path: str) -> Call:
    return Call("read_file", {"path": path})


def _delete(path: str) -> Call:
    return Call("delete_file", {"path": path})


def _run(command: str) -> Call:
    return Call("run_command", {"command": command})


def _add(a: float, b: float) -> Call:
    return Call("add_numbers", {"a": a, "b": b})


def _timer(minutes: int, label: str) -> Call:
    return Call("set_timer", {"minutes": minutes, "label": label})


def _table(restaurant: str, **ages: int) -> Call:
    guests = [{"name": name, "age": age} for name, age in ages.items()]
    return Call("book_table", {"restaurant": restaurant, "guests": guests})


def _order(customer: str, **counts: int) -> Call:
    items = [{"product": product, "count": count} for product, count in counts.items()]
    return Call("place_order", {"customer": customer, "items": items})


QUESTIONS = (
    Question("tool", "What is the weather in Oslo?", (Call("get_weather"),)),
    Question("tool", "Will I need an umbrella in Lima today?", (Call("get_weather"),)),
    Question("tool", "Show me what is in notes.txt.", (Call("read_file"),)),
    Question("tool", "Remove the file old.log, please.", (Call("delete_file"),)),
    Question("tool", "Run the shell command `uptime`.", (Call("run_command"),)),
    Question("tool", "Use the tool to add 17 and 25.", (Call("add_numbers"),)),
    Question("tool", "Remind me of the tea in 4 minutes.", (Call("set_timer"),)),
    Question("tool", "Order 3 pens for Mia.", (Call("place_order"),)),
    Question("arguments", "What is the weather in New York?", (_weather("New York"),)),
    Question("arguments", "Read the file src/app/main.py.", (_read("src/app/main.py"),)),
    Question("arguments", "Delete the file build/output 2.txt.", (_delete("build/output 2.txt"),)),
    Question("arguments", "Run exactly this shell command: git log --oneline -n 5", (_run("git log --oneline -n 5"),)),
    Question("arguments", "Use the tool to add 12.5 and -3.", (_add(12.5, -3),)),
    Question("arguments", "Set a timer of 90 minutes with the label bread.", (_timer(90, "bread"),)),
    Question("arguments", 'Run exactly this shell command: echo "a b" > c.txt', (_run('echo "a b" > c.txt'),)),
    Question("arguments", "Set a timer of 1 minute with the label eggs.", (_timer(1, "eggs"),)),
    Question("none", "Hello! How are you?"),
    Question("none", "What is the capital of France?"),
    Question("none", "Write a short poem about the sea."),
    Question("none", "What does the word 'river' mean?"),
    Question("none", "Thank you, that was all."),
    Question("none", "Translate 'good morning' into Spanish."),
    Question("none", "Which tools do you have? Only describe them in words."),
    Question("none", "Do not read any file: just tell me what a README usually holds."),
    Question("parallel", "What is the weather in Rome and in Cairo?", (_weather("Rome"), _weather("Cairo"))),
    Question("parallel", "Read a.txt and b.txt.", (_read("a.txt"), _read("b.txt"))),
    Question(
        "parallel",
        "What is the weather in Paris, Tokyo and Quito?",
        (_weather("Paris"), _weather("Tokyo"), _weather("Quito")),
    ),
    Question("parallel", "Delete x.tmp and read y.txt.", (_delete("x.tmp"), _read("y.txt"))),
    Question(
        "parallel",
        "Set two timers: 5 minutes with the label tea, and 10 minutes with the label rice.",
        (_timer(5, "tea"), _timer(10, "rice")),
    ),
    Question("parallel", "Use the tool to add 1 and 2, and also 3 and 4.", (_add(1, 2), _add(3, 4))),
    Question(
        "nested",
        "Book a table at Luna for the guests Ann, aged 30, and Bob, aged 8.",
        (_table("Luna", Ann=30, Bob=8),),
    ),
    Question("nested", "Book a table at Sol for one guest: Eva, aged 41.", (_table("Sol", Eva=41),)),
    Question("nested", "For the customer Leo, order 2 of apple and 5 of pear.", (_order("Leo", apple=2, pear=5),)),
    Question("nested", "For the customer Kim, order 12 of chair.", (_order("Kim", chair=12),)),
    Question(
        "nested",
        "For the customer Ada, order 1 of desk, 1 of lamp and 4 of cable.",
        (_order("Ada", desk=1, lamp=1, cable=4),),
    ),
    Question(
        "error",
        "Read the file notes.txt.",
        (_read("docs/notes.txt"),),
        Failed(_read("notes.txt"), "Error: notes.txt does not exist. The file is docs/notes.txt: read that one."),
    ),
    Question(
        "error",
        "What is the weather in Frisco?",
        (_weather("San Francisco"),),
        Failed(_weather("Frisco"), "Error: unknown city Frisco. Ask again with the city San Francisco."),
    ),
    Question(
        "error",
        "Run the shell command python --version.",
        (_run("python3 --version"),),
        Failed(_run("python --version"), "Error: python: command not found. Run python3 --version."),
    ),
    Question(
        "error",
        "Delete the file data.",
        (_delete("data.csv"),),
        Failed(_delete("data"), "Error: data is a folder. The file is data.csv: delete that one."),
    ),
    Question(
        "error",
        "Set a timer of 200 minutes with the label roast.",
        (_timer(120, "roast"),),
        Failed(_timer(200, "roast"), "Error: at most 120 minutes. Set 120 minutes with the same label."),
    ),
)
