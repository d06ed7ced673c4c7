"""How many generations each model has taken on, those that wait for it to load among them, and when it is enough."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from mlx_manager.mlx_server.engine.messages import MAX_BATCH_ROWS
from mlx_manager.mlx_server.errors import InvalidRequest, ServerBusy

RETRY_AFTER_SECONDS = 1


class Admission:
    """Lets in as many as a worker decodes at once, and `max_queue` that wait."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self._admitted: Counter[str] = Counter()

    @property
    def _limit(self) -> int:
        return MAX_BATCH_ROWS + self.max_queue

    def admitted(self, model_id: str) -> int:
        return self._admitted[model_id]

    @contextlib.contextmanager
    def admit(self, model_id: str, sequences: int) -> Iterator[None]:
        """Takes on all of the sequences for the block, or none: then it raises ServerBusy.

        Raises InvalidRequest for more than could ever be taken on.
        """
        if sequences > self._limit:
            raise InvalidRequest(
                f"The request asks for {sequences} generations, and this server takes on {self._limit} at most. "
                "Send fewer prompts or choices at once, or raise MLX_SERVER_MAX_QUEUE."
            )
        admitted = self._admitted[model_id]
        if admitted + sequences > self._limit:
            raise ServerBusy(
                f"Model {model_id!r} is busy: {admitted} generations run or wait, of {self._limit} at most, and this "
                f"request asks for {sequences} more. Send it again later, or raise MLX_SERVER_MAX_QUEUE.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._admitted[model_id] += sequences
        try:
            yield
        finally:
            self._admitted[model_id] -= sequences
            if not self._admitted[model_id]:
                del self._admitted[model_id]  # requests choose the ids
