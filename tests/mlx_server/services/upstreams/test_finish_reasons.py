import pytest

from mlx_manager.mlx_server.services.upstreams.finish_reasons import read_finish_reason


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *((theirs, "stop") for theirs in ("stop", "STOP", "eos", "end_turn", "stop_sequence", "COMPLETE")),
        *((theirs, "length") for theirs in ("length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length")),
        *((theirs, "tool_calls") for theirs in ("tool_calls", "function_call", "tool_use", "TOOL_CALL")),
        *((theirs, "content_filter") for theirs in ("content_filter", "SAFETY", "RECITATION", "content-filter")),
        *((theirs, "broken") for theirs in ("error", "abort", "cancelled", "timeout", "MALFORMED_FUNCTION_CALL")),
        ("FinishReason.STOP", "stop"),
        ("FINISH_REASON_MAX_TOKENS", "length"),
    ],
)
def test_reasons_become_those_that_clients_know(theirs: str, ours: str) -> None:
    assert read_finish_reason(theirs) == ours


@pytest.mark.parametrize("said", [None, "", " ", "null", "None", False, "FINISH_REASON_UNSPECIFIED"])
def test_empty_reason_does_not_end_a_choice(said: object) -> None:
    assert read_finish_reason(said) is None


@pytest.mark.parametrize("said", ["gone fishing", 7, True, {"reason": "stop"}])
def test_reason_without_a_known_meaning_is_never_taken_for_a_stop(said: object) -> None:
    assert read_finish_reason(said) == "broken"
