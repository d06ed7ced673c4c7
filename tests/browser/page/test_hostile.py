"""Hostile model output, model ids and names in the page: they stay text, and the page contacts no other server."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local_http import QuietHandler, local_server
from tests.running_server import RunningServer, running_server

HACK = "window.hacked=1"
HOSTILE_ID = f'<img src=x onerror="{HACK}">"><script>{HACK}</script>'
ATTACKS = [
    f"<script>{HACK}</script>",
    f'<img src=x onerror="{HACK}">',
    f"<svg><animate onbegin={HACK} attributeName=x></svg><svg/onload={HACK}>",
    f'<iframe srcdoc="<script>parent.{HACK}</script>"></iframe>',
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror={HACK}&gt;'>",
    f"<form action=javascript:{HACK}><input autofocus onfocus={HACK}><button>go</button></form>",
    "<style>@import url(https://evil.example/a.css); * { display: none }</style>",
    "<base href=https://evil.example/><meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<a id=prompt name=chat href=https://ok.example>x</a><img name=getElementById>",
    f"[link](javascript:{HACK}) [link](<java\tscript:{HACK}>) [link](data:text/html,<script>{HACK}</script>)",
    f"[link](vbscript:{HACK}) <javascript:{HACK}> [ref]\n\n[ref]: javascript:{HACK}",
    '![pixel](https://evil.example/pixel.png) ![p](https://evil.example/x" onerror="window.hacked=1)',
    f"[x](https://ok.example \"' onmouseover='{HACK}\")",
    f"```<img src=x onerror={HACK}>\n<script>{HACK}</script>\n```",
    f"`<img src=x onerror={HACK}>` | a | <b onclick={HACK}>b</b> |\n|-|-|\n| <img src=x onerror={HACK}> | 1 |",
    f"# <img src=x onerror={HACK}>\n- [ ] <script>{HACK}</script>",
    "<template><script></script></template><noscript><p title='</noscript><img src=x onerror=window.hacked=1>'>",
    "<div popover id=p></div><button popovertarget=p>x</button><details open ontoggle=window.hacked=1>x</details>",
]
FORBIDDEN = (
    "img, script, iframe, svg, math, form, style, base, meta, object, embed, template, input, [id], [name], [style]"
)


@contextlib.contextmanager
def hostile_upstream(answers: list[str]) -> Iterator[str]:
    """An OpenAI server with a hostile model id. It streams one answer after the other, each with a hostile call."""
    left = iter(answers)

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self._answer("application/json", json.dumps({"data": [{"id": HOSTILE_ID, "object": "model"}]}))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            text = next(left)
            call = {
                "index": 0,
                "id": "c",
                "type": "function",
                "function": {"name": HOSTILE_ID, "arguments": json.dumps({"a": text})},
            }
            half = len(text) // 2
            deltas = [
                {"reasoning_content": text},
                {"content": text[:half]},
                {"content": text[half:]},
                {"tool_calls": [call]},
            ]
            chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
            self._answer(
                "text/event-stream", "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            )

        def _answer(self, kind: str, body: str) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

    with local_server(Handler) as url:
        yield url


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with hostile_upstream(ATTACKS) as url:
        upstreams = json.dumps([{"name": "far", "kind": "openai", "base_url": url, "models": [HOSTILE_ID]}])
        with running_server(tmp_path_factory.mktemp("hostile"), upstreams=upstreams) as server:
            yield server


def test_hostile_answers_ids_and_names_stay_text(tabs: Any, hostile: RunningServer) -> None:
    tab = tabs(hostile)
    tab.choose(HOSTILE_ID)
    for attack in ATTACKS:
        tab.page.get_by_role("button", name="New chat", exact=True).click()
        tab.send(attack)
        answer = tab.answer()
        assert answer.locator(".fault").inner_text() == ""
        assert answer.locator(".speaker").inner_text() == HOSTILE_ID
        assert answer.locator(".call code").inner_text() == HOSTILE_ID
        for part in (answer.locator(".rich"), answer.locator(".reasoning"), answer.locator(".call > pre")):
            assert part.locator(FORBIDDEN).count() == 0, attack
        links = answer.locator("a").evaluate_all(
            "(links) => links.map((link) => [link.protocol, link.rel, link.attributes.length])"
        )
        assert {protocol for protocol, _, _ in links} <= {"https:", ":"}, attack  # ":" is a link without an address
        assert all("noopener" in rel for _, rel, _ in links)
        assert tab.page.locator("#messages > li.user > .plain").inner_text().split() == attack.split()
    assert tab.page.locator("#chat-list li").count() == len(ATTACKS)
    for view in ("models", "live", "connect"):
        tab.open(view)
        tab.page.wait_for_timeout(1500)
        assert tab.page.locator("main").locator("img, script, iframe, [onerror]").count() == 0
    tab.open("live")
    tab.page.locator("#request-rows td", has_text=HOSTILE_ID).first.wait_for()
    assert tab.page.evaluate("window.hacked") is None


def test_html_of_an_answer_is_shown_as_it_was_written(tabs: Any, tmp_path: Path) -> None:
    text = "before <b>bold</b> <script>x</script> after **strong** & <i>"
    with hostile_upstream([text]) as url:
        upstreams = json.dumps([{"name": "far", "kind": "openai", "base_url": url, "models": [HOSTILE_ID]}])
        with running_server(tmp_path, wait=False, upstreams=upstreams) as server:
            server.wait_for_log("Listening")
            tab = tabs(server)
            tab.choose(HOSTILE_ID)
            assert tab.ask("Hello") == text.replace("**", "")


def test_a_script_that_the_policy_forbids_does_not_run_and_is_noticed(tabs: Any, served: RunningServer) -> None:
    """So the other tests would see a violation."""
    tab = tabs(served)
    inject = """() => { const script = document.createElement("script");
      try { script.text = "window.hacked = 1"; } catch { window.refused = true; }
      document.body.append(script); document.body.setAttribute("style", "color: red"); }"""
    tab.page.evaluate(inject)
    assert tab.page.evaluate("[window.hacked ?? null, window.refused]") == [None, True]
    assert len(tab.page.evaluate("violations.splice(0)")) > 0
