"""Limits how many generations each model has accepted, running and waiting. Knows no workers and no requests."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from mlx_manager.mlx_server.engine.messages import MAX_BATCH_ROWS
from mlx_manager.mlx_server.errors import InvalidRequest, ServerBusy

RETRY_AFTER_SECONDS = 1


class Admission:
    """Admits as many generations as a worker decodes at once, plus `max_queue` that wait."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self._admitted: Counter[str] = Counter()

    @property
    def _limit(self) -> int:
        return MAX_BATCH_ROWS + self.max_queue

    @property
    def is_busy(self) -> bool:
        return bool(self._admitted)

    def admitted(self, model_id: str) -> int:
        return self._admitted[model_id]

    @contextlib.contextmanager
    def admit(self, model_id: str, sequences: int) -> Iterator[None]:
        """Admits all of the sequences for the block. Raises ServerBusy where the model is full.

        Raises InvalidRequest for more sequences than the limit.
        """
        if sequences > self._limit:
            raise InvalidRequest(
                f"The request asks for {sequences} generations, and this server accepts at most {self._limit}. "
                "Send fewer prompts or choices at once, or raise MLX_SERVER_MAX_QUEUE."
            )
        admitted = self._admitted[model_id]
        if admitted + sequences > self._limit:
            raise ServerBusy(
                f"Model {model_id!r} is busy: {admitted} of at most {self._limit} generations run or wait, and this "
                f"request asks for {sequences} more. Retry later, or raise MLX_SERVER_MAX_QUEUE.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._admitted[model_id] += sequences
        try:
            yield
        finally:
            self._admitted[model_id] -= sequences
            if not self._admitted[model_id]:
                del self._admitted[model_id]  # clients choose the ids, so unused entries must not stay
