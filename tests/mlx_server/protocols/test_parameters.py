import logging
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from mlx_manager.mlx_server.errors import UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import IGNORED, REFUSED, check_unused
from mlx_manager.mlx_server.schemas import openai


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_parameter_that_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=name) as refused:
        check_unused({name: {"ask": "for something"}})
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, neutral in sorted(REFUSED.items()) for value in (None, *neutral)],
)
def test_a_value_that_asks_for_nothing_is_accepted(name: str, value: object) -> None:
    check_unused({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("n", 1.0),
        ("best_of", 1),
        ("logprobs", False),
        ("logprobs", None),
        ("typical_p", 1.0),
        ("parallel_tool_calls", True),
        ("tools", []),
        ("tool_choice", "none"),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("suffix", ""),
    ],
)
def test_what_clients_send_by_default_is_accepted(name: str, value: object) -> None:
    check_unused({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", 0),
        ("n", True),
        ("n", "1"),
        ("logprobs", 0),
        ("logprobs", True),
        ("logprobs", 5),
        ("top_logprobs", 0),
        ("min_tokens", False),
        ("min_tokens", 5),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("modalities", ["text", "audio"]),
    ],
)
def test_a_value_that_would_change_the_answer_is_refused(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        check_unused({name: value})
    assert refused.value.param == name


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_a_knowingly_ignored_parameter_takes_any_value_in_silence(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_unused({name: "anything"})
    assert caplog.records == []


def test_no_parameter_is_both_refused_and_ignored() -> None:
    assert IGNORED.isdisjoint(REFUSED)


def test_an_unknown_parameter_is_warned_of_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_unused({"nobody_knows_this": 1})
        check_unused({"nobody_knows_this": 2})
        check_unused({"nor_this": 1})
    assert [record.getMessage().count("nobody_knows_this") for record in caplog.records] == [1, 0]


def test_the_value_of_an_unknown_parameter_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    check_unused({"nobody_knows_that": "a secret"})
    assert "nobody_knows_that" in caplog.text
    assert "a secret" not in caplog.text


def test_no_parameters_are_no_fault() -> None:
    check_unused(None)
    check_unused({})


CHAT = chat_create_params.CompletionCreateParamsBase
COMPLETION = completion_create_params.CompletionCreateParamsBase


@pytest.mark.parametrize(
    ("body", "params"), [(openai.ChatCompletionRequest, CHAT), (openai.CompletionRequest, COMPLETION)]
)
def test_every_parameter_of_openais_own_client_is_used_refused_or_on_the_ignored_list(body: Any, params: Any) -> None:
    known = {*body.model_fields, *REFUSED, *IGNORED}
    assert {*params.__annotations__} - known == set()


@pytest.mark.parametrize("body", [openai.ChatCompletionRequest, openai.CompletionRequest])
def test_a_parameter_that_is_used_is_neither_refused_nor_ignored(body: Any) -> None:
    used_by_one_protocol = {"echo", "max_completion_tokens"}  # a body that declares one never has it among its extras
    assert {*body.model_fields} & {*REFUSED, *IGNORED} <= used_by_one_protocol
