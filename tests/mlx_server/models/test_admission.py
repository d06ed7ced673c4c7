import pytest

from mlx_manager.mlx_server.engine.messages import MAX_BATCH_ROWS
from mlx_manager.mlx_server.errors import ServerBusy
from mlx_manager.mlx_server.models.admission import Admission


def test_a_batch_and_a_queue_are_let_in_and_no_more() -> None:
    admission = Admission(max_queue=2)
    with admission.admit("model", MAX_BATCH_ROWS + 2):
        with (
            pytest.raises(ServerBusy, match="66 of at most 66 generations run or wait") as refused,
            admission.admit("model", 1),
        ):
            pass
        assert refused.value.retry_after_seconds == 1
        with admission.admit("another", 1):
            pass
    with admission.admit("model", 1):
        pass


def test_sequences_of_one_request_are_let_in_together_or_not_at_all() -> None:
    admission = Admission(max_queue=0)
    with admission.admit("model", MAX_BATCH_ROWS - 1):
        with pytest.raises(ServerBusy, match="asks for 2 more"), admission.admit("model", 2):
            pass
        with admission.admit("model", 1):
            pass


def test_models_that_were_asked_for_once_are_forgotten() -> None:
    admission = Admission(max_queue=0)
    for number in range(1000):
        with admission.admit(f"model{number}", 1):
            pass
    assert not admission._admitted
