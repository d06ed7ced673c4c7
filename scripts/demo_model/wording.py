"""The wording of requests: cores in the imperative ("count to 5"), with polite, hurried or shouted variants. Wordings
have two parts, one for training and one for the evaluation."""

from dataclasses import dataclass
from random import Random

_POLITE = (
    "please {}.", "please {}", "{} please", "{}, please.", "{}, please!", "can you {}?", "could you {}?",
    "can you please {}?", "could you please {}?", "will you {}?", "would you {}?", "would you please {}?",
    "i want you to {}.", "now {}.", "hey, {}!", "hi, {}.", "ok, {}.", "hello! please {}.", "i need you to {}.",
    "go ahead and {}.", "just {}.", "try to {}.", "{} now.", "{} for me.", "{} for me, please.", "you should {}.",
    "let me see you {}.", "hi! can you {}?", "so, {}.", "computer, {}.",
)  # fmt: skip
_POLITE_HELD_OUT = (
    "be so kind and {}.", "i would like you to {}.", "dear model, {}.", "are you able to {}?", "well, {}!",
    "quickly {}.", "{} if you can.", "my friend, {}.", "kindly {}.", "{}, thanks!", "do me a favour and {}.",
)  # fmt: skip
_OPENINGS = (
    "please ", "can you ", "could you ", "now ", "hey, ", "ok, ", "hello! ", "please, ", "just ", "hi, please ",
    "so, ", "will you ",
)  # fmt: skip
_OPENINGS_HELD_OUT = ("kindly ", "well, ", "are you able to ", "be so kind and ", "my friend, ", "quickly ")
_PLAIN_ENDS = ("", "", ".", ".", "!", "...", "!!")
_SMILEYS = (" 🙂", " 😀", " :)", " 🙏", " ❤️", " 🚀", " :-)", " 👍")


@dataclass(frozen=True, slots=True)
class Wordings:
    """Ways to say one thing."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def draw(self, rng: Random, held_out: bool) -> str:
        return rng.choice(self.held_out if held_out else self.train)


def ask(rng: Random, core: str, held_out: bool) -> str:
    """An imperative, plain half of the time, so that the evaluation covers both."""
    if rng.random() < 0.5:
        return say(rng, core + rng.choice(_PLAIN_ENDS))
    return say(rng, rng.choice(_POLITE_HELD_OUT if held_out else _POLITE).format(core))


def begin(rng: Random, core: str, held_out: bool) -> str:
    """Like `ask`, for a core that ends with words to copy: adds nothing after it."""
    opening = rng.choice(_OPENINGS_HELD_OUT if held_out else _OPENINGS) if rng.random() < 0.4 else ""
    return cased(rng, opening + core)


def cased(rng: Random, text: str) -> str:
    """Mostly capitalised. Numeric placeholders ("{0}") survive every case, so fill them in afterwards."""
    roll = rng.random()
    if roll < 0.65:
        return text[:1].upper() + text[1:]
    if roll < 0.69:
        return text.upper()
    return text.title() if roll < 0.72 else text


def say(rng: Random, text: str) -> str:
    """The same words with the case and punctuation that people type."""
    text = cased(rng, text)
    return text + rng.choice(_SMILEYS) if rng.random() < 0.04 else text
