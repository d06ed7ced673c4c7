"""Hostile templates, rendered by real processes."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from jinja2 import TemplateError

from mlx_manager.mlx_server.errors import ChatTemplateFailed
from mlx_manager.mlx_server.templates.renderer import CPU_SECONDS
from mlx_manager.mlx_server.templates.rendering import TemplateRenderer

pytestmark = pytest.mark.anyio

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def templates() -> Iterator[TemplateRenderer]:
    templates = TemplateRenderer()
    yield templates
    templates.close()


def rendered(templates: TemplateRenderer, template: str, messages: Any = HI, **variables: Any) -> str:
    nothing: dict[str, Any] = {"tools": None, "documents": None, "continue_final_message": False}
    return templates.render(template, messages, add_generation_prompt=True, variables=variables, **nothing)


def cpu_seconds_of_ended_children() -> float:
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)


def renderers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "templates.renderer" in " ".join(child.cmdline())]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "2 seconds"),
        ("{{ 10 ** (10 ** 10) }}", "2 seconds"),
        ("{{ ('a' * 10 ** 10) | length }}", "1024 MB"),
        ("{{ ('a' | center(10 ** 10)) | length }}", "1024 MB"),
        ("{{ '%10000000000d' % 1 }}", "1024 MB"),
        (
            "{% set ns = namespace(a=[1]) %}{% for i in range(99) %}{% set ns.a = ns.a * 2 %}{% endfor %}",
            "1024 MB|2 seconds",
        ),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "64 MB"),
    ],
)
def test_what_takes_too_much_is_ended_and_the_next_prompt_is_rendered(
    templates: TemplateRenderer, template: str, reason: str
) -> None:
    before = cpu_seconds_of_ended_children()
    with pytest.raises(ChatTemplateFailed, match=reason) as refusal:
        rendered(templates, template)
    assert cpu_seconds_of_ended_children() - before < 2 * CPU_SECONDS, "the process did not end itself"
    assert refusal.value.param == "messages"
    assert rendered(templates, "{{ messages[0].content }}") == "Hi"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    ],
)
def test_code_and_files_are_out_of_reach(templates: TemplateRenderer, template: str) -> None:
    with pytest.raises((TemplateError, TypeError)):
        rendered(templates, template)


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format(1) }}", "{{ ''.__class__ }}"],
)
def test_what_is_behind_an_object_is_nothing(templates: TemplateRenderer, template: str) -> None:
    assert rendered(templates, template) == ""


def test_a_complaint_is_cut(templates: TemplateRenderer) -> None:
    with pytest.raises(TemplateError) as refusal:
        rendered(templates, "{{ raise_exception('a' * 10 ** 7) }}")
    assert len(str(refusal.value)) == 1000


def test_text_that_is_no_unicode_is_refused(templates: TemplateRenderer) -> None:
    with pytest.raises(TemplateError, match="surrogates"):
        rendered(templates, "{{ half }}", half="a\ud800")


def test_what_is_nested_without_end_is_refused(templates: TemplateRenderer) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested"):
        rendered(templates, "{{ deep }}", deep=deep)


def test_a_process_that_somebody_killed_is_replaced(templates: TemplateRenderer) -> None:
    before = renderers()
    rendered(templates, "Hi")
    (process,) = [process for process in renderers() if process not in before]
    process.kill()
    process.wait()
    assert rendered(templates, "Hi") == "Hi"


def test_keys_of_the_server_are_not_in_the_environment_of_a_renderer(
    templates: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MLX_SERVER_ADMIN_KEY", "secret")
    before = renderers()
    rendered(templates, "Hi")
    (process,) = [process for process in renderers() if process not in before]
    assert "secret" not in str(process.environ())


async def test_a_prompt_that_takes_long_holds_up_no_other(templates: TemplateRenderer) -> None:
    endless = asyncio.create_task(templates.in_thread(lambda: rendered(templates, ENDLESS)))
    await asyncio.sleep(0)
    assert await templates.in_thread(lambda: rendered(templates, "Hi")) == "Hi"
    assert not endless.done()
    with pytest.raises(ChatTemplateFailed):
        await endless


async def test_a_request_that_is_given_up_leaves_no_thread_behind(templates: TemplateRenderer) -> None:
    has_ended = threading.Event()

    def work() -> None:
        try:
            rendered(templates, ENDLESS)
        finally:
            has_ended.set()

    task = asyncio.create_task(templates.in_thread(work))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_ended.is_set()


async def test_closing_ends_all_processes_those_at_work_among_them() -> None:
    before = renderers()
    templates = TemplateRenderer()
    assert await templates.in_thread(lambda: rendered(templates, "Hi")) == "Hi"
    endless = asyncio.create_task(templates.in_thread(lambda: rendered(templates, ENDLESS)))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(templates.close)
    assert renderers() == before
    with pytest.raises(ChatTemplateFailed, match="crashes the process"):  # and not for its two seconds
        await endless
