"""Chats in the page: streaming, stopping, branches, tool calls, and what the browser keeps."""

import re
from typing import Any

from tests.browser.page.conftest import tool
from tests.running_server import RunningServer

GROWS = """() => {
    const length = document.querySelector("[aria-busy=true] .rich")?.innerText.length ?? 0;
    window.begun ??= length > 30 ? length : undefined;
    return length > window.begun;
}"""


def test_an_answer_streams_and_has_its_figures(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.choose("demo")
    assert tab.ask("Count to 5") == "1, 2, 3, 4, 5"
    tab.ask("Count to 20")  # in several pieces, so that it has a speed
    figures = tab.answer().locator(".figures-line").inner_text()
    assert re.search(
        r"\d+ tokens/s · first token after \d+(\.\d+)? m?s · \d+ tokens · prompt \d+, \d+ of them cached", figures
    )


def test_an_answer_stops_and_what_came_of_it_stays(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.choose("babbler")
    tab.page.locator("#parameters summary").click()
    tab.page.fill("[name=temperature]", "0")  # at which it never ends by itself
    tab.send("Babble")
    tab.page.wait_for_function(GROWS)
    tab.page.press("#prompt", "Escape")
    answer = tab.answer()
    assert "finish reason stopped" in answer.locator(".figures-line").inner_text()
    stopped = answer.locator(".rich").inner_text()
    assert len(stopped) > tab.page.evaluate("window.begun")
    tab.page.wait_for_timeout(500)
    assert answer.locator(".rich").inner_text() == stopped
    tab.choose("demo")
    assert tab.ask("Count to 3")


def test_edited_and_regenerated_messages_are_branches_that_survive_a_reload(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.choose("demo")
    tab.page.locator("#parameters summary").click()
    tab.page.fill("[name=temperature]", "0")
    assert tab.ask("Count to 3") == "1, 2, 3"
    tab.answer().get_by_role("button", name="Regenerate").click()
    tab.answer().get_by_text("2 of 2").wait_for()
    question = tab.page.locator("#messages > li.user").first
    question.get_by_role("button", name="Edit").click()
    question.get_by_label("Edit message").fill("Count to 4")
    question.get_by_role("button", name="Send edited").click()
    tab.page.get_by_text("1, 2, 3, 4", exact=True).wait_for()
    tab.answer()
    tab.open()
    tab.page.reload()
    tab.page.get_by_text("1, 2, 3, 4", exact=True).wait_for()
    tab.page.locator("#messages > li.user").first.get_by_role("button", name="Previous branch").click()
    tab.page.get_by_text("1, 2, 3", exact=True).wait_for()
    assert tab.page.locator("#messages > li.assistant").get_by_text("2 of 2").is_visible()
    assert tab.page.input_value("[name=temperature]") == "0"


def test_a_tool_call_is_shown_and_its_result_goes_to_the_model(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.choose("demo")
    tab.page.locator("#parameters summary").click()
    tab.page.fill("[name=more]", tool("get_weather", city="string"))
    tab.page.fill("[name=temperature]", "0")
    tab.send("What is the weather in Paris?")
    call = tab.answer().locator(".call")
    assert call.locator("code").inner_text() == "get_weather"
    assert '"city": "Paris"' in call.locator("pre").inner_text()
    call.get_by_label("Result of get_weather").fill("18 degrees and sunny")
    call.get_by_role("button", name="Send result").click()
    tab.page.locator("#messages > li:nth-child(4)").wait_for()
    answer = tab.answer().locator(".rich").inner_text()
    assert "18" in answer


def test_reasoning_is_folded(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.choose("demo")
    tab.page.locator("#parameters summary").click()
    tab.page.select_option("[name=reasoning_effort]", "high")
    tab.ask("What is 2 + 3?")
    reasoning = tab.answer().locator("details.reasoning")
    thoughts = reasoning.locator(".plain")
    assert not thoughts.is_visible()
    reasoning.locator("summary").click()
    assert thoughts.inner_text().strip()


def test_faulty_further_fields_are_named_and_nothing_is_sent(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.page.locator("#parameters summary").click()
    tab.page.fill("[name=more]", "[1]")
    tab.send("Hello")
    assert "not a JSON object" in tab.page.locator("#parameters-fault").inner_text()
    assert tab.page.input_value("#prompt") == "Hello"
    assert tab.page.locator("#messages > li").count() == 0


def test_an_error_of_the_server_is_shown_under_the_question(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.page.locator("#parameters summary").click()
    tab.page.fill("[name=more]", '{"temperature": 5}')
    tab.send("Hello")
    assert "temperature" in tab.answer().locator(".fault").inner_text()


def test_a_chat_can_be_deleted(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.choose("demo")
    tab.ask("Count to 3")
    tab.page.get_by_role("button", name="New chat", exact=True).click()
    tab.ask("Count to 4")
    chats = tab.page.locator("#chat-list li")
    assert chats.count() == 2
    tab.page.get_by_role("button", name="Delete chat Count to 4").click()
    tab.page.reload()
    tab.page.locator("#messages > li.user", has_text="Count to 3").wait_for()
    assert chats.all_inner_texts() == ["Count to 3\n✕"]


def test_everything_is_reached_by_keyboard(tabs: Any, served: RunningServer) -> None:
    tab = tabs(served)
    tab.page.goto(f"{served.url}/ui")
    tab.page.locator("#model option").first.wait_for(state="attached")
    reached = []
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
    assert reached[:5] == ["Skip to content", "Chat", "Models", "Live", "Connect"]
    assert "prompt" in reached
