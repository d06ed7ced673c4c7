"""Remembering a name, or a favourite, over turns of other talk."""

from random import Random

from demo_model.chat import Conversation, Turn
from demo_model.copying import made_up_name
from demo_model.fillers import fillers
from demo_model.wording import Wordings, cased
from demo_model.wordlists import ADJECTIVES, ANIMALS, NAMES, THINGS, words

NAMES_HELD_OUT = words(
    "Abdul Agnes Albert Amelia Astrid Beatrice Bernard Camille Cedric Chloe Dimitri Dolores Eduardo Eleanor Esther "
    "Fabian Fatima Gertrude Giorgio Harriet Henrik Ingrid Isabel Joachim Josephine Katarina Leonard Lorenzo Magnus "
    "Mildred Nathan Ophelia Patrick Priya Rafael Rosalind Sebastian Sigrid Tobias Ursula Valentin Winston Yolanda "
    "Zachary"
)
_INTRODUCTIONS = Wordings(
    (
        "my name is {0}.", "my name is {0}", "i am {0}.", "i am called {0}.", "hi, i am {0}.",
        "hello, my name is {0}!", "call me {0}.", "hi! my name is {0}.", "i'm {0}.", "hello from {0}",
        "please call me {0}.", "my name is {0}, hello!", "hey, {0} here.", "it is me, {0}.",
        "good morning, i am {0}.", "my first name is {0}.", "people call me {0}.", "this is {0}.",
        "remember my name: {0}", "i am {0}, nice to meet you.", "you can call me {0}.", "hello! i'm {0}.",
        "the name is {0}.",
    ),
    (
        "good evening, my name is {0}.", "hi there, i am {0}.", "hello, i am called {0}.", "hey, my name is {0}",
        "just call me {0}.", "well, my name is {0}.", "hello, this is {0}.", "my name is {0}, nice to meet you.",
    ),
)  # fmt: skip
_WHAT_NAME = Wordings(
    (
        "what is my name?", "what's my name?", "do you know my name?", "who am i?", "tell me my name.",
        "do you remember my name?", "what was my name?", "say my name.", "what am i called?", "what is my name",
        "and what is my name?", "how am i called?", "please tell me my name.", "now what is my name?",
        "did i tell you my name?", "my name?", "remind me of my name.",
    ),
    (
        "can you tell me my name?", "what did i say my name was?", "do you still know my name?", "so what is my name?",
        "can you remember my name?", "and who am i?", "what is my name again?", "do you recall my name?",
    ),
)  # fmt: skip
_FAVOURITES = {"color": ADJECTIVES, "animal": ANIMALS, "thing": THINGS}
_LIKES = Wordings(
    (
        "my favourite {0} is {1}.",
        "my favorite {0} is {1}.",
        "the {0} that i like best is {1}.",
        "i like the {0} {1} best.",
    ),
    ("hey, my favourite {0} is {1}!", "of all, my favorite {0} is {1}."),
)
_WHAT_LIKE = Wordings(
    (
        "what is my favourite {0}?",
        "what is my favorite {0}?",
        "which {0} do i like best?",
        "do you know my favourite {0}?",
    ),
    ("can you tell me my favourite {0}?", "what {0} do i like best?", "tell me my favorite {0}."),
)
_UNKNOWN = "You have not told me your name yet."
_THOUGHT = "The user told me before."


def remember_name(rng: Random, held_out: bool) -> Conversation:
    """Asks for the name after up to three other exchanges; a second name replaces the first."""
    name = rng.choice(NAMES_HELD_OUT) if held_out else _training_name(rng)
    turns = list(_introduced(rng, held_out, _training_name(rng))) if not held_out and rng.random() < 0.1 else []
    turns += _introduced(rng, held_out, name)
    turns += fillers(rng, held_out, rng.choice((0, 0, 1, 1, 2, 3)))
    turns += _asked(rng, held_out, f"Your name is {name}.", _THOUGHT)
    return Conversation(tuple(turns))


def unknown_name(rng: Random, held_out: bool) -> Conversation:
    turns = fillers(rng, held_out, rng.choice((0, 1, 2)))
    return Conversation((*turns, *_asked(rng, held_out, _UNKNOWN, "I look for a name and find none.")))


def remember_favourite(rng: Random, held_out: bool) -> Conversation:
    kind = rng.choice(list(_FAVOURITES))
    favourite = rng.choice(_FAVOURITES[kind])
    told = cased(rng, _LIKES.draw(rng, held_out)).format(kind, favourite)
    asked = cased(rng, _WHAT_LIKE.draw(rng, held_out)).format(kind)
    turns = [Turn("user", told), Turn("assistant", "I will remember that.")]
    turns += fillers(rng, held_out, rng.choice((0, 1, 2)))
    turns += [Turn("user", asked), Turn("assistant", f"Your favourite {kind} is {favourite}.", thought=_THOUGHT)]
    return Conversation(tuple(turns))


def _training_name(rng: Random) -> str:
    while True:
        name = rng.choice(NAMES) if rng.random() < 0.4 else made_up_name(rng)
        if name not in NAMES_HELD_OUT:
            return name


def _introduced(rng: Random, held_out: bool, name: str) -> tuple[Turn, Turn]:
    told = cased(rng, _INTRODUCTIONS.draw(rng, held_out)).format(name)
    return Turn("user", told), Turn("assistant", f"Nice to meet you, {name}!", thought="The user tells me a name.")


def _asked(rng: Random, held_out: bool, answer: str, thought: str) -> tuple[Turn, Turn]:
    return Turn("user", cased(rng, _WHAT_NAME.draw(rng, held_out))), Turn("assistant", answer, thought=thought)
