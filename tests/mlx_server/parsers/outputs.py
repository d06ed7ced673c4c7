"""Outputs in the form of each family, and what they consist of."""

from collections.abc import Iterable

from mlx_manager.mlx_server.parsers import detect
from mlx_manager.mlx_server.parsers.formats import HarmonyFormat, OutputFormat
from mlx_manager.mlx_server.parsers.pieces import (
    Piece,
    Reasoning,
    Text,
    Tool,
    ToolCallArguments,
    ToolCallBroken,
    ToolCallEnd,
    ToolCallStart,
    joined,
)

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "where": {"type": "object", "properties": {"lat": {"type": "number"}}},
            "metric": {"type": "boolean"},
        },
        "required": ["city"],
    },
)
TIME = Tool("get", {"type": "object", "properties": {}})
TOOLS = (WEATHER, TIME)


def parse(
    output_format: OutputFormat, texts: Iterable[str], *, tools: tuple[Tool, ...] = TOOLS, opened: bool = False
) -> list[Piece]:
    parser = output_format.make_parser(tools, opened_reasoning=opened)
    pieces = [piece for text in texts for piece in parser.feed(text)]
    return joined([*pieces, *parser.flush()])


def call(arguments: str = "{}", name: str = "get_weather") -> list[Piece]:
    return [ToolCallStart(name), ToolCallArguments(arguments), ToolCallEnd()]


def broken(arguments: str, text: str, name: str = "get_weather") -> list[Piece]:
    """A call that was announced before it broke, after which all of its text comes as text."""
    sent: list[Piece] = [ToolCallArguments(arguments)] if arguments else []
    return [ToolCallStart(name), *sent, ToolCallBroken(), Text(text)]


HARMONY = HarmonyFormat()
THINKING = detect.detect_format("qwen", "<tool_call> <think></think>")
PARIS = '{"city": "Paris"}'
HARD = (
    r'{"city": "a \"b\" {[]}}\n </tool_call> \u00e9 é😀 \\",'
    ' "where": {"lat": -1.5e3, "x": [[], {}, null]}, "tags": [ ]}'
)
DEEPSEEK_END = "<｜tool▁call▁end｜>"

OUTPUTS: list[tuple[OutputFormat, str, list[Piece]]] = [
    (detect.PLAIN, "Hi <tool_call> {", [Text("Hi <tool_call> {")]),
    (detect.HERMES, "", []),
    (detect.HERMES, "  no call\n", [Text("  no call\n")]),
    (detect.HERMES, "<tool_cal <tool_calls>", [Text("<tool_cal <tool_calls>")]),
    (detect.HERMES, f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>', call(PARIS)),
    (detect.HERMES, f'<tool_call>{{"name":"get_weather","arguments":{HARD}}}</tool_call>', call(HARD)),
    (detect.HERMES, f'<tool_call>{{"arguments": {PARIS}, "name": "get_weather"}}</tool_call>', call(PARIS)),
    (detect.HERMES, '<tool_call>{"name": "get_weather"}</tool_call>', call()),
    (detect.HERMES, '<tool_call>{"name": "get_weather", "arguments": null}</tool_call>', call()),
    (
        detect.HERMES,
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": 1}"}</tool_call>',
        call('{"city": 1}'),
    ),
    (detect.HERMES, '<tool_call>{"name": "get_weather", "arguments": {"city": "a\nb"}}', call('{"city": "a\\nb"}')),
    (detect.HERMES, '<tool_call>{"id": [1], "name": "other", "arguments": { }}</tool_call>', call("{ }", "other")),
    (
        detect.HERMES,
        f'I look.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>\n\nDone. ',
        [Text("I look."), *call(PARIS), *call("{}", "get"), Text("Done. ")],
    ),
    (
        THINKING,
        '<think>\nhm <tool_call>\n\n</think>\n\n<tool_call>{"name": "get", "arguments": {}}</tool_call>',
        [Reasoning("hm <tool_call>"), *call("{}", "get")],
    ),
    (detect.LLAMA, f'{{"name": "get_weather", "parameters": {PARIS}}}', call(PARIS)),
    (detect.LLAMA, f'<|python_tag|>{{"name": "other", "parameters": {PARIS}}}', call(PARIS, "other")),
    (detect.LLAMA, f'{{"type": "function", "name": "get_weather", "parameters": {HARD}}}', call(HARD)),
    (
        detect.LLAMA,
        f'Look:\n{{"name": "get_weather", "parameters": {PARIS}}}; {{"name": "get", "parameters": {{}}}}\n\n[get()]',
        [Text("Look:"), *call(PARIS), *call("{}", "get"), *call("{}", "get")],
    ),
    (
        detect.LLAMA,
        '{"name": "get", "parameters": {}}; and so on',
        [*call("{}", "get"), Text("; and so on")],
    ),
    (detect.LLAMA, '{"name": "get", "parameters": {}};', call("{}", "get")),
    (detect.LLAMA, '{"city": "Paris"} [1] {"name": "Al"}', [Text('{"city": "Paris"} [1] {"name": "Al"}')]),
    (detect.LLAMA, '{"parameters": {}, "name": "get"}', [Text('{"parameters": {}, "name": "get"}')]),
    (
        detect.LLAMA_PYTHONIC,
        "<|python_start|>[get_weather(city='it\\'s', days=-3, metric=True), get()]<|python_end|>",
        [*call('{"city": "it\'s", "days": -3, "metric": true}'), *call("{}", "get")],
    ),
    (
        detect.LLAMA_PYTHONIC,
        '[get_weather(city="]) \\u00e9\\ud83d\\ude00", tags=["a", \'b\',], '
        'where={"lat": 1.5, "n": None, "t": (1, 2)})]',
        call('{"city": "]) é😀", "tags": ["a", "b"], "where": {"lat": 1.5, "n": null, "t": [1, 2]}}'),
    ),
    (detect.LLAMA_PYTHONIC, '[get_weather(city="""a "b"\nc""")]', call('{"city": "a \\"b\\"\\nc"}')),
    (detect.LLAMA_PYTHONIC, "[get_whatever()] [other()]", [Text("[get_whatever()] [other()]")]),
    (
        detect.BRACKETED_PYTHONIC,
        '<|tool_call_start|>[other(a="b")]<|tool_call_end|>Wait.',
        [*call('{"a": "b"}', "other"), Text("Wait.")],
    ),
    (
        detect.QWEN_CODER,
        "Ok.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nSan\n<b>José\n\n</parameter>\n"
        '<parameter=days>\n3\n</parameter>\n<parameter=where>\n{"lat": 1}\n</parameter>\n</function>\n</tool_call>\n'
        "<tool_call>\n<function=get>\n</function>\n</tool_call>",
        [Text("Ok."), *call('{"city": "San\\n<b>José\\n", "days": 3, "where": {"lat": 1}}'), *call("{}", "get")],
    ),
    (
        detect.QWEN_CODER,
        "<function=get_weather><parameter=city>5</parameter><parameter=metric>True</parameter>"
        "<parameter=tags>['a']</parameter><parameter=new>[1]</parameter></function></tool_call>",
        call('{"city": "5", "metric": true, "tags": ["a"], "new": [1]}'),
    ),
    (
        detect.MINIMAX,
        'Ok.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">San\n<b>José</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="get">\n</invoke>\n</minimax:tool_call>',
        [Text("Ok."), *call('{"city": "San\\n<b>José", "days": 3}'), *call("{}", "get")],
    ),
    (
        detect.MUSE,
        '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="tags">["a"]</atem:parameter>\n'
        "</atem:invoke>\n</atem:function_calls>",
        call('{"tags": ["a"]}'),
    ),
    (
        detect.DSML,
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">5'
        '</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">5</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls>",
        call('{"city": "5", "days": 5}'),
    ),
    (
        detect.MINICPM,
        '<function name="get_weather"><param name="city"><![CDATA[a < b & \n c]]></param><param name="metric">true'
        '</param></function>\n<function name="get"></function>',
        [*call('{"city": "a < b & \\n c", "metric": true}'), *call("{}", "get")],
    ),
    (
        detect.LONGCAT,
        "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>5"
        "</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>5</longcat_arg_value>\n"
        "</longcat_tool_call><longcat_tool_call>get\n</longcat_tool_call>",
        [*call('{"city": "5", "days": 5}'), *call("{}", "get")],
    ),
    (
        detect.KIMI_K2,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{PARIS}<|tool_call_end|><|tool_call_begin|>get:1<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        [*call(PARIS), *call("{}", "get")],
    ),
    (
        detect.KIMI_K3,
        'Ok.<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" '
        'type="string"<|sep|>5<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>5'
        '<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="get" index="2"<|sep|><|open|>json '
        'type="object"<|sep|>{}<|close|>json<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
        [Text("Ok."), *call('{"city": "5", "days": 5}'), *call("{}", "get")],
    ),
    (
        detect.GLM,
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>12</arg_value>\n</tool_call>\n<tool_call>get</tool_call>",
        [*call('{"city": "12", "days": 12}'), *call("{}", "get")],
    ),
    (
        detect.MISTRAL_LIST,
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {HARD}, "id": "abc123def"}}, {{"name": "get"}}]',
        [*call(HARD), *call("{}", "get")],
    ),
    (
        detect.MISTRAL,
        f"Hm.[TOOL_CALLS]get_weather[ARGS]{HARD}[TOOL_CALLS]get[CALL_ID]abc123def[ARGS]{{}}[TOOL_CALLS]get{{}}",
        [Text("Hm."), *call(HARD), *call("{}", "get"), *call("{}", "get")],
    ),
    (
        detect.FUNCTION_GEMMA,
        "<start_function_call>call:get_weather{city:<escape>a,}{:b<escape>,days:3,metric:true,tags:[<escape>x<escape>],"
        "where:{lat:1.5,name:old town}}<end_function_call><start_function_call>call:get{}<end_function_call>",
        [
            *call(
                '{"city": "a,}{:b", "days": 3, "metric": true, "tags": ["x"], '
                '"where": {"lat": 1.5, "name": "old town"}}'
            ),
            *call("{}", "get"),
        ],
    ),
    (
        detect.GEMMA_4,
        '<|tool_call>call:get_weather{city:<|"|>say "hi"<|"|>,days:3}<tool_call|>',
        call('{"city": "say \\"hi\\"", "days": 3}'),
    ),
    (
        detect.TOOL_CODE,
        'Sure.\n```tool_code\nprint(get_weather(city="Paris"))\nget()\n```\nDone.',
        [Text("Sure."), *call(PARIS), *call("{}", "get"), Text("Done.")],
    ),
    (detect.TOOL_CODE, '[get_weather(city="Paris")]', call(PARIS)),
    (
        detect.PHI,
        '<|tool_call|>[{"type": "function", "function": '
        f'{{"name": "get_weather", "arguments": {HARD}}}}}]<|/tool_call|>',
        call(HARD),
    ),
    (detect.PHI, f'functools[{{"name": "get_weather", "arguments": {PARIS}}}]', call(PARIS)),
    (detect.PHI, "functools[0] is a list", [Text("functools[0] is a list")]),
    (
        detect.DEEPSEEK_FENCED,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f"```json\n{HARD}\n```{DEEPSEEK_END}\n"
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n{{}}\n```{DEEPSEEK_END}<｜tool▁calls▁end｜>",
        [*call(HARD), *call("{}", "get")],
    ),
    (
        detect.DEEPSEEK,
        f"Ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{HARD}{DEEPSEEK_END}<｜tool▁call▁begin｜>get"
        f"<｜tool▁sep｜>{{}}{DEEPSEEK_END}<｜tool▁calls▁end｜>",
        [Text("Ok"), *call(HARD), *call("{}", "get")],
    ),
    (
        HARMONY,
        "<|channel|>analysis<|message|>I need it.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json"
        f"<|message|>{HARD}<|call|>",
        [Reasoning("I need it."), Text("One moment."), *call(HARD)],
    ),
    (HARMONY, f" to=functions.get_weather<|channel|>commentary json<|message|>{PARIS}", call(PARIS)),
    (HARMONY, "<|channel|>commentary to=functions.get<|message|><|call|>", call("{}", "get")),
    (HARMONY, "<|channel|>final<|message|>2 < 3 <|return|>", [Text("2 < 3 ")]),
    (
        HARMONY,
        "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b",
        [Reasoning("a"), Text("b")],
    ),
    (HARMONY, "no markers at all", [Text("no markers at all")]),
]

BROKEN_OUTPUTS: list[tuple[OutputFormat, str, list[Piece]]] = [
    (detect.HERMES, "a <tool_call>get_weather</tool_call> b", [Text("a <tool_call>get_weather</tool_call> b")]),
    (detect.HERMES, '<tool_call>{"arguments": {}}</tool_call>', [Text('<tool_call>{"arguments": {}}</tool_call>')]),
    (detect.HERMES, '<tool_call>{"name": ""}</tool_call>', [Text('<tool_call>{"name": ""}</tool_call>')]),
    (detect.HERMES, '<tool_call>{"name": "\\ud83d"}', [Text('<tool_call>{"name": "\\ud83d"}')]),
    (detect.HERMES, '<tool_call>{"name": "a", "name": "b"}', [Text('<tool_call>{"name": "a", "name": "b"}')]),
    (
        detect.HERMES,
        '<tool_call>{"name": "get", "arguments": [1]}',
        [Text('<tool_call>{"name": "get", "arguments": [1]}')],
    ),
    *(
        (
            detect.HERMES,
            f'a <tool_call>{{"name": "get_weather", "arguments": {sent}{wrong}',
            [Text("a"), *broken(sent, f' <tool_call>{{"name": "get_weather", "arguments": {sent}{wrong}')],
        )
        for sent, wrong in [
            ('{"city": ', "Paris}}</tool_call>"),
            ('{"days": ', "01}}</tool_call> b"),
            ('{"days": 1 ', "2}}"),
            ('{"city": "a', '\\x"}}'),
            ('{"city": "a', '\\u00zz"}}'),
            ('{"city" ', '"a"}}'),
            ('{"city": "Par', ""),
            ('{"a": 1', ""),
            ("{" + '"a": {' * 100, "]"),
        ]
    ),
    (
        detect.HERMES,
        '<tool_call>{"name": "get_weather", "arguments": "[]"}',
        broken("", '<tool_call>{"name": "get_weather", "arguments": "[]"}'),
    ),
    (
        detect.HERMES,
        '<tool_call>{bad <tool_call>{"name": "get", "arguments": {}}</tool_call>',
        [Text("<tool_call>{bad"), *call("{}", "get")],
    ),
    (detect.LLAMA, "<|python_tag|>print(1)", [Text("<|python_tag|>print(1)")]),
    (
        detect.LLAMA,
        '{"name": "get_weather", "parameters": {"city": Paris}}',
        broken('{"city": ', '{"name": "get_weather", "parameters": {"city": Paris}}'),
    ),
    (detect.LLAMA, "[get_weather(Paris)]", broken("", "[get_weather(Paris)]")),
    (
        detect.LLAMA,
        "[get(), get_weather(city=1+)]",
        [*call("{}", "get"), *broken("", ", get_weather(city=1+)]")],
    ),
    (detect.LLAMA, '[get(a="x', broken("", '[get(a="x', "get")),
    (detect.LLAMA, '[get(a="\\ud83d")]', broken("", '[get(a="\\ud83d")]', "get")),
    (
        detect.QWEN_CODER,
        "<tool_call>\n<function=get>\n<parameter=a>\n1\n",
        broken("", "<tool_call>\n<function=get>\n<parameter=a>\n1\n", "get"),
    ),
    (
        detect.MINIMAX,
        "<minimax:tool_call>none</minimax:tool_call>",
        [Text("<minimax:tool_call>none</minimax:tool_call>")],
    ),
    (detect.KIMI_K2, "<|tool_call_begin|>get:0<|tool_call_end|>", [Text("<|tool_call_begin|>get:0<|tool_call_end|>")]),
    (detect.KIMI_K3, "<|open|>tools<|sep|>none", [Text("<|open|>tools<|sep|>none")]),
    (
        detect.KIMI_K3,
        '<|open|>call tool="get_weather"<|sep|><|open|>argument type="x"<|sep|>',
        broken("", '<|open|>call tool="get_weather"<|sep|><|open|>argument type="x"<|sep|>'),
    ),
    (detect.QWEN_CODER, "<tool_call>x", [Text("<tool_call>x")]),
    (detect.GLM, "<tool_call>get weather</tool_call>", [Text("<tool_call>get weather</tool_call>")]),
    (detect.MISTRAL, "[TOOL_CALLS]get is it", [Text("[TOOL_CALLS]get is it")]),
    (detect.MISTRAL_LIST, "[TOOL_CALLS][]", [Text("[TOOL_CALLS][]")]),
    (
        detect.MISTRAL_LIST,
        '[TOOL_CALLS][{"name": "get"}, {"name": 1}]',
        [*call("{}", "get"), Text(', {"name": 1}]')],
    ),
    (
        detect.FUNCTION_GEMMA,
        "<start_function_call>call:get{a:}<end_function_call>",
        broken("", "<start_function_call>call:get{a:}<end_function_call>", "get"),
    ),
    (detect.TOOL_CODE, "```tool_code\nimport os\n```", [Text("```tool_code\nimport os\n```")]),
    (detect.PHI, "<|tool_call|>none", [Text("<|tool_call|>none")]),
    (detect.DEEPSEEK, "<｜tool▁calls▁begin｜>get", [Text("<｜tool▁calls▁begin｜>get")]),
    (
        HARMONY,
        "<|channel|>commentary to=functions.get<|message|>[]<|call|>",
        [Text("<|channel|>commentary to=functions.get<|message|>[]<|call|>")],
    ),
    (HARMONY, "<|channel|>final", [Text("<|channel|>final")]),
]
"""Each with one call that does not parse."""
