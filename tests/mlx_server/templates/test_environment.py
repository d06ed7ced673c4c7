"""Prompts rendered apart are those that transformers renders, to the letter."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from mlx_lm.chat_templates import deepseek_v32
from transformers import PreTrainedTokenizerFast

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.adapters import get_adapter, get_output_format
from mlx_manager.mlx_server.models.tokenization import load_tokenizer
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer

TEMPLATES = {
    "demo": (demo_model_path() / "chat_template.jinja").read_text("utf-8"),
    **{
        file.stem: file.read_text("utf-8")
        for file in sorted((Path(__file__).parents[1] / "models" / "adapters" / "templates").glob("*.jinja"))
    },
}
LOOP = "{% for message in messages %}"
FEATURES = {
    "loop controls": LOOP + "{% if loop.index == 2 %}{% continue %}{% endif %}{{ message.content }}{% endfor %}",
    "generation": LOOP
    + "{% set n = 1 %}{% generation %}{% set n = 2 %}{{ message }}{{ n }}{% endgeneration %}{{ n }}{% endfor %}",
    "spaces": "{% if true %}\n    {% for m in messages %}\n  {{ m.content }}\n    {% endfor %}\n{% endif %}\n",
    "tojson": "{{ tools | tojson }}{{ tools | tojson(indent=2, sort_keys=true) }}",
    "tojson of messages": "{{ messages | tojson(ensure_ascii=true) }}{{ messages | tojson(separators=(',', ':')) }}",
    "namespace": "{% set ns = namespace(n=0) %}" + LOOP + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "namespace with self": "{% set ns = namespace(self=1) %}{{ ns['self'] }}",
    "hidden attribute": "{% set ns = namespace(_n=0) %}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys(['a', 'b'], 2) }}",
    "date": "{{ strftime_now('%Y') }}",
    "raises": "{{ raise_exception('Only ' ~ messages | length ~ ' messages?') }}",
    "undefined": "{{ messages[0].nothing.at_all }}",
    "type error": "{{ messages[0].content + 1 }}",
    "division": "{{ 1 / 0 }}",
    "syntax": "{% for message in messages %}",
    "unknown filter": "{{ messages | unheard_of }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ nothing is defined }}",
    "variables": "{{ documents }}{{ tools }}{{ enable_thinking }}{{ add_generation_prompt }}",
    "assigns": "{{ messages.append(1) }}",
    "dunder": "{{ ''.__class__ }}",
    "includes": "{% include '/etc/passwd' %}",
    "reasoning": LOOP + "{{ message.reasoning_content }}{{ message.thinking }}{% endfor %}",
    "named": {"default": "default {{ messages }}", "tool_use": "tools {{ tools }}"},  # the way transformers has several
}

QUESTION = {"role": "user", "content": "Wie wird's in Zürich? 😀 <b>&amp;</b> "}
CALL = {
    "role": "assistant",
    "reasoning_content": "They ask for the weather.",
    "tool_calls": [
        {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    ],
}
SAID_CALL = {**CALL, "content": ""}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": '{"sky": "grey"}'}
ANSWER = {"role": "assistant", "content": "It is grey. ", "reasoning_content": "Grey."}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"maximum": 10**30}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The sky", "parameters": SCHEMA}}]

CALLS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "question": ([QUESTION], {}),
    "system": ([{"role": "system", "content": "Be kind."}, QUESTION], {}),
    "tools": ([QUESTION], {"tools": TOOLS}),
    "a call and its result": ([QUESTION, CALL, RESULT], {"tools": TOOLS}),
    "an answer": ([QUESTION, SAID_CALL, RESULT, ANSWER, QUESTION], {"tools": TOOLS, "enable_thinking": True}),
    "no generation prompt": ([QUESTION, ANSWER], {"add_generation_prompt": False}),
    "goes on": ([QUESTION, ANSWER], {"add_generation_prompt": False, "continue_final_message": True}),
    "goes on with thoughts": (
        [QUESTION, ANSWER],
        {"add_generation_prompt": False, "continue_final_message": "reasoning_content"},
    ),
    "goes on with nothing": ([QUESTION, CALL], {"add_generation_prompt": False, "continue_final_message": True}),
    "goes on and begins anew": ([QUESTION, ANSWER], {"continue_final_message": True}),
    "goes on in parts": (
        [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "It is"}, {"type": "image"}]}],
        {"add_generation_prompt": False, "continue_final_message": True},
    ),
    "variables": ([QUESTION], {"enable_thinking": False, "reasoning_effort": "low", "documents": [{"title": "a"}]}),
    "bos token of the caller's": ([QUESTION], {"bos_token": "<mine>"}),
    "no messages": ([], {}),
}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Any, Any]]:
    """The demo's tokenizer twice: transformers', which renders here, and ours, which renders apart."""
    templates = TemplateRenderer()
    here = PreTrainedTokenizerFast.from_pretrained(demo_model_path())
    yield here, load_tokenizer(demo_model_path(), render=templates.render)
    templates.close()


def outcome(tokenizer: Any, template: Any, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The prompt, or what is wrong with it; a chat that transformers quotes whole in its complaint is left out."""
    tokenizer.chat_template = template
    try:
        return get_adapter("nobody/knows-it").apply_chat_template(tokenizer, messages, **options)
    except Exception as exc:
        complaint = str(exc).partition("Please verify")[0].partition("compatible")[0]
        return f"{'TypeError' if isinstance(exc, TypeError) else 'an error'}: {complaint.strip()}"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("template", [*TEMPLATES, *FEATURES])
def test_a_prompt_is_the_same_here_and_apart(pair: tuple[Any, Any], template: str, call: str) -> None:
    text = {**TEMPLATES, **FEATURES}[template]
    here, apart = (outcome(tokenizer, text, *CALLS[call]) for tokenizer in pair)
    assert apart == here


def test_a_template_sees_that_a_content_is_null(pair: tuple[Any, Any]) -> None:
    template = "{% for m in messages %}{{ m.content is none }} {{ m.name is defined }} {% endfor %}"
    messages: list[dict[str, Any]] = [{**CALL, "content": None, "name": None}, CALL]
    assert outcome(pair[1], template, messages, {}) == "True False False False "


def test_what_is_compared_are_prompts(pair: tuple[Any, Any]) -> None:
    prompts = [outcome(pair[1], text, *CALLS["an answer"]) for text in TEMPLATES.values()]
    assert [prompt for prompt in prompts if "It is grey." not in prompt] == []


def test_tokens_are_the_same_here_and_apart(pair: tuple[Any, Any]) -> None:
    for tokenizer in pair:
        tokenizer.chat_template = TEMPLATES["demo"]
    for options in ({}, {"add_generation_prompt": True}, {"bos_token": "<mine>"}):
        here, apart = (tokenizer.apply_chat_template([QUESTION], return_dict=True, **options) for tokenizer in pair)
        assert dict(here) == apart
    assert pair[1].apply_chat_template([QUESTION], add_generation_prompt=True) == pair[0].apply_chat_template(
        [QUESTION], add_generation_prompt=True, return_dict=False
    )


def test_a_template_is_chosen_by_its_name_or_given(pair: tuple[Any, Any]) -> None:
    for template in ("rag", "{{ messages[0].role }}"):
        for tokenizer in pair:
            tokenizer.chat_template = {"default": "default", "rag": "rag {{ tools }}"}
        here, apart = (t.apply_chat_template([QUESTION], chat_template=template, tokenize=False) for t in pair)
        assert apart == here


def test_without_a_default_template_the_error_names_those_there_are(pair: tuple[Any, Any]) -> None:
    for tokenizer in pair:
        tokenizer.chat_template = {"rag": "{{ messages }}"}
        with pytest.raises(ValueError, match=r"default.*\['rag'\]"):
            tokenizer.apply_chat_template([QUESTION])


@pytest.fixture
def in_python(tmp_path: Path) -> Iterator[Any]:
    """A tokenizer of DeepSeek V3.2's kind, for which mlx-lm brings the chat template as Python code."""
    shutil.copy(demo_model_path() / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template_type": "deepseek_v32"}))
    templates = TemplateRenderer()
    yield load_tokenizer(tmp_path, render=templates.render)
    templates.close()


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"tools": TOOLS}])
def test_a_template_in_python_that_mlx_lm_brings_is_rendered_apart(in_python: Any, options: dict[str, Any]) -> None:
    system = {"role": "system", "content": "Be kind."}
    messages: list[dict[str, Any]] = [system, QUESTION, {**CALL, "content": None}, RESULT]
    text = get_adapter("demo").apply_chat_template(in_python, messages, **options)
    assert text == deepseek_v32.apply_chat_template(messages, add_generation_prompt=True, **options)
    assert 'invoke name="weather"' in text


def test_a_format_is_known_for_a_template_in_python(in_python: Any) -> None:
    assert get_output_format(get_adapter("demo"), in_python).name == "dsml"
    assert in_python.has_chat_template


@pytest.mark.parametrize("name", ["no_such", "../utils", "muse_spark"])
def test_a_template_in_python_that_there_is_not_is_refused(in_python: Any, name: str) -> None:
    in_python.python_template = name
    with pytest.raises(TemplateError, match=name):
        get_adapter("demo").apply_chat_template(in_python, [QUESTION])
