"""The few facts that the model knows: capitals, days, months, opposites, and yes-or-no questions about
them."""

from random import Random

from demo_model.lesson import Exchange
from demo_model.wording import Wordings, say
from demo_model.wordlists import ANIMALS, NAMES, THINGS

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Poland": "Warsaw", "Austria": "Vienna", "Greece": "Athens", "Turkey": "Ankara",
    "Russia": "Moscow", "Ukraine": "Kyiv", "Hungary": "Budapest", "Romania": "Bucharest", "Bulgaria": "Sofia",
    "Belgium": "Brussels", "Switzerland": "Bern", "the Netherlands": "Amsterdam", "Japan": "Tokyo",
    "China": "Beijing", "India": "New Delhi", "South Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi",
    "Iran": "Tehran", "Iraq": "Baghdad", "Egypt": "Cairo", "Kenya": "Nairobi", "Morocco": "Rabat", "Ghana": "Accra",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Iceland": "Reykjavik", "Croatia": "Zagreb",
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("high", "low"), ("long", "short"),
    ("up", "down"), ("left", "right"), ("good", "bad"), ("day", "night"), ("black", "white"), ("wet", "dry"),
    ("happy", "sad"), ("open", "closed"), ("full", "empty"), ("hard", "soft"), ("rich", "poor"), ("strong", "weak"),
    ("light", "dark"), ("loud", "quiet"), ("yes", "no"), ("early", "late"), ("clean", "dirty"), ("first", "last"),
    ("thick", "thin"), ("near", "far"), ("sweet", "bitter"), ("war", "peace"), ("love", "hate"), ("win", "lose"),
    ("buy", "sell"), ("start", "stop"), ("true", "false"), ("inside", "outside"), ("deep", "shallow"),
)  # fmt: skip
_CAPITAL = Wordings(
    (
        "what is the capital of {0}", "what's the capital of {0}", "tell me the capital of {0}", "capital of {0}",
        "the capital of {0}", "what is the capital city of {0}", "name the capital city of {0}",
        "which city is the capital of {0}", "{0}: what is the capital", "do you know the capital of {0}",
        "give me the capital of {0}", "i need the capital of {0}",
    ),
    (
        "name the capital of {0}", "what city is the capital of {0}", "can you tell me the capital of {0}",
        "say the capital of {0}",
    ),
)  # fmt: skip
_NEXT = Wordings(
    (
        "what comes after {0}", "what {1} comes after {0}", "which {1} comes after {0}", "which {1} follows {0}",
        "after {0} comes", "what is the {1} after {0}", "tell me the {1} after {0}",
        "what is the next {1} after {0}", "{0} is over, what comes next",
    ),
    ("name the {1} after {0}", "what {1} follows {0}", "tell me which {1} comes after {0}"),
)  # fmt: skip
_PREVIOUS = Wordings(
    ("what comes before {0}", "which {1} comes before {0}", "what {1} is before {0}", "what is the {1} before {0}"),
    ("tell me the {1} before {0}", "what {1} comes before {0}", "name the {1} before {0}"),
)
_OPPOSITE = Wordings(
    (
        "what is the opposite of {0}", "opposite of {0}", "tell me the opposite of {0}",
        "what's the opposite of {0}", "the opposite of {0}", "give me the opposite of {0}",
        "what is the contrary of {0}", "{0}: what is the opposite",
    ),
    ("name the opposite of {0}", "say the opposite of {0}", "which word is the opposite of {0}"),
)  # fmt: skip
_YES_NO = Wordings(
    ("{0}", "{0}", "yes or no: {0}", "{0}, yes or no", "tell me: {0}", "{0}, is that true", "quick question: {0}"),
    ("answer yes or no: {0}", "please tell me, {0}", "is it yes or no: {0}", "i wonder: {0}"),
)


def capital(rng: Random, held_out: bool) -> Exchange:
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    return _fact(rng, _CAPITAL.draw(rng, held_out), f"The capital of {country} is {city}.", city, country)


def day(rng: Random, held_out: bool) -> Exchange:
    return _neighbour(rng, held_out, DAYS, "day")


def month(rng: Random, held_out: bool) -> Exchange:
    return _neighbour(rng, held_out, MONTHS, "month")


def opposite(rng: Random, held_out: bool) -> Exchange:
    word, other = rng.choice(OPPOSITES)
    if rng.random() < 0.5:
        word, other = other, word
    return _fact(rng, _OPPOSITE.draw(rng, held_out), f"The opposite of {word} is {other}.", other, word)


def yes_or_no(rng: Random, held_out: bool) -> Exchange:
    question, is_true = rng.choice((_is_animal, _is_bigger, _is_capital, _is_opposite, _is_next))(rng)
    wording = _YES_NO.draw(rng, held_out)
    answer = "Yes" if is_true else "No"
    thought = f"That is {'true' if is_true else 'false'}."
    return Exchange(say(rng, wording.format(question) + "?"), f"{answer}.", thought, word=answer)


def _neighbour(rng: Random, held_out: bool, cycle: tuple[str, ...], kind: str) -> Exchange:
    i = rng.randrange(len(cycle))
    if rng.random() < 0.6:
        other = cycle[(i + 1) % len(cycle)]
        return _fact(rng, _NEXT.draw(rng, held_out), f"After {cycle[i]} comes {other}.", other, cycle[i], kind)
    other = cycle[i - 1]
    return _fact(rng, _PREVIOUS.draw(rng, held_out), f"Before {cycle[i]} comes {other}.", other, cycle[i], kind)


def _fact(rng: Random, wording: str, sentence: str, word: str, *values: str) -> Exchange:
    prompt = say(rng, wording.format(*values) + rng.choice(("?", "?", "", ".")))
    return Exchange(prompt, sentence, f"I remember: {sentence}", word)


def _is_animal(rng: Random) -> tuple[str, bool]:
    is_true = rng.random() < 0.5
    subject = rng.choice(ANIMALS) if is_true else rng.choice((rng.choice(THINGS), rng.choice(NAMES)))
    return f"is {'' if subject[0].isupper() else 'a '}{subject} an animal", is_true


def _is_bigger(rng: Random) -> tuple[str, bool]:
    a, b = rng.sample(range(1, 21), 2)
    if rng.random() < 0.5:
        return f"is {a} {rng.choice(('bigger', 'greater', 'more'))} than {b}", a > b
    return f"is {a} {rng.choice(('smaller', 'less'))} than {b}", a < b


def _is_capital(rng: Random) -> tuple[str, bool]:
    country, other = rng.sample(list(CAPITALS), 2)
    is_true = rng.random() < 0.5
    return f"is {CAPITALS[country if is_true else other]} the capital of {country}", is_true


def _is_opposite(rng: Random) -> tuple[str, bool]:
    (word, right), (_, wrong) = rng.sample(OPPOSITES, 2)
    is_true = rng.random() < 0.5
    return f"is {right if is_true else wrong} the opposite of {word}", is_true


def _is_next(rng: Random) -> tuple[str, bool]:
    i, j = rng.sample(range(len(DAYS)), 2)
    is_true = rng.random() < 0.5
    return f"does {DAYS[(i + 1) % 7 if is_true else j]} come after {DAYS[i]}", is_true or j == (i + 1) % 7
