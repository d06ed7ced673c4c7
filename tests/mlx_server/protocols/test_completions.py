import time
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.completions import to_request
from mlx_manager.mlx_server.schemas import openai as schemas
from mlx_manager.mlx_server.types import (
    CompletionRequest,
    SamplingOverrides,
)


def request(**fields: Any) -> CompletionRequest:
    return to_request(schemas.CompletionRequest.model_validate({"model": "demo", "prompt": "Once", **fields}))


def test_what_is_not_given_is_left_to_the_model_and_then_to_openais_defaults() -> None:
    made = request()
    assert (made.sampling, made.max_tokens) == (SamplingOverrides(), None)
    assert (made.stop, made.include_usage, made.echo, made.default_max_tokens) == ((), False, False, 16)


def test_every_field_is_used() -> None:
    made = request(
        prompt=" upon", max_tokens=9, stop="\n", echo=True, stream=True, stream_options={"include_usage": True}
    )
    assert (made.model, made.prompts, made.echo, made.include_usage) == ("demo", (" upon",), True, True)
    assert (made.max_tokens, made.stop) == (9, ("\n",))


def test_sampling_parameters_reach_the_engine_as_those_of_a_chat_do() -> None:
    sampling: dict[str, Any] = {
        "temperature": 0,
        "top_p": 1,
        "top_k": 5,
        "seed": 3,
        "min_p": 0.1,
        "presence_penalty": 1,
    }
    assert request(**sampling).sampling == replace(SamplingOverrides(), **sampling)


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "top_p",
        "seed",
        "logit_bias",
        "max_tokens",
        "stop",
        "stream",
        "stream_options",
        "echo",
        "n",
        "best_of",
        "logprobs",
        "suffix",
        "user",
    ],
)
def test_null_means_that_a_field_is_absent(name: str) -> None:
    made, bare = request(**{name: None}), request()
    assert replace(made, id=bare.id, created=bare.created) == bare


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("one", ("one",)),
        (["one", "two"], ("one", "two")),
        (["one"], ("one",)),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_a_prompt_is_one_or_several_texts_or_lists_of_token_ids(prompt: object, prompts: object) -> None:
    assert request(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("field", "value", "attribute", "expected"),
    [
        ("n", 3, "n", 3),
        ("n", 3, "best_of", 3),
        ("best_of", 4, "best_of", 4),
        ("logprobs", 0, "logprobs", 0),
        ("logprobs", 5, "logprobs", 5),
        ("suffix", " end", "suffix", " end"),
        ("suffix", "", "suffix", None),
        ("stop_token_ids", [5], "stop_token_ids", (5,)),
        ("ignore_eos", True, "ignore_eos", True),
        ("min_tokens", 4, "min_tokens", 4),
        ("include_stop_str_in_output", True, "include_stop", True),
        ("skip_special_tokens", False, "skip_special_tokens", False),
    ],
)
def test_a_parameter_reaches_the_services_as_itself(field: str, value: Any, attribute: str, expected: object) -> None:
    assert getattr(request(**{field: value}), attribute) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True, "suffix": "end"}, "echo"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"prompt": ["a"] * 1000, "n": 2}, "prompt"),
        ({"repeat_penalty": 1.5, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request(**fields)
    assert refused.value.param == param


def test_best_of_as_many_as_asked_for_can_be_streamed() -> None:
    assert request(best_of=2, n=2, stream=True).best_of == 2


def test_no_tokens_with_an_echo_are_none() -> None:
    assert request(max_tokens=0, echo=True).max_tokens == 0


def test_unknown_fields_are_refused_when_the_server_is_set_to() -> None:
    body = schemas.CompletionRequest.model_validate({"model": "demo", "prompt": "Once", "whimsy": 1})
    to_request(body)
    with pytest.raises(UnsupportedParameter) as refused:
        to_request(body, reject_unknown=True)
    assert refused.value.param == "whimsy"


@pytest.mark.parametrize(
    "fields", [{"temperature": 2.1}, {"max_tokens": -2}, {"prompt": {"text": "Once"}}, {"prompt": None}, {"stop": [1]}]
)
def test_a_body_that_breaks_the_schema_is_no_body(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**fields)


def test_every_request_has_an_id_of_its_own_and_the_time_it_came() -> None:
    before = int(time.time())
    one, other = request(), request()
    assert one.id.startswith("cmpl-")
    assert one.id != other.id
    assert before <= one.created <= time.time()
