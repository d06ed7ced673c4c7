import logging
import re
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from mlx_manager.mlx_server.errors import UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import IGNORED, REFUSED, RESOURCES, check_unused, warn_once
from mlx_manager.mlx_server.schemas import openai


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_parameter_that_is_not_built_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=re.escape(name)) as refused:
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
        ("best_of", 1),
        ("top_logprobs", None),
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
        ("top_logprobs", 0),
        ("best_of", True),
        ("best_of", "1"),
        ("n_probs", False),
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


@pytest.mark.parametrize("name", sorted(RESOURCES))
def test_a_parameter_of_the_machine_is_accepted_and_warned_of_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        check_unused({name: 4096}, reject_unknown=True)
        check_unused({name: 2048}, reject_unknown=True)
    (record,) = caplog.records
    assert repr(name) in record.getMessage()


def test_no_parameter_is_on_two_lists() -> None:
    assert len({*IGNORED, *REFUSED, *RESOURCES}) == len(IGNORED) + len(REFUSED) + len(RESOURCES)


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


def test_a_parameter_that_both_protocols_use_is_neither_refused_nor_ignored() -> None:
    """A body that declares a field never has it among its extras; the other protocol's may be refused there."""
    assert {*openai.GenerationBody.model_fields} & {*REFUSED, *IGNORED} == set()
    assert {*openai.ChatCompletionRequest.model_fields, *openai.CompletionRequest.model_fields} & IGNORED == set()


@pytest.mark.parametrize(
    ("body", "other"),
    [
        (openai.ChatCompletionRequest, openai.CompletionRequest),
        (openai.CompletionRequest, openai.ChatCompletionRequest),
    ],
)
def test_what_only_the_other_protocol_has_is_refused_by_name(body: Any, other: Any) -> None:
    assert {*other.model_fields} - {*body.model_fields} - {"messages", "prompt"} <= {*REFUSED}


def test_fields_of_messages_are_known_at_any_place(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_unused({"annotations": [], "nobody_has_this": 1}, where="messages[3].")
        check_unused({"annotations": [], "nobody_has_this": 1}, where="messages[4].")
    assert [record.getMessage() for record in caplog.records] == [
        "Ignoring the request field 'messages[].nobody_has_this'. The field is unknown."
    ]


def test_unknown_fields_can_be_refused_with_their_place() -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        check_unused({"annotations": [], "nobody_has_this": 1}, reject_unknown=True, where="messages[3].")
    assert refused.value.param == "messages[3].nobody_has_this"
