"""What is found out of chat templates, and that every template then gets chats that it renders whole."""

from collections.abc import Iterator
from typing import Any

import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.adapters import (
    DefaultAdapter,
    ModelAdapter,
    TemplateTraits,
    get_adapter,
    get_output_format,
    probe_template,
)
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer
from tests.mlx_server.models.adapters.test_output import FORMATS, read_template

TURN = "{{ '<' + m['role'] + '>' + m['content'] }}"
EACH = "{% for m in messages %}"
NO_SYSTEM = f"{EACH}{{% if m.role != 'system' %}}{TURN}{{% endif %}}{{% endfor %}}"
REFUSE = "{{ raise_exception('no') }}"
ALTERNATING = f"{EACH}{{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}}{REFUSE}{{% endif %}}{TURN}{{% endfor %}}"
CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
HERMES = read_template("hermes")


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    templates = TemplateRenderer()
    yield load_tokenizer(demo_model_path(), render=templates.render)
    templates.close()


def probe(
    tokenizer: Tokenizer, template: str | None, adapter: ModelAdapter | None = None
) -> tuple[TemplateTraits, str | None]:
    tokenizer.chat_template = template
    adapter = adapter if adapter is not None else DefaultAdapter()
    return probe_template(tokenizer, adapter, get_output_format(adapter, tokenizer))


@pytest.mark.parametrize("template", FORMATS)
def test_templates_of_the_families_write_tools_themselves(tokenizer: Tokenizer, template: str) -> None:
    adapter = get_adapter("mistral" if template.startswith("mistral") else "nobody/knows-it")
    traits, fault = probe(tokenizer, read_template(template), adapter)
    assert (traits.native_tools, fault) == (True, None)


def test_the_demo_models_template_accepts_every_chat(tokenizer: Tokenizer) -> None:
    template = (demo_model_path() / "chat_template.jinja").read_text("utf-8")
    assert probe(tokenizer, template, get_adapter("demo", demo_model_path())) == (TemplateTraits(), None)


def test_a_model_that_cannot_chat_has_no_fault(tokenizer: Tokenizer) -> None:
    assert probe(tokenizer, None) == (TemplateTraits(), None)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (f"{EACH}{{{{ m.content }}}}{{% endfor %}}", "does not show tools"),
        (f"{{{{ tools }}}}{EACH}{{{{ m.content }}}}{{% endfor %}}", "leaves tool calls out"),
        (f"{{% if tools %}}{REFUSE}{{% endif %}}{EACH}{{{{ m.content }}}}{{% endfor %}}", "does not accept tools"),
        (
            f"{{{{ tools }}}}{EACH}{{% if m.role != 'tool' %}}{{{{ m.content or '' }}}}{CALLS}{{% endif %}}"
            "{% endfor %}",
            "leaves the results",
        ),
        (f"{{{{ tools }}}}{EACH}{{{{ m.content }}}}{{{{ m.tool_calls }}}}{{% endfor %}}", "unknown format"),
    ],
)
def test_tools_are_shown_by_a_prompt_where_the_template_leaves_a_part_of_them_out(
    tokenizer: Tokenizer, template: str, fault: str
) -> None:
    traits, found = probe(tokenizer, template)
    assert not traits.native_tools
    assert found is not None
    assert fault in found


def test_calls_that_the_parser_does_not_read_back_are_a_fault_of_a_template_with_tools(tokenizer: Tokenizer) -> None:
    traits, fault = probe(tokenizer, HERMES.replace('"name"', '"function_name"'))
    assert traits.native_tools
    assert fault is not None
    assert "'hermes' parser" in fault


@pytest.mark.parametrize(
    ("content", "calls", "null_content"),
    [
        ("{{ m.content or '' }}", CALLS, "null"),
        ("{{ m.content }}", CALLS, "absent"),
        ("{% if m.content is defined %}{{ '<say>' + m.content }}{% endif %}", CALLS, "absent"),
        ("{{ '<say>' + m['content'] }}", CALLS, "empty"),
        ("{{ m.content | trim }}{{ m.content.strip() }}", CALLS, "empty"),
        (
            "{{ m.content if m.content is not none else '' }}",
            f"{{% if m.content is none %}}{CALLS}{{% endif %}}",
            "null",
        ),
    ],
)
def test_the_content_beside_calls_is_as_the_template_can_bear_it(
    tokenizer: Tokenizer, content: str, calls: str, null_content: str
) -> None:
    traits, fault = probe(tokenizer, f"{{{{ tools }}}}{EACH}{content}{calls}{{% endfor %}}")
    assert (traits.native_tools, traits.null_content, fault) == (True, null_content, None)


@pytest.mark.parametrize(
    ("template", "refused"),
    [
        (f"{EACH}{TURN}{{% endfor %}}", set()),
        (
            f"{EACH}{{% if m.role == 'system' and not loop.first %}}{REFUSE}{{% endif %}}{TURN}{{% endfor %}}",
            {"several_systems", "late_systems"},
        ),
        (  # the last one is the only one that is shown
            f"{{% set ns = namespace(s='') %}}{EACH}{{% if m.role == 'system' %}}{{% set ns.s = m.content %}}"
            f"{{% endif %}}{{% endfor %}}{{{{ ns.s }}}}{NO_SYSTEM}",
            {"several_systems", "late_systems"},
        ),
        (  # the later ones keep their headers only
            f"{EACH}{{% if m.role == 'system' and loop.index > 1 %}}<system>{{% else %}}{TURN}{{% endif %}}"
            "{% endfor %}",
            {"several_systems", "late_systems"},
        ),
        (  # all go to the beginning
            f"{EACH}{{% if m.role == 'system' %}}{TURN}{{% endif %}}{{% endfor %}}{NO_SYSTEM}",
            {"late_systems"},
        ),
        (
            NO_SYSTEM,
            {"system", "only_system", "several_systems", "late_systems"},
        ),
        (
            f"{{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}}{REFUSE}{{% endif %}}"
            f"{EACH}{TURN}{{% endfor %}}",
            {"only_system"},
        ),
        (
            ALTERNATING,
            {
                "system", "only_system", "several_systems", "late_systems",
                "user_runs", "assistant_runs", "assistant_first",
            },
        ),
    ],
)  # fmt: skip
def test_messages_that_a_template_refuses_drops_or_moves_are_not_accepted(
    tokenizer: Tokenizer, template: str, refused: set[str]
) -> None:
    traits, _ = probe(tokenizer, template)
    names = [name for name in TemplateTraits.__slots__ if name not in ("native_tools", "null_content")]
    assert {name for name in names if not getattr(traits, name)} == refused


class Stubborn(DefaultAdapter):
    def apply_chat_template(
        self, tokenizer: Tokenizer, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **options: Any
    ) -> str:
        raise LookupError("staged")


def test_a_template_that_renders_nothing_is_taken_as_it_is_and_warned_of(tokenizer: Tokenizer) -> None:
    traits, fault = probe(tokenizer, "{{ messages }}", Stubborn())
    assert traits == TemplateTraits()
    assert fault is not None
    assert "single question" in fault
