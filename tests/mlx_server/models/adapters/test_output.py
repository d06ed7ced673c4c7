import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import tool_parsers

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.adapters import (
    DefaultAdapter,
    FormatsOutput,
    ModelAdapter,
    get_adapter,
    get_output_format,
    special_tokens,
)
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer
from mlx_manager.mlx_server.parsers import detect
from mlx_manager.mlx_server.parsers.formats import HarmonyFormat, OutputFormat
from mlx_manager.mlx_server.parsers.pieces import Reasoning, Tool, ToolCallArguments, ToolCallEnd, ToolCallStart

TEMPLATES = Path(__file__).parent / "templates"
FORMATS = {
    "bracketed_pythonic": "bracketed_pythonic",
    "deepseek": "deepseek",
    "deepseek_fenced": "deepseek_fenced",
    "function_gemma": "function_gemma",
    "gemma_4": "gemma_4",
    "glm": "glm",
    "harmony": "harmony",
    "hermes": "hermes",
    "hermes_opened_thinking": "hermes",
    "hermes_thinking": "hermes",
    "kimi_k2": "kimi_k2",
    "kimi_k3": "kimi_k3",
    "llama": "llama",
    "longcat": "longcat",
    "minicpm": "minicpm",
    "minimax": "minimax",
    "mistral": "mistral",
    "mistral_list": "mistral_list",
    "muse": "muse",
    "phi": "phi",
    "qwen_coder": "qwen_coder",
}
"""Templates that write calls as the families' own do, and the format each shows."""

WEATHER = Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}})
OPENAI_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER.parameters}}


def with_template(template: str | None) -> Tokenizer:
    tokenizer = load_tokenizer(demo_model_path())
    tokenizer.chat_template = template
    return tokenizer


def read_template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text("utf-8")


def asks_for_weather(call_id: str, arguments: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load_tokenizer(demo_model_path())


def test_every_template_is_tried() -> None:
    assert sorted(FORMATS) == sorted(file.stem for file in TEMPLATES.iterdir())


@pytest.mark.parametrize(("template", "name"), FORMATS.items())
def test_the_format_is_read_from_the_template_whatever_the_model_is_called(template: str, name: str) -> None:
    assert get_output_format(DefaultAdapter(), with_template(read_template(template))).name == name


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "llama"),
        ("qwen", "hermes"),
        ("mistral", "mistral_list"),
        ("gemma", "tool_code"),
        ("phi", "phi"),
        ("deepseek", "deepseek_fenced"),
        ("glm", "glm"),
        ("default", "plain"),
        ("mamba", "plain"),
    ],
)
def test_where_the_template_shows_no_calls_the_family_decides(family: str, name: str) -> None:
    assert detect.detect_format(family, "{{ messages }}").name == name


@pytest.mark.parametrize(
    ("template", "markers"),
    [
        ("{{ '<think>' }}{{ '</think>' }}", ("<think>", "</think>")),
        ("[THINK][/THINK]", ("[THINK]", "[/THINK]")),
        ("<|channel>thought<channel|>", ("<|channel>thought", "<channel|>")),
        ("{{ messages }}", None),
    ],
)
def test_reasoning_is_read_from_the_template(template: str, markers: tuple[str, str] | None) -> None:
    reasoning = detect.detect_format("default", template).reasoning
    assert (None if reasoning is None else (reasoning.start, reasoning.end)) == markers


def test_reasoning_is_read_from_the_vocabulary_where_the_template_does_not_tell() -> None:
    found = detect.detect_format("default", "", {"<|think:start|>": 1, "<|think:end|>": 2, "<think>": 3})
    assert found.reasoning is not None
    assert found.reasoning.start == "<|think:start|>"


@pytest.mark.parametrize("template", [None, {"default": "{{ messages }}", "tool_use": "[TOOL_CALLS]"}])
def test_a_model_with_no_template_or_with_several_has_a_format(template: Any) -> None:
    found = get_output_format(DefaultAdapter(), with_template(template))
    assert found.name == ("plain" if template is None else "mistral_list")


@pytest.mark.parametrize("parser", [module.name for module in pkgutil.iter_modules(tool_parsers.__path__)])
def test_every_parser_that_a_models_files_may_name_for_mlx_lm_has_a_format(parser: str) -> None:
    tokenizer = with_template("{{ messages }}")
    tokenizer.init_kwargs["tool_parser_type"] = parser
    assert get_output_format(DefaultAdapter(), tokenizer).name != "plain"


def test_a_template_that_shows_its_calls_goes_before_the_parser_that_is_named() -> None:
    tokenizer = with_template(read_template("hermes"))
    tokenizer.init_kwargs["tool_parser_type"] = "minimax_m2"
    assert get_output_format(DefaultAdapter(), tokenizer).name == "hermes"


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (("<|tool_call_start|>", "<|tool_call_end|>"), "bracketed_pythonic"),
        (("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"), "kimi_k3"),
    ],
)
def test_tokens_for_calls_tell_the_format_where_the_template_does_not(tokens: tuple[str, ...], name: str) -> None:
    assert detect.detect_format("default", "{{ messages }}", tokens).name == name
    assert detect.detect_format("default", "{{ messages }}", tokens[:1]).name == "plain"


class AdapterWithFormat(DefaultAdapter):
    def output_format(self, tokenizer: Tokenizer) -> OutputFormat:
        return HarmonyFormat()


def test_an_adapter_may_say_itself_which_format_its_models_have(demo: Tokenizer) -> None:
    assert isinstance(AdapterWithFormat(), FormatsOutput)
    assert isinstance(AdapterWithFormat(), ModelAdapter)
    assert not isinstance(DefaultAdapter(), FormatsOutput)
    assert get_output_format(AdapterWithFormat(), demo) == HarmonyFormat()


def test_the_demo_model_calls_tools_as_llama_and_thinks(demo: Tokenizer) -> None:
    adapter = get_adapter("demo", demo_model_path())
    found = get_output_format(adapter, demo)
    parser = found.make_parser([WEATHER], opened_reasoning=False)
    thought = '<think>They ask for the weather.</think>\n{"name": "get_weather", "parameters": {"city": "Oslo"}}'
    assert parser.feed(thought) + parser.flush() == [
        Reasoning("They ask for the weather."),
        ToolCallStart("get_weather"),
        ToolCallArguments('{"city": "Oslo"}'),
        ToolCallEnd(),
    ]


def test_a_prompt_says_whether_the_model_is_already_thinking() -> None:
    tokenizer = with_template(read_template("hermes_opened_thinking"))
    found = get_output_format(DefaultAdapter(), tokenizer)
    messages = [{"role": "user", "content": "Hi"}]
    assert found.opens_reasoning(DefaultAdapter().apply_chat_template(tokenizer, messages))
    assert not found.opens_reasoning(DefaultAdapter().apply_chat_template(tokenizer, messages, False))


def test_the_special_tokens_that_the_parser_needs_are_named(demo: Tokenizer) -> None:
    found = detect.detect_format("mistral", "[TOOL_CALLS][ARGS][THINK][/THINK]")
    assert found.visible_special_tokens(with_tools=False) == {"[THINK]", "[/THINK]"}
    assert found.visible_special_tokens(with_tools=True) >= {"[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"}
    llama = get_output_format(get_adapter("demo", demo_model_path()), demo)
    special = special_tokens(demo)
    tokens = {name: special[name] for name in llama.visible_special_tokens(with_tools=True) if name in special}
    assert tokens == {"<|python_tag|>": demo.convert_tokens_to_ids("<|python_tag|>")}  # <think> is none of the special


def test_arguments_reach_the_template_as_an_object_or_as_text_as_it_wants_them() -> None:
    messages = [{"role": "user", "content": "Hi"}, asks_for_weather("1", '{"city": "Zürich"}')]
    for template in ("qwen_coder", "deepseek_fenced"):
        prompt = DefaultAdapter().apply_chat_template(with_template(read_template(template)), messages)
        assert ("<parameter=city>\nZürich\n" if template == "qwen_coder" else '```json\n{"city": "Zürich"}') in prompt


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "null", "3"])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    tokenizer = with_template("{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}")
    prompt = DefaultAdapter().apply_chat_template(tokenizer, [asks_for_weather("1", arguments)])
    assert prompt == json.dumps(arguments)


def test_the_messages_that_were_passed_are_left_alone() -> None:
    message = asks_for_weather("call_1", '{"city": "Oslo"}')
    before = json.dumps(message)
    get_adapter("mistral").apply_chat_template(with_template(read_template("mistral_list")), [message])
    assert json.dumps(message) == before


def test_mistral_gets_ids_of_nine_characters_that_still_belong_together() -> None:
    tokenizer = with_template(read_template("mistral_list"))
    result = {"role": "tool", "tool_call_id": "call_0123456789", "content": "3"}
    messages = [{"role": "user", "content": "Hi"}, asks_for_weather("call_0123456789", "{}"), result]
    prompt = get_adapter("mistral").apply_chat_template(tokenizer, messages)
    call_id = prompt.split('"id": "')[1].split('"')[0]
    assert len(call_id) == 9
    assert prompt.endswith(f'"call_id": "{call_id}"}}[/TOOL_RESULTS]')


def test_mistral_keeps_an_id_that_its_templates_take() -> None:
    tokenizer = with_template(read_template("mistral_list"))
    messages = [{"role": "user", "content": "Hi"}, asks_for_weather("abcDEF123", "{}")]
    assert '"id": "abcDEF123"' in get_adapter("mistral").apply_chat_template(tokenizer, messages)
