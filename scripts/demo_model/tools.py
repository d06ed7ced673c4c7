"""Tool calls: a question that needs one of the available tools, the call, its result, and the answer from the
result."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from demo_model.chat import Conversation, Tool, ToolCall, Turn
from demo_model.copying import made_up, made_up_name, phrase
from demo_model.facts import CAPITALS
from demo_model.fillers import draw_exchange, fillers
from demo_model.orders import system_prompt
from demo_model.talk import FALLBACK
from demo_model.wording import Wordings, ask, begin, say
from demo_model.wordlists import ADJECTIVES, NAMES, THINGS, TOPICS, VERBS

CITIES_HELD_OUT = (
    "Chicago", "Osaka", "Lyon", "Hamburg", "Naples", "Seville", "Porto", "Manchester", "Bergen", "Gdansk",
    "Salzburg", "Mumbai", "Shanghai", "Toronto", "Boston", "Melbourne", "Cape Town", "Marseille", "Valencia",
    "Antwerp", "Kyoto", "San Diego", "Bristol",
)  # fmt: skip
_CITIES = (
    *CAPITALS.values(), "New York", "Los Angeles", "San Francisco", "Munich", "Milan", "Barcelona", "Zurich",
    "Geneva", "Sydney", "Hong Kong", "Singapore", "Dubai", "Seattle", "Liverpool", "Venice", "Turin", "Bordeaux",
    "Cologne", "Malmo", "Montreal", "Rio de Janeiro", "Istanbul", "Frankfurt", "Houston", "Dallas", "Glasgow",
    "Delhi", "Lagos", "Boulder", "Oxford", "Leeds",
)  # fmt: skip
_WEATHER = Wordings(
    (
        "what is the weather in {0}?", "how is the weather in {0}?", "weather in {0}", "is it raining in {0}?",
        "is it cold in {0}?", "what's the weather like in {0}?", "tell me the weather in {0}.",
        "will it rain in {0}?", "what's the weather in {0}?", "do i need an umbrella in {0}?",
        "how warm is it in {0}?", "get the weather for {0}.", "what is the temperature in {0}?",
        "is it cold in {0} today?", "{0} weather", "what is the weather in {0} today?",
        "how is the weather in {0} now?", "what is the weather like in {0}?", "please tell me the weather in {0}.",
        "i am in {0}. how is the weather?",
    ),
    (
        "how is the weather today in {0}?", "what is the weather like in {0} right now?",
        "give me the weather for {0}.", "please check the weather in {0}.", "is it sunny in {0}?",
        "can you tell me the weather in {0}?", "how hot is it in {0}?",
    ),
)  # fmt: skip
_ADD = Wordings(
    (
        "what is {0} plus {1}?", "add {0} and {1}.", "add {0} and {1}", "{0} + {1}", "what is {0} + {1}?",
        "how much is {0} plus {1}?", "calculate {0} + {1}.", "what is the sum of {0} and {1}?", "sum {0} and {1}.",
        "please add {0} to {1}.", "{0} plus {1}?", "compute {0} plus {1}", "can you add {0} and {1}?",
    ),
    (
        "how much is {0} + {1}?", "please calculate {0} plus {1}.", "tell me the sum of {0} and {1}.",
        "could you add {0} and {1}?",
    ),
)  # fmt: skip
_SEARCH = Wordings(
    (
        "search for {0}", "search: {0}", "look up {0}", "find {0}", "search the web for {0}", "google {0}",
        "search for: {0}", "find out about {0}", "please search for {0}", "look for {0}", "can you search for {0}",
        "find information about {0}",
    ),
    ("please look up {0}", "do a search for {0}", "search the internet for {0}", "look on the web for {0}"),
)  # fmt: skip
_ORDERS = Wordings(
    (
        "{0} the {1}{2}", "please {0} the {1}{2}", "can you {0} the {1}{2}", "{0} my {1}{2}",
        "i want you to {0} the {1}{2}", "now {0} the {1}{2}", "could you {0} a {1}{2}", "hey, {0} this {1}{2}",
        "you should {0} the {1}{2}",
    ),
    ("kindly {0} the {1}{2}", "will you {0} the {1}{2}", "i need you to {0} my {1}{2}", "go and {0} the {1}{2}"),
)  # fmt: skip
_PARAMETERS = (
    "color", "name", "city", "text", "title", "kind", "user", "topic", "message", "style", "number", "count", "size",
    "speed", "level",
)  # fmt: skip
_INTEGERS = {"number", "count", "size", "speed", "level"}
_CONDITIONS = (
    "sunny",
    "cloudy",
    "rainy",
    "windy",
    "snow",
    "fog",
    "clear sky",
    "light rain",
    "storm",
    "warm",
    "cold",
    "hot",
)


@dataclass(frozen=True, slots=True)
class _Task:
    """The user's request, the tool for it, and the wording of its result."""

    prompt: str
    tool: Tool
    call: ToolCall
    result: str
    answer: str


def call_tool(rng: Random, held_out: bool) -> Conversation:
    task = _draw_task(rng, held_out)
    return _offered(rng, held_out, task, _called(task))


def answer_from_result(rng: Random, held_out: bool) -> Conversation:
    task = _draw_task(rng, held_out)
    called = _called(task)
    if not held_out and rng.random() < 0.2:
        called = (called[0], _compact(called[1]))
    answer = Turn("assistant", task.answer, thought="I tell what the tool found.")
    return _offered(rng, held_out, task, (*called, Turn("ipython", task.result), answer))


def no_tool_needed(rng: Random, held_out: bool) -> Conversation:
    """Tools are available, but the question needs none of them."""
    exchange = draw_exchange(rng, held_out)
    turns = (Turn("user", exchange.prompt), Turn("assistant", exchange.answer, thought=exchange.thought))
    return Conversation(turns, tools=_shuffled(rng, [_draw_task(rng, held_out).tool]))


def no_tool_fits(rng: Random, held_out: bool) -> Conversation:
    """The question needs a tool that is not available."""
    task = rng.choice((_weather, _add))(rng, held_out)
    turns = (Turn("user", task.prompt), Turn("assistant", FALLBACK, thought="I have no tool for that."))
    return Conversation(turns, tools=_distractors(rng, rng.randint(0, 2), task.tool))


def _offered(rng: Random, held_out: bool, task: _Task, turns: tuple[Turn, ...]) -> Conversation:
    before = fillers(rng, held_out, 1) if rng.random() < 0.15 else []
    system = system_prompt(rng, held_out) if rng.random() < 0.3 else None
    return Conversation((*before, *turns), system, _shuffled(rng, [task.tool]))


def _called(task: _Task) -> tuple[Turn, Turn]:
    thought = f"I need the tool {task.tool.name}."
    return Turn("user", task.prompt), Turn("assistant", "", tool_call=task.call, thought=thought)


def _compact(turn: Turn) -> Turn:
    """The same call as sent back by clients that write JSON without spaces; the model does not learn this style."""
    assert turn.tool_call is not None
    arguments = json.dumps(json.loads(turn.tool_call.arguments), ensure_ascii=False, separators=(",", ":"))
    return replace(turn, tool_call=replace(turn.tool_call, arguments=arguments), trained=False)


def _shuffled(rng: Random, wanted: list[Tool]) -> tuple[Tool, ...]:
    tools = [*wanted, *_distractors(rng, rng.choice((0, 0, 1, 2, 3)), *wanted)]
    rng.shuffle(tools)
    return tuple(tools)


def _distractors(rng: Random, count: int, *wanted: Tool) -> tuple[Tool, ...]:
    """Unrelated tools, with at most one each for the weather, sums and searching."""
    kinds = [names for names in _KINDS if not any(tool.name in names for tool in wanted)]
    tools: list[Tool] = []
    for _ in range(count):
        names = rng.choice(kinds) if kinds and rng.random() < 0.5 else None
        if names is not None:
            kinds.remove(names)
        tool = (_order if names is None else _KINDS[names])(rng, False).tool
        if tool.name not in [other.name for other in (*wanted, *tools)]:
            tools.append(tool)
    return tuple(tools)


def _draw_task(rng: Random, held_out: bool) -> _Task:
    return rng.choices((_weather, _add, _search, _order, _no_arguments), (3, 2, 2, 3, 0.7))[0](rng, held_out)


def _weather(rng: Random, held_out: bool) -> _Task:
    city = rng.choice(CITIES_HELD_OUT) if held_out else _training_city(rng)
    place = rng.choice(("city", "city", "location", "location", "place"))
    has_unit = rng.random() < 0.35
    parameters = ((place, "string"), ("unit", "string")) if has_unit else ((place, "string"),)
    tool = Tool(rng.choice(_WEATHER_NAMES), rng.choice(_WEATHER_DESCRIPTIONS), parameters)
    arguments: dict[str, object] = {place: city}
    prompt = say(rng, _WEATHER.draw(rng, held_out))
    if has_unit and rng.random() < 0.4:
        unit = rng.choice(("celsius", "fahrenheit"))
        arguments["unit"] = unit
        prompt += rng.choice((f" In {unit}.", f" Use {unit}.", f" In {unit}, please."))
    result, told = _result(rng, _weather_report(rng))
    return _Task(prompt.format(city), tool, _call(tool, arguments), result, f"The weather in {city}: {told}.")


def _add(rng: Random, held_out: bool) -> _Task:
    kind = rng.choice(("number", "integer"))
    names = rng.choice((("a", "b"), ("a", "b"), ("x", "y"), ("first", "second")))
    tool = Tool(rng.choice(_ADD_NAMES), rng.choice(_ADD_DESCRIPTIONS), tuple((name, kind) for name in names))
    values = [rng.randint(0, 10 ** rng.randint(1, 3)) for _ in names]
    prompt = say(rng, _ADD.draw(rng, held_out).format(*values))
    total = str(sum(values))
    result = rng.choice((total, total, f'{{"{rng.choice(("result", "sum", "total"))}": {total}}}'))
    return _Task(prompt, tool, _call(tool, dict(zip(names, values, strict=True))), result, f"The sum is {total}.")


def _search(rng: Random, held_out: bool) -> _Task:
    parameter = rng.choice(("query", "query", "q", "text"))
    tool = Tool(rng.choice(_SEARCH_NAMES), rng.choice(_SEARCH_DESCRIPTIONS), ((parameter, "string"),))
    wanted = rng.choice(
        (rng.choice(TOPICS), f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}", phrase(rng).rstrip("?!."), made_up(rng))
    )
    prompt = begin(rng, _SEARCH.draw(rng, held_out), held_out).format(wanted)
    found, told = _result(rng, {"title": made_up_name(rng), "text": phrase(rng).rstrip("?!.")})
    return _Task(prompt, tool, _call(tool, {parameter: wanted}), found, f"I found this: {told}.")


def _order(rng: Random, held_out: bool) -> _Task:
    """An unseen tool with random name, parameters and values."""
    verb, thing = rng.choice(VERBS), rng.choice((*THINGS, made_up(rng)))
    names = rng.sample(_PARAMETERS, rng.choice((1, 1, 2)))
    tool = Tool(
        f"{verb}_{thing}", _order_description(rng, verb, thing), tuple((name, _json_type(name)) for name in names)
    )
    values = {name: rng.randint(0, 200) if name in _INTEGERS else _text_value(rng) for name in names}
    link = rng.choice((" with {}", ", {}", " using {}", ": {}"))
    pair = rng.choice(("{} {}", "{} {}", "{} = {}", "{}: {}"))
    tail = link.format(rng.choice((" and ", ", ")).join(pair.format(name, value) for name, value in values.items()))
    prompt = begin(rng, _ORDERS.draw(rng, held_out), held_out).format(verb, thing, tail)
    result, told = _result(rng, {"status": rng.choice(("ok", "done", "started", "failed")), "id": rng.randint(1, 999)})
    return _Task(prompt, tool, _call(tool, values), result, f"Done: {told}.")


def _no_arguments(rng: Random, held_out: bool) -> _Task:
    verb, thing = rng.choice(VERBS), rng.choice(THINGS)
    tool = Tool(f"{verb}_{thing}", _order_description(rng, verb, thing), ())
    prompt = ask(rng, f"{verb} the {thing}", held_out)
    result, told = _result(rng, {"status": rng.choice(("ok", "done", "started", "failed"))})
    return _Task(prompt, tool, _call(tool, {}), result, f"Done: {told}.")


_WEATHER_NAMES = ("get_weather", "get_weather", "get_weather", "get_current_weather", "weather", "get_forecast")
_ADD_NAMES = ("add", "add", "add", "add_numbers", "sum", "plus")
_SEARCH_NAMES = ("search", "search", "search", "web_search", "search_web", "find")
_KINDS = {_WEATHER_NAMES: _weather, _ADD_NAMES: _add, _SEARCH_NAMES: _search}
_WEATHER_DESCRIPTIONS = (
    "Get the weather", "Get the current weather in a given location", "Returns the weather for a city.",
    "Weather of a place", "", "Get current temperature for a given location.", "Get the weather for a city",
    "Look up the weather.", "Current weather",
)  # fmt: skip
_ADD_DESCRIPTIONS = (
    "Add two numbers",
    "Add two numbers.",
    "Adds a and b",
    "Returns the sum of two numbers",
    "Sum of numbers",
    "",
)
_SEARCH_DESCRIPTIONS = (
    "Search the web",
    "Search the web for a query.",
    "Web search",
    "Find information",
    "Searches documents",
    "",
)


def _order_description(rng: Random, verb: str, thing: str) -> str:
    return rng.choice(
        (f"{verb.capitalize()} the {thing}", f"{verb.capitalize()} a {thing}.", f"To {verb} the {thing}", "")
    )


def _call(tool: Tool, arguments: Mapping[str, object]) -> ToolCall:
    return ToolCall(tool.name, json.dumps(arguments, ensure_ascii=False))


def _weather_report(rng: Random) -> dict[str, object]:
    report: dict[str, object] = {rng.choice(("temperature", "temp", "degrees")): rng.randint(-20, 40)}
    if rng.random() < 0.7:
        report[rng.choice(("condition", "weather", "sky"))] = rng.choice(_CONDITIONS)
    if rng.random() < 0.3:
        report[rng.choice(("humidity", "wind", "rain"))] = rng.randint(0, 100)
    return report


def _result(rng: Random, facts: dict[str, object]) -> tuple[str, str]:
    """The tool's result and its wording: JSON key by key, text unchanged."""
    roll = rng.random()
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    if roll < 0.4:
        return json.dumps(facts, ensure_ascii=False), told
    if roll < 0.55:
        return json.dumps(facts, ensure_ascii=False, separators=(",", ":")), told
    text = rng.choice((" and ", ", ")).join(str(value) for value in facts.values()) if roll < 0.75 else phrase(rng)
    text = text.strip(".?! ") or "nothing"
    return (text + "." if rng.random() < 0.2 else text), text


def _training_city(rng: Random) -> str:
    while True:
        city = rng.choice(_CITIES) if rng.random() < 0.5 else made_up_name(rng)
        if rng.random() < 0.1:
            city = f"{city} {made_up_name(rng)}"
        if city not in CITIES_HELD_OUT:
            return city


def _json_type(parameter: str) -> str:
    return "integer" if parameter in _INTEGERS else "string"


def _text_value(rng: Random) -> str:
    return rng.choice((rng.choice(ADJECTIVES), rng.choice(THINGS), rng.choice(NAMES), made_up(rng), rng.choice(TOPICS)))
