"""Why a prompt missed the prefix cache, over each protocol, as clients and the access log see it."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import anthropic
import httpx
import openai
import pytest

from tests.prometheus import Scrape, scrape
from tests.running_server import HANG_SECONDS, RunningServer, eventually, running_server
from tests.small_models import make_lora, make_random_model

KEY = "opensesame"
LONG = "The quick brown fox jumps over the lazy dog and runs away from the old wolf. " * 2
GREEDY = {"temperature": 0}
TOOLS_FIRST = """{{ bos_token }}
{%- for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>' ~ (message.content or '') }}
    {%- for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}"""
_numbers = itertools.count(1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`demo`, and `base` and `tuned`, which are one model without and with an adapter. Little room for prefixes.

    The template of `tools-first` has the tools before the system prompt.
    """
    folder = tmp_path_factory.mktemp("misses")
    base = make_random_model(folder / "base")
    (make_random_model(folder / "tools-first") / "chat_template.jinja").write_text(TOOLS_FIRST)
    make_lora(folder / "adapter", base)
    (folder / "mlx-manager.toml").write_text(
        f'[[models]]\nid = "tools-first"\npath = "{folder / "tools-first"}"\n'
        f'[[models]]\nid = "base"\npath = "{base}"\n'
        f'[[models]]\nid = "tuned"\npath = "{base}"\nadapter = "{folder / "adapter"}"\n'
    )
    with running_server(folder, log_format="json", admin_key=KEY, hub_cache=False, prefix_cache_gb=0.006) as running:
        yield running


@dataclass(frozen=True)
class Prompt:
    turns: tuple[tuple[str, str], ...]
    system: str = LONG
    tool: str = "Get the weather in a city, in degrees, with wind and rain. " * 2
    model: str = "demo"

    @property
    def text(self) -> str:
        """For completions."""
        return "\n".join(content for _, content in self.turns)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@dataclass(frozen=True)
class Answer:
    """`miss` is what the protocol says of it; `request_id` finds the access line."""

    id: str
    request_id: str
    miss: Any


class Client(Protocol):
    def ask(self, prompt: Prompt, previous: str | None = None, *, stream: bool = False) -> Answer: ...


@dataclass
class Chat:
    url: str

    def ask(self, prompt: Prompt, previous: str | None = None, *, stream: bool = False) -> Answer:
        request_id = f"chat-{next(_numbers)}"
        function = {"name": "get_weather", "description": prompt.tool, "parameters": prompt.parameters}
        turns = [{"role": role, "content": content} for role, content in prompt.turns]
        asked: dict[str, Any] = {
            "model": prompt.model,
            "messages": [{"role": "system", "content": prompt.system}, *turns],
            "tools": [{"type": "function", "function": function}],
            "max_tokens": 4,
            "extra_headers": {"x-request-id": request_id},
            **GREEDY,
        }
        with openai_client(self.url) as client:
            return _chat_answer(client.chat.completions, asked, request_id, stream)


@dataclass
class Completions:
    url: str

    def ask(self, prompt: Prompt, previous: str | None = None, *, stream: bool = False) -> Answer:
        request_id = f"completion-{next(_numbers)}"
        asked = {"model": prompt.model, "prompt": prompt.text, "max_tokens": 4, **GREEDY}
        asked["extra_headers"] = {"x-request-id": request_id}
        with openai_client(self.url) as client:
            return _chat_answer(client.completions, asked, request_id, stream)


def _chat_answer(resource: Any, asked: dict[str, Any], request_id: str, stream: bool) -> Answer:
    if stream:
        *_, answer = resource.create(**asked, stream=True, stream_options={"include_usage": True})
    else:
        answer = resource.create(**asked)
    details = answer.usage.prompt_tokens_details.model_dump()
    miss = details.get("cache_miss")
    return Answer(answer.id, request_id, None if miss is None else (miss["reason"], miss["missed_tokens"]))


@dataclass
class Messages:
    url: str

    def ask(self, prompt: Prompt, previous: str | None = None, *, stream: bool = False) -> Answer:
        request_id = f"message-{next(_numbers)}"
        tool = {"name": "get_weather", "description": prompt.tool, "input_schema": prompt.parameters}
        asked: dict[str, Any] = {
            "model": prompt.model,
            "system": prompt.system,
            "messages": [{"role": role, "content": content} for role, content in prompt.turns],
            "tools": [tool],
            "max_tokens": 4,
            "diagnostics": {"previous_message_id": previous},
            "extra_headers": {"x-request-id": request_id},
            "extra_body": GREEDY,
        }
        with anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0, timeout=HANG_SECONDS) as client:
            if stream:
                with client.messages.stream(**asked) as events:
                    message = events.get_final_message()
            else:
                message = client.messages.create(**asked)
        if message.diagnostics is None:
            return Answer(message.id, request_id, None)
        reason = message.diagnostics.cache_miss_reason
        assert reason is not None
        return Answer(message.id, request_id, (reason.type, getattr(reason, "cache_missed_input_tokens", None)))


@dataclass
class Responses:
    url: str

    def ask(self, prompt: Prompt, previous: str | None = None, *, stream: bool = False) -> Answer:
        request_id = f"response-{next(_numbers)}"
        tool = {"type": "function", "name": "get_weather", "description": prompt.tool, "parameters": prompt.parameters}
        asked: dict[str, Any] = {
            "model": prompt.model,
            "instructions": prompt.system,
            "input": [{"role": role, "content": content} for role, content in prompt.turns],
            "tools": [{**tool, "strict": False}],
            "max_output_tokens": 4,
            "prompt_cache_options": {"comparison_response_id": previous},
            "extra_headers": {"x-request-id": request_id},
            **GREEDY,
        }
        with openai_client(self.url) as client:
            if stream:
                *_, last = client.responses.create(**asked, stream=True)
                response = last.response
            else:
                response = client.responses.create(**asked)
        found = response.prompt_cache_diagnostics
        if found is None:
            return Answer(response.id, request_id, None)
        if found.type == "cache_miss":
            assert found.comparison_reusable_tokens == response.usage.input_tokens_details.cached_tokens
            return Answer(response.id, request_id, (found.reason, found.cache_missed_tokens))
        return Answer(response.id, request_id, (found.type, None))


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=HANG_SECONDS)


CLIENTS: dict[str, Callable[[str], Client]] = {
    "chat": Chat,
    "completions": Completions,
    "messages": Messages,
    "responses": Responses,
}


def conversation(salt: int) -> Prompt:
    """One of its own: nothing after the salt is in the cache."""
    turns = (("user", f"{salt}: {LONG}"), ("assistant", f"{LONG}Yes."), ("user", f"Go on, {salt}. {LONG}"))
    return Prompt(turns, system=f"You are number {salt}. {LONG}")


def unload(server: RunningServer, client: Client) -> None:
    answer = httpx.post(
        f"{server.url}/admin/models/demo/unload", headers={"Authorization": f"Bearer {KEY}"}, timeout=HANG_SECONDS
    )
    assert answer.status_code == 200, answer.text


def fill_cache(server: RunningServer, client: Client) -> None:
    """With prompts that do not fit in together, each of which does."""
    for _ in range(8):
        filler = conversation(next(_numbers))
        client.ask(replace(filler, turns=(("user", f"{filler.system} {LONG * 2}"),)))


def nothing(server: RunningServer, client: Client) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """A conversation is asked, then something happens, and then it is asked again with a change."""

    change: Callable[[Prompt], Prompt] = lambda prompt: prompt
    meanwhile: Callable[[RunningServer, Client], None] = nothing
    model: str = "demo"
    messages: str = "unavailable"
    """What Anthropic's protocol calls it, as `responses` is what OpenAI's does."""
    responses: str = "unavailable"
    completions: bool = True
    """Whether a completion can have it."""


def edit_turn(prompt: Prompt) -> Prompt:
    first, (role, content), last = prompt.turns
    return replace(prompt, turns=(first, (role, content.replace("Yes.", "No!")), last))


CASES = {
    "model": Case(lambda prompt: replace(prompt, model="base"), nothing, "demo", "model_changed", "model_changed"),
    "adapter": Case(lambda prompt: replace(prompt, model="tuned"), nothing, "base", "model_changed", "model_changed"),
    "system": Case(
        lambda prompt: replace(prompt, system=f"It is 12:01. {prompt.system}"),
        messages="system_changed",
        responses="input_changed",
        completions=False,
    ),
    "tools": Case(
        lambda prompt: replace(prompt, tool=f"Nicely: {prompt.tool}"),
        messages="tools_changed",
        responses="tools_changed",
        completions=False,
    ),
    "messages": Case(edit_turn, messages="messages_changed", responses="input_changed"),
    "evicted": Case(meanwhile=fill_cache),
    "expired": Case(meanwhile=unload),
}
EACH = [
    pytest.param(protocol, reason, id=f"{protocol}-{reason}")
    for protocol in CLIENTS
    for reason, case in CASES.items()
    if protocol != "completions" or case.completions
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("protocol", "reason"), EACH)
def test_a_miss_is_explained(server: RunningServer, protocol: str, reason: str, stream: bool) -> None:
    case, client = CASES[reason], CLIENTS[protocol](server.url)
    prompt = replace(conversation(next(_numbers)), model=case.model)
    first = client.ask(prompt)
    case.meanwhile(server, client)
    answer = client.ask(case.change(prompt), first.id, stream=stream)
    line = access_line(server, answer.request_id)
    assert line["cache_miss"] == reason, line
    assert 32 <= line["missed_tokens"] < line["prompt_tokens"]
    assert f" miss={reason} missed={line['missed_tokens']} " in line["message"]
    named = {"messages": case.messages, "responses": case.responses}.get(protocol, reason)
    assert answer.miss == (named, line["missed_tokens"] if named != "unavailable" else None)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_a_prompt_that_goes_on_misses_nothing(server: RunningServer, protocol: str) -> None:
    client = CLIENTS[protocol](server.url)
    prompt = conversation(next(_numbers))
    first = client.ask(prompt)
    going_on = replace(prompt, turns=(*prompt.turns, ("assistant", "Well."), ("user", LONG)))
    second = client.ask(going_on, first.id)
    line = access_line(server, second.request_id)
    assert line["cached_tokens"] > 100
    assert "cache_miss" not in line
    assert second.miss == (("cache_hit", None) if protocol == "responses" else None)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_a_new_conversation_is_first_seen(server: RunningServer, protocol: str) -> None:
    answer = CLIENTS[protocol](server.url).ask(conversation(next(_numbers)))
    line = access_line(server, answer.request_id)
    assert line["cache_miss"] == "first_seen"
    assert "missed_tokens" not in line
    assert answer.miss is None


def test_a_comparison_with_an_unknown_answer_says_so(server: RunningServer) -> None:
    prompt = conversation(next(_numbers))
    assert Messages(server.url).ask(prompt, "msg_unknown").miss == ("previous_message_not_found", None)
    assert Responses(server.url).ask(prompt, "resp_unknown").miss == ("comparison_response_not_found", None)


@pytest.mark.parametrize(("model", "reason"), [("demo", "system"), ("tools-first", "tools")])
def test_of_two_changed_parts_the_first_in_the_prompt_is_named(server: RunningServer, model: str, reason: str) -> None:
    client = Messages(server.url)
    prompt = replace(conversation(next(_numbers)), model=model)
    first = client.ask(prompt)
    changed = replace(prompt, system=f"It is 12:01. {prompt.system}", tool=f"Nicely: {prompt.tool}")
    answer = client.ask(changed, first.id)
    assert access_line(server, answer.request_id)["cache_miss"] == reason
    assert answer.miss is not None
    assert answer.miss[0] == f"{reason}_changed"


def test_a_named_answer_is_compared_though_a_later_one_is_nearer(server: RunningServer) -> None:
    client = Messages(server.url)
    prompt = conversation(next(_numbers))
    named = client.ask(prompt)
    later = client.ask(replace(prompt, turns=(*prompt.turns, ("assistant", "Well."), ("user", "More."))))
    shorter = replace(prompt, turns=(*prompt.turns[:1], ("assistant", f"No. {LONG}"), ("user", f"Why? {LONG}")))
    for other in (named, later):
        answer = client.ask(shorter, other.id)
        assert answer.miss is None or answer.miss[0] == "messages_changed"
    assert client.ask(replace(shorter, system="Be kind."), named.id).miss[0] == "system_changed"


def test_another_effort_is_named_where_openai_names_it(server: RunningServer) -> None:
    """The demo model's template says in the system block that it is to think."""
    asked: Any = {"model": "demo", "instructions": LONG, "input": f"{next(_numbers)}: {LONG}", "max_output_tokens": 4}
    with openai_client(server.url) as client:
        first = client.responses.create(**asked, reasoning={"effort": "none"})
        again: Any = client.responses.create(
            **asked, reasoning={"effort": "high"}, prompt_cache_options={"comparison_response_id": first.id}
        )
    assert again.prompt_cache_diagnostics.type == "cache_miss"
    assert again.prompt_cache_diagnostics.reason == "reasoning_effort_changed"


def test_misses_and_their_tokens_are_counted_by_reason(server: RunningServer) -> None:
    client = Chat(server.url)
    prompt = conversation(next(_numbers))
    client.ask(prompt)
    before = scrape(server)
    answer = client.ask(replace(prompt, system=f"It is 12:03. {prompt.system}"))
    missed = access_line(server, answer.request_id)["missed_tokens"]
    assert grown(server, before, "prefix_misses_total") == 1
    assert grown(server, before, "prefix_missed_tokens_total") == missed


def grown(server: RunningServer, before: Scrape, name: str) -> float:
    """Waits for a change: a request is counted when its client may already have the answer."""
    labels = {"model": "demo", "reason": "system"}
    return eventually(
        lambda: scrape(server).value(name, **labels) - before.value(name, **labels), lambda more: more > 0
    )


def access_line(server: RunningServer, request_id: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in server.log.read_text("utf-8").splitlines())
        return [line for line in lines if line["logger"] == "mlx_manager.access" and line["request_id"] == request_id]

    (line,) = eventually(found, lambda those: len(those) > 0)
    return line
