import time
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from mlx_manager.mlx_server.errors import ServerError, UnsupportedParameter
from mlx_manager.mlx_server.protocols.chat import RESERVED_TEMPLATE_KWARGS, to_request
from mlx_manager.mlx_server.schemas import openai as schemas
from mlx_manager.mlx_server.types import (
    NO_TOKEN_LIMIT,
    ChatRequest,
    ChatTurn,
    SamplingOverrides,
)

HI = [{"role": "user", "content": "Hi"}]


def request(**fields: Any) -> ChatRequest:
    body = schemas.ChatCompletionRequest.model_validate({"model": "demo", "messages": HI, **fields})
    return to_request(body, default_max_tokens=4096)


def refusal(**fields: Any) -> ServerError:
    with pytest.raises(ServerError) as refused:
        request(**fields)
    return refused.value


def test_what_is_not_given_is_left_to_the_model_and_the_server() -> None:
    made = request()
    assert (made.sampling, made.max_tokens) == (SamplingOverrides(), None)
    assert (made.stop, made.include_usage, made.default_max_tokens) == ((), False, 4096)


def test_every_field_is_used() -> None:
    made = request(max_tokens=3, stop=["a", "b"], stream=True, stream_options={"include_usage": True})
    assert (made.model, made.turns) == ("demo", (ChatTurn("user", "Hi"),))
    assert (made.max_tokens, made.stop, made.include_usage) == (3, ("a", "b"), True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -7),
        ("temperature", 0.0),
        ("top_p", 0.5),
        ("top_k", 40),
        ("top_k", 0),
        ("min_p", 0.1),
        ("repetition_penalty", 1.2),
        ("frequency_penalty", -2.0),
        ("presence_penalty", 2.0),
    ],
)
def test_a_sampling_parameter_reaches_the_engine_under_its_name(name: str, value: Any) -> None:
    assert request(**{name: value}).sampling == replace(SamplingOverrides(), **{name: value})


def test_logit_bias_names_tokens_by_their_ids() -> None:
    assert request(logit_bias={"7": -100, "0": 1.5}).sampling.logit_bias == {7: -100, 0: 1.5}


def test_top_k_minus_one_means_all_tokens_as_zero_does() -> None:
    assert request(top_k=-1).sampling == request(top_k=0).sampling


def test_max_completion_tokens_is_the_new_name_of_max_tokens() -> None:
    assert request(max_completion_tokens=5).max_tokens == 5
    assert request(max_completion_tokens=5, max_tokens=5, num_predict=5.0).max_tokens == 5
    assert request(max_completion_tokens=5, max_tokens=-1).max_tokens == 5
    refused = refusal(max_completion_tokens=5, max_tokens=6)
    assert refused.param == "max_completion_tokens"
    assert "max_tokens=6 and max_completion_tokens=5" in refused.message


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "num_predict"])
def test_a_limit_of_minus_one_is_none(name: str) -> None:
    assert request(**{name: -1}).max_tokens == NO_TOKEN_LIMIT
    assert request(**{name: None}).max_tokens is None


@pytest.mark.parametrize(
    "name", ["max_tokens", "seed", "n", "top_k", "min_tokens", "thinking_budget", "max_completion_tokens"]
)
def test_an_integer_may_be_written_with_a_point(name: str) -> None:
    written, plain = request(**{name: 3.0}), request(**{name: 3})
    names = ("sampling", "max_tokens", "n", "min_tokens", "thinking_budget")
    assert [getattr(written, field) for field in names] == [getattr(plain, field) for field in names]
    with pytest.raises(ValidationError):
        request(**{name: 3.5})


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("END", ("END",)),
        (["a"], ("a",)),
        ([], ()),
        (None, ()),
        ("", ()),
        (["", "a", ""], ("a",)),
        (["a"] * 32, ("a",) * 32),
    ],
)
def test_stop_is_one_string_or_several(stop: object, expected: tuple[str, ...]) -> None:
    assert request(stop=stop).stop == expected


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "presence_penalty",
        "logit_bias",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "stream",
        "stream_options",
        "n",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "response_format",
        "user",
    ],
)
def test_null_means_that_a_field_is_absent(name: str) -> None:
    made, bare = request(**{name: None}), request()
    assert replace(made, id=bare.id, created=bare.created) == bare


@pytest.mark.parametrize("fields", [{"functions": [{"name": "f"}]}, {"structured_outputs": {"regex": "a"}}])
def test_a_parameter_that_is_not_built_is_refused_by_name(fields: dict[str, Any]) -> None:
    refused = refusal(**fields)
    assert isinstance(refused, UnsupportedParameter)
    assert refused.param == next(iter(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 5.0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"seed": 2**63},
        {"top_k": -2},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -3},
        {"logit_bias": {"7": 101}},
        {"logit_bias": {"hello": 1}},
        {"stop": ["a"] * 33},
        {"max_tokens": -2},
        {"max_tokens": float("inf")},
        {"messages": []},
        {"messages": [{"role": "king", "content": "Hi"}]},
        {"messages": "Hi"},
        {"model": ""},
        {"model": None},
    ],
)
def test_a_body_that_breaks_the_schema_is_no_body(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**fields)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "max_tokens", "seed", "presence_penalty"])
def test_a_bool_is_no_number(name: str) -> None:
    with pytest.raises(ValidationError):
        request(**{name: True})


def test_every_request_has_an_id_of_its_own_and_the_time_it_came() -> None:
    before = int(time.time())
    one, other = request(), request()
    assert one.id.startswith("chatcmpl-")
    assert one.id != other.id
    assert before <= one.created <= time.time()


@pytest.mark.parametrize(
    ("field", "value", "attribute", "expected"),
    [
        ("n", 3, "n", 3),
        ("logprobs", True, "logprobs", 0),
        ("stop_token_ids", [5, 6], "stop_token_ids", (5, 6)),
        ("ignore_eos", True, "ignore_eos", True),
        ("min_tokens", 4, "min_tokens", 4),
        ("include_stop_str_in_output", True, "include_stop", True),
        ("skip_special_tokens", False, "skip_special_tokens", False),
        ("skip_special_tokens", True, "skip_special_tokens", True),
        ("add_generation_prompt", False, "add_generation_prompt", False),
        ("chat_template_kwargs", {"date": "today"}, "template_kwargs", {"date": "today"}),
        ("reasoning_effort", "low", "template_kwargs", {"reasoning_effort": "low", "enable_thinking": True}),
        ("reasoning_effort", "none", "template_kwargs", {"reasoning_effort": "none", "enable_thinking": False}),
    ],
)
def test_a_parameter_reaches_the_services_as_itself(field: str, value: Any, attribute: str, expected: object) -> None:
    assert getattr(request(**{field: value}), attribute) == expected


def test_top_logprobs_says_how_many_and_needs_logprobs() -> None:
    assert request(logprobs=True, top_logprobs=7).logprobs == 7
    assert refusal(top_logprobs=7).param == "top_logprobs"
    assert refusal(top_logprobs=0, logprobs=False).param == "top_logprobs"


def test_repeat_penalty_is_another_name_of_repetition_penalty() -> None:
    assert request(repeat_penalty=1.5).sampling == request(repetition_penalty=1.5).sampling
    assert request(repeat_penalty=1.5, repetition_penalty=1.5).sampling.repetition_penalty == 1.5
    assert refusal(repeat_penalty=1.5, repetition_penalty=1.2).param == "repeat_penalty"


def test_min_tokens_above_max_tokens_is_refused() -> None:
    assert refusal(min_tokens=9, max_tokens=8).param == "min_tokens"
    assert refusal(min_tokens=9, max_completion_tokens=8).param == "min_tokens"


def test_stream_options_without_a_stream_is_refused() -> None:
    assert refusal(stream_options={"include_usage": True}).param == "stream_options"
    assert refusal(stream_options={}, stream=False).param == "stream_options"


def test_continuing_the_final_message_begins_no_new_one() -> None:
    made = request(continue_final_message=True)
    assert (made.continue_final_message, made.add_generation_prompt) == (True, False)
    assert request().add_generation_prompt
    assert refusal(continue_final_message=True, add_generation_prompt=True).param == "continue_final_message"


def test_template_kwargs_go_before_what_reasoning_effort_implies() -> None:
    made = request(reasoning_effort="high", chat_template_kwargs={"enable_thinking": False})
    assert made.template_kwargs == {"reasoning_effort": "high", "enable_thinking": False}


@pytest.mark.parametrize("name", sorted(RESERVED_TEMPLATE_KWARGS))
def test_template_kwargs_cannot_set_what_the_server_sets(name: str) -> None:
    refused = refusal(chat_template_kwargs={name: "x"})
    assert isinstance(refused, UnsupportedParameter)
    assert refused.param == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"whim": "sunny"}, "whim"),
        ({"messages": [HI[0], {**HI[0], "whim": "sunny"}]}, "messages[1].whim"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "whim": 1}]}]},
            "messages[0].content[0].whim",
        ),
        ({"stream": True, "stream_options": {"whim": 1}}, "stream_options.whim"),
    ],
)
def test_unknown_fields_are_refused_when_the_server_is_set_to(fields: dict[str, Any], param: str) -> None:
    body = schemas.ChatCompletionRequest.model_validate({"model": "demo", "messages": HI, **fields})
    to_request(body, 10)
    with pytest.raises(UnsupportedParameter) as refused:
        to_request(body, 10, reject_unknown=True)
    assert refused.value.param == param


def test_continuous_usage_stats_are_refused_by_name() -> None:
    refused = refusal(stream=True, stream_options={"continuous_usage_stats": True})
    assert refused.param == "stream_options.continuous_usage_stats"


def test_unknown_field_of_a_message_or_of_stream_options_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    body = schemas.ChatCompletionRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi", "mood": "sunny"}],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats_too": True},
        }
    )
    assert to_request(body, 10).include_usage
    assert "messages[].mood" in caplog.text
    assert "stream_options.continuous_usage_stats_too" in caplog.text
