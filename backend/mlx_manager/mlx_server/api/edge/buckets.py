"""How much each of many may take in a minute: token buckets, which fill up evenly. Knows no HTTP."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_BUCKETS = 10_000
SECONDS = 60.0


@dataclass(slots=True)
class _Level:
    amount: float
    at: float


@dataclass(frozen=True, slots=True)
class Balance:
    limit: int
    remaining: int
    reset_seconds: float
    """Until it is full again."""
    wait_seconds: float
    """Until something may be taken; 0 where that is now."""


class Buckets:
    """One for each name, of `limit`; the names not heard of for longest are forgotten. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def take(self, name: str, amount: float, limit: int) -> None:
        """Whatever there is: what has been used can only be noted, and the bucket owes it then."""
        level = self._filled(name, limit)
        level.amount -= amount

    def balance(self, name: str, limit: int) -> Balance:
        amount = self._filled(name, limit).amount
        per_second = limit / SECONDS
        wait_seconds = max(0.0, (1 - amount) / per_second)
        return Balance(limit, max(0, int(amount)), (limit - amount) / per_second, wait_seconds)

    def _filled(self, name: str, limit: int) -> _Level:
        """The level as it is now. A limit that has changed counts from here on."""
        now = self._clock()
        level = self._levels.get(name)
        if level is None:
            level = self._levels[name] = _Level(limit, now)
            if len(self._levels) > MAX_BUCKETS:
                self._levels.popitem(last=False)
        self._levels.move_to_end(name)
        level.amount = min(limit, level.amount + (now - level.at) * limit / SECONDS)
        level.at = now
        return level
