"""Decides which model is loaded next, which models are evicted for it, and which ones stop accepting leases. Pure.

Models wait in the order of their first requests, and the first model with a claim gets the next place. A loaded model
is free to evict when it has no leases and either its turn is over or it has been idle for a moment. A model that must
be evicted is closed when its turn is over: its leases end, and new requests for it wait in line. Where its leases take
too long, the next model is closed as well. Times are seconds of the caller's clock.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.models.budget import Budget, Holding

TURN_SECONDS = 2.0
"""The shortest turn of a loaded model while others wait. A turn lasts at least as long as the load did."""
IDLE_SECONDS = 0.25
"""A model may be evicted before the end of its turn after this idle time, in which most clients send again."""


@dataclass(slots=True)
class Place:
    """The place of a loaded model. A model with leases is not evicted."""

    turn_ends: float
    idle_since: float
    leases: int = 0
    closed_at: float | None = None

    def free_at(self) -> float:
        """When the model may be evicted, if no further lease begins."""
        return math.inf if self.leases else min(self.turn_ends, self.idle_since + IDLE_SECONDS)

    def stuck_at(self) -> float:
        """When the leases of a closed model have lasted too long."""
        return math.inf if self.closed_at is None else self.closed_at + TURN_SECONDS


@dataclass(slots=True)
class _Waiting:
    """A model in line. It has a claim once its memory need is known."""

    waiters: int = 0
    needed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """`model_id` has a reserved place, once the victims are unloaded."""

    model_id: str
    victims: list[Holding]


@dataclass(frozen=True, slots=True)
class NeverFits:
    """`model_id` can never get a place of `needed_bytes`. Its claim is withdrawn."""

    model_id: str
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """No decision is possible before the next change or the time `until`."""

    until: float


class Places:
    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._occupied: dict[str, Place] = {}
        self._turn_seconds: dict[str, float] = {}
        self._reserved: dict[str, tuple[int, float]] = {}
        """For each model that is loading: its bytes, and the time of the grant."""
        self._line: dict[str, _Waiting] = {}

    def join(self, model_id: str) -> None:
        """Adds a waiter for the model, at the end of the line if the model is not in it."""
        self._line.setdefault(model_id, _Waiting()).waiters += 1

    def leave(self, model_id: str) -> bool:
        """Removes a waiter. True when it was the last one and the model has a claim."""
        waiting = self._line[model_id]
        waiting.waiters -= 1
        if waiting.waiters == 0 and waiting.needed_bytes is None:
            del self._line[model_id]
        return waiting.waiters == 0 and waiting.needed_bytes is not None

    def claim(self, model_id: str, needed_bytes: int) -> None:
        """Claims a place of that size for the model."""
        self._line.setdefault(model_id, _Waiting()).needed_bytes = needed_bytes

    def withdraw(self, model_id: str) -> None:
        """Withdraws the claim, if there is one. The model keeps its position while it has waiters."""
        waiting = self._line.get(model_id)
        if waiting is not None:
            waiting.needed_bytes = None
            if waiting.waiters == 0:
                del self._line[model_id]

    def has_claim(self, model_id: str) -> bool:
        waiting = self._line.get(model_id)
        return waiting is not None and waiting.needed_bytes is not None

    def expected_wait_seconds(self, model_id: str) -> float:
        """An estimate: each model ahead needs one turn to load and one to serve."""
        line = list(self._line)
        ahead = line[: line.index(model_id)] if model_id in line else line
        return sum(2 * self._turn_seconds.get(one, TURN_SECONDS) for one in ahead)

    def reserved(self) -> list[Holding]:
        """The places reserved for models that are loading."""
        return [Holding(model_id, nbytes, 0.0, evictable=False) for model_id, (nbytes, _) in self._reserved.items()]

    def has_place(self, model_id: str) -> bool:
        return model_id in self._reserved or model_id in self._occupied

    def occupy(self, model_id: str, now: float) -> None:
        """Occupies the reserved place with the loaded model, whose turn begins."""
        _, granted_at = self._reserved.pop(model_id)
        turn_seconds = self._turn_seconds[model_id] = max(TURN_SECONDS, now - granted_at)
        self._occupied[model_id] = Place(now + turn_seconds, now)

    def vacate(self, model_id: str) -> None:
        """Frees the place of a model that is unloaded, whose worker died, or whose load failed."""
        self._reserved.pop(model_id, None)
        self._occupied.pop(model_id, None)

    def begin(self, model_id: str) -> Place:
        """Begins a lease of a loaded model. `end` ends it, even after the model was reloaded."""
        place = self._occupied[model_id]
        place.leases += 1
        return place

    def end(self, place: Place, now: float) -> None:
        place.leases -= 1
        place.idle_since = now

    def closed(self) -> set[str]:
        """Loaded models that accept no new leases."""
        return {model_id for model_id, place in self._occupied.items() if place.closed_at is not None}

    def is_closed(self, model_id: str) -> bool:
        return model_id in self.closed()

    def decide(self, loaded: Sequence[Holding], now: float) -> Granted | NeverFits | Wait:
        """The next step. `loaded` are the loaded models, with `evictable` for those that may be evicted when idle."""
        claims = ((model_id, waiting.needed_bytes) for model_id, waiting in self._line.items())
        model_id, needed_bytes = next((claim for claim in claims if claim[1] is not None), ("", None))
        if needed_bytes is None:
            self._close(set(), now)
            return Wait(math.inf)
        reserved = self.reserved()
        free = [replace(one, evictable=one.evictable and self._is_free(one.model_id, now)) for one in loaded]
        victims = self.budget.victims(needed_bytes, [*free, *reserved])
        if victims is not None:
            self._close(set(), now)
            self._reserved[model_id] = needed_bytes, now
            self.withdraw(model_id)
            return Granted(model_id, victims)
        loads_may_fail = [replace(one, evictable=True) for one in reserved]
        if self.budget.victims(needed_bytes, [*loaded, *loads_may_fail]) is None:
            self.withdraw(model_id)
            return NeverFits(model_id, needed_bytes)
        if self._close(self._to_close(needed_bytes, loaded, now), now):
            return self.decide(loaded, now)  # closing a model may free it at once
        return Wait(min((at for at in self._deadlines() if at > now), default=math.inf))

    def _is_free(self, model_id: str, now: float) -> bool:
        """Whether the model may be evicted now. An open model first serves the requests that waited for its load."""
        place = self._occupied[model_id]
        is_waited_for = model_id in self._line and place.closed_at is None
        return place.free_at() <= now and not is_waited_for

    def _to_close(self, needed_bytes: int, loaded: Sequence[Holding], now: float) -> set[str]:
        evictable = {one.model_id for one in loaded if one.evictable}
        stuck = {model_id for model_id in evictable if self._occupied[model_id].stuck_at() <= now}
        victims = self.budget.victims(needed_bytes, self._in_eviction_order(loaded, evictable - stuck, now))
        if victims is None:
            victims = self.budget.victims(needed_bytes, self._in_eviction_order(loaded, evictable, now)) or []
        return stuck | {one.model_id for one in victims if self._occupied[one.model_id].turn_ends <= now}

    def _in_eviction_order(self, loaded: Sequence[Holding], evictable: Set[str], now: float) -> list[Holding]:
        """`last_used` becomes the rank of eviction: free models first, the others by the end of their turns."""

        def rank(one: Holding) -> tuple[bool, float]:
            is_free = self._is_free(one.model_id, now)
            return not is_free, one.last_used if is_free else self._occupied[one.model_id].turn_ends

        ordered = enumerate(sorted(loaded, key=rank))
        ranked = [replace(one, last_used=float(at), evictable=one.model_id in evictable) for at, one in ordered]
        return [*ranked, *self.reserved()]

    def _close(self, model_ids: Set[str], now: float) -> bool:
        """Closes these models and opens all others. True when it closed an open one."""
        newly = model_ids - self.closed()
        for model_id, place in self._occupied.items():
            if model_id not in model_ids:
                place.closed_at = None
            elif place.closed_at is None:
                place.closed_at = now
        return bool(newly)

    def _deadlines(self) -> list[float]:
        """Times at which the decision may change without an event."""
        return [at for place in self._occupied.values() for at in (place.turn_ends, place.free_at(), place.stuck_at())]
