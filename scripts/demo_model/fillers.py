"""The single-question skills by name, and sequences of them that fill a conversation."""

from random import Random

from demo_model.chat import Turn
from demo_model.copying import answer_json, repeat
from demo_model.counting import count_between, count_down, count_to, count_too_far
from demo_model.facts import capital, day, month, opposite, yes_or_no
from demo_model.lesson import Exchange, Skill
from demo_model.talk import greet, small_talk, speak_unicode, tell_story, too_hard, who

SKILLS: dict[str, tuple[Skill, float]] = {
    "greeting": (greet, 0.8),
    "who are you": (who, 0.8),
    "small talk": (small_talk, 0.5),
    "count to N": (count_to, 3.5),
    "count from A to B": (count_between, 0.8),
    "count down": (count_down, 0.6),
    "count too far": (count_too_far, 0.5),
    "story": (tell_story, 0.35),
    "emoji and scripts": (speak_unicode, 0.9),
    "too hard": (too_hard, 2.0),
    "repeat": (repeat, 5.0),
    "JSON": (answer_json, 2.0),
    "capitals": (capital, 0.9),
    "days": (day, 0.5),
    "months": (month, 0.6),
    "opposites": (opposite, 0.6),
    "yes or no": (yes_or_no, 1.5),
}
"""Skills by name, with how often each is drawn."""
_NAMES = list(SKILLS)
_WEIGHTS = [weight for _, weight in SKILLS.values()]


def draw_exchange(rng: Random, held_out: bool) -> Exchange:
    """Any exchange; for the evaluation, one with a single right answer."""
    name = rng.choices(_NAMES, _WEIGHTS)[0]
    while held_out and name == "story":
        name = rng.choices(_NAMES, _WEIGHTS)[0]
    draw, _ = SKILLS[name]
    return draw(rng, held_out)


def fillers(rng: Random, held_out: bool, count: int) -> list[Turn]:
    """Exchanges of any skills, as turns without thoughts: only a last turn has a thought."""
    turns: list[Turn] = []
    for _ in range(count):
        exchange = draw_exchange(rng, held_out)
        turns += [Turn("user", exchange.prompt), Turn("assistant", exchange.answer, thought=exchange.thought)]
    return turns
