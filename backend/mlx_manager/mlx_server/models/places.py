"""Which model is loaded next, which loaded models go for it, and which take no more requests until then. Pure.

Models stand in line in the order in which they were first asked for, and the first with a claim is served first. It
gets a place as soon as models that may go leave one. A loaded model may go when it has no leases, and either its turn
is over or nothing has asked for it for a moment. A model that has to go for the first in line is closed when its turn
is over: its leases end, and new requests for it stand in line. Where its leases take long, the next model is closed as
well. Times are seconds of the caller's clock.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from mlx_manager.mlx_server.models.budget import Budget, Holding

TURN_SECONDS = 2.0
"""How long a loaded model serves while others wait, at least; a model that took longer to load serves for that long."""
IDLE_SECONDS = 0.25
"""A model that was idle for so long goes before its turn is over: a client's next request would have come by then."""


@dataclass(slots=True)
class Seat:
    """The place of a loaded model. While it has leases, the model does not go to make room."""

    turn_ends: float
    idle_since: float
    leases: int = 0
    closed_at: float | None = None

    def free_at(self) -> float:
        """When the model may go, if no further lease begins."""
        return math.inf if self.leases else min(self.turn_ends, self.idle_since + IDLE_SECONDS)

    def stuck_at(self) -> float:
        """When its leases have held the model for too long after it was closed."""
        return math.inf if self.closed_at is None else self.closed_at + TURN_SECONDS


@dataclass(slots=True)
class _Stand:
    """A model in line. It has a claim once the memory that it needs is known."""

    wanted_by: int = 0
    needed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """`model_id` has a place from now on; the victims have to be unloaded for it."""

    model_id: str
    victims: list[Holding]


@dataclass(frozen=True, slots=True)
class Refused:
    """`model_id` would never get a place of `needed_bytes`. Its claim is withdrawn."""

    model_id: str
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done before something changes, or `until` has come."""

    until: float


class Places:
    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._seats: dict[str, Seat] = {}
        self._turn_seconds: dict[str, float] = {}
        self._reserved: dict[str, tuple[int, float]] = {}
        """Of the models that are being loaded: the bytes, and since when."""
        self._line: dict[str, _Stand] = {}

    def want(self, model_id: str) -> None:
        """One more waits for the model, which joins the end of the line if it does not stand there."""
        self._line.setdefault(model_id, _Stand()).wanted_by += 1

    def leave(self, model_id: str) -> bool:
        """One of those that waited does so no more. True when it was the last one, and the model has a claim."""
        stand = self._line[model_id]
        stand.wanted_by -= 1
        if stand.wanted_by == 0 and stand.needed_bytes is None:
            del self._line[model_id]
        return stand.wanted_by == 0 and stand.needed_bytes is not None

    def claim(self, model_id: str, needed_bytes: int) -> None:
        """The model can be loaded as soon as it has a place of that size."""
        self._line.setdefault(model_id, _Stand()).needed_bytes = needed_bytes

    def withdraw(self, model_id: str) -> None:
        """Takes the claim back, if there is one. The model keeps its position for those who wait for it."""
        stand = self._line.get(model_id)
        if stand is not None:
            stand.needed_bytes = None
            if stand.wanted_by == 0:
                del self._line[model_id]

    def has_claim(self, model_id: str) -> bool:
        stand = self._line.get(model_id)
        return stand is not None and stand.needed_bytes is not None

    def expected_wait_seconds(self, model_id: str) -> float:
        """A guess: each model ahead in line is loaded, which takes no longer than its turn, and has its turn."""
        line = list(self._line)
        ahead = line[: line.index(model_id)] if model_id in line else line
        return sum(2 * self._turn_seconds.get(one, TURN_SECONDS) for one in ahead)

    def reserved(self) -> list[Holding]:
        """The places of models that are being loaded."""
        return [Holding(model_id, nbytes, 0.0, may_go=False) for model_id, (nbytes, _) in self._reserved.items()]

    def has_place(self, model_id: str) -> bool:
        return model_id in self._reserved or model_id in self._seats

    def sit(self, model_id: str, now: float) -> None:
        """The model that had a place is loaded, and its turn begins."""
        _, granted_at = self._reserved.pop(model_id)
        turn_seconds = self._turn_seconds[model_id] = max(TURN_SECONDS, now - granted_at)
        self._seats[model_id] = Seat(now + turn_seconds, now)

    def vacate(self, model_id: str) -> None:
        """The model is being unloaded, its worker died, or its load failed."""
        self._reserved.pop(model_id, None)
        self._seats.pop(model_id, None)

    def begin(self, model_id: str) -> Seat:
        """A lease of the loaded model begins. `end` ends it, also when the model has been loaded again since."""
        seat = self._seats[model_id]
        seat.leases += 1
        return seat

    def end(self, seat: Seat, now: float) -> None:
        seat.leases -= 1
        seat.idle_since = now

    def closed(self) -> set[str]:
        """Loaded models that take no new leases now."""
        return {model_id for model_id, seat in self._seats.items() if seat.closed_at is not None}

    def is_closed(self, model_id: str) -> bool:
        return model_id in self.closed()

    def decide(self, loaded: Sequence[Holding], now: float) -> Granted | Refused | Wait:
        """What happens next. `loaded` are the loaded models; `may_go` says that they may be evicted when idle."""
        claims = ((model_id, stand.needed_bytes) for model_id, stand in self._line.items())
        model_id, needed_bytes = next((claim for claim in claims if claim[1] is not None), ("", None))
        if needed_bytes is None:
            self._close(set(), now)
            return Wait(math.inf)
        reserved = self.reserved()
        free = [replace(one, may_go=one.may_go and self._is_free(one.model_id, now)) for one in loaded]
        victims = self.budget.victims(needed_bytes, [*free, *reserved])
        if victims is not None:
            self._close(set(), now)
            self._reserved[model_id] = needed_bytes, now
            self.withdraw(model_id)
            return Granted(model_id, victims)
        loads_may_fail = [replace(one, may_go=True) for one in reserved]
        if self.budget.victims(needed_bytes, [*loaded, *loads_may_fail]) is None:
            self.withdraw(model_id)
            return Refused(model_id, needed_bytes)
        if self._close(self._to_close(needed_bytes, loaded, now), now):
            return self.decide(loaded, now)  # a model may go as soon as it is closed
        return Wait(min((look for look in self._looks() if look > now), default=math.inf))

    def _is_free(self, model_id: str, now: float) -> bool:
        """Whether the model may go. An open one first serves those who have waited for its load."""
        seat = self._seats[model_id]
        is_waited_for = model_id in self._line and seat.closed_at is None
        return seat.free_at() <= now and not is_waited_for

    def _to_close(self, needed_bytes: int, loaded: Sequence[Holding], now: float) -> set[str]:
        evictable = {one.model_id for one in loaded if one.may_go}
        stuck = {model_id for model_id in evictable if self._seats[model_id].stuck_at() <= now}
        leaving = self.budget.victims(needed_bytes, self._in_turn(loaded, evictable - stuck, now))
        if leaving is None:
            leaving = self.budget.victims(needed_bytes, self._in_turn(loaded, evictable, now)) or []
        return stuck | {one.model_id for one in leaving if self._seats[one.model_id].turn_ends <= now}

    def _in_turn(self, loaded: Sequence[Holding], evictable: Set[str], now: float) -> list[Holding]:
        """With the order in which models go as `last_used`: the free ones first, the others by their turns."""

        def rank(one: Holding) -> tuple[bool, float]:
            is_free = self._is_free(one.model_id, now)
            return not is_free, one.last_used if is_free else self._seats[one.model_id].turn_ends

        ordered = enumerate(sorted(loaded, key=rank))
        ranked = [replace(one, last_used=float(at), may_go=one.model_id in evictable) for at, one in ordered]
        return [*ranked, *self.reserved()]

    def _close(self, model_ids: Set[str], now: float) -> bool:
        """Closes these models and opens all others. True when one of them was open."""
        newly = model_ids - self.closed()
        for model_id, seat in self._seats.items():
            if model_id not in model_ids:
                seat.closed_at = None
            elif seat.closed_at is None:
                seat.closed_at = now
        return bool(newly)

    def _looks(self) -> list[float]:
        """When time alone may change the decision."""
        return [at for seat in self._seats.values() for at in (seat.turn_ends, seat.free_at(), seat.stuck_at())]
