"""Counting: up, between two numbers and down, up to twenty."""

from random import Random

from demo_model.lesson import Exchange
from demo_model.wording import Wordings, ask
from demo_model.wordlists import NUMBER_WORDS

HIGHEST = 20
TOO_FAR = f"I can only count to {HIGHEST}."

_COUNT_TO = Wordings(
    (
        "count to {n}", "count to {n}", "count to {n}", "count up to {n}", "count from 1 to {n}",
        "count from one to {n}", "list the numbers from 1 to {n}", "write the numbers from 1 to {n}",
        "say the numbers from one to {n}", "count until {n}", "list the numbers 1 to {n}",
        "give me the numbers from 1 to {n}", "show the numbers 1 to {n}", "print the numbers 1-{n}",
        "count 1 to {n}", "name the numbers from 1 to {n}", "count all numbers up to {n}", "count to the number {n}",
        "start at 1 and count to {n}", "count slowly to {n}", "count with me to {n}",
        "write down the numbers up to {n}", "tell me the numbers from 1 to {n}", "count upwards to {n}",
        "count from 1 up to {n}", "count to {n} in digits", "count from 1 till {n}", "say all numbers from 1 to {n}",
        "begin at one and count up to {n}", "count for me to {n}",
    ),
    (
        "count aloud to {n}", "count all the way to {n}", "count up from 1 to {n}",
        "write all the numbers from 1 to {n}", "count for us from 1 to {n}", "show me the numbers from 1 to {n}",
        "count from one up to {n}", "start counting to {n}", "count nicely to {n}", "list all the numbers up to {n}",
        "count in order from 1 to {n}", "print all numbers from 1 to {n}",
    ),
)  # fmt: skip
_COUNT_BETWEEN = Wordings(
    (
        "count from {a} to {n}", "list the numbers from {a} to {n}", "count up from {a} to {n}",
        "start at {a} and count to {n}", "write the numbers from {a} to {n}", "say the numbers from {a} to {n}",
        "give me the numbers {a} to {n}",
    ),
    ("show me the numbers from {a} to {n}", "count for me from {a} to {n}", "print all numbers from {a} to {n}"),
)  # fmt: skip
_COUNT_DOWN = Wordings(
    (
        "count down from {n}", "count backwards from {n}", "count down from {n} to 1", "count from {n} down to 1",
        "count back from {n}", "start at {n} and count down", "list the numbers from {n} down to 1",
    ),
    ("count backwards from {n} to 1", "start counting down from {n}", "show me the numbers from {n} down to 1"),
)  # fmt: skip


def count_to(rng: Random, held_out: bool) -> Exchange:
    n = rng.randint(1, HIGHEST)
    core = _COUNT_TO.draw(rng, held_out).format(n=number(rng, n))
    return Exchange(ask(rng, core, held_out), joined(1, n), f"I start at 1 and stop at {n}.")


def count_between(rng: Random, held_out: bool) -> Exchange:
    a, n = sorted(rng.sample(range(1, HIGHEST + 1), 2))
    core = _COUNT_BETWEEN.draw(rng, held_out).format(a=number(rng, a), n=number(rng, n))
    return Exchange(ask(rng, core, held_out), joined(a, n), f"I start at {a} and stop at {n}.")


def count_down(rng: Random, held_out: bool) -> Exchange:
    n = rng.randint(2, HIGHEST)
    core = _COUNT_DOWN.draw(rng, held_out).format(n=number(rng, n))
    return Exchange(ask(rng, core, held_out), joined(n, 1), f"I start at {n} and go down to 1.")


def count_too_far(rng: Random, held_out: bool) -> Exchange:
    n = rng.choice((rng.randint(HIGHEST + 1, 99), rng.randint(100, 99_999)))
    core = _COUNT_TO.draw(rng, held_out).format(n=n)
    return Exchange(ask(rng, core, held_out), TOO_FAR, f"{n} is more than {HIGHEST}.")


def number(rng: Random, n: int) -> str:
    """A number up to twenty, sometimes as a word."""
    return NUMBER_WORDS[n] if rng.random() < 0.25 else str(n)


def joined(first: int, last: int) -> str:
    step = 1 if last >= first else -1
    return ", ".join(str(n) for n in range(first, last + step, step))
