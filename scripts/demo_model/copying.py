"""Exact copies of unseen words: repeating a phrase, and writing keys and values as JSON."""

import json
from random import Random

from demo_model.lesson import Exchange
from demo_model.talk import foreign
from demo_model.wording import Wordings, begin
from demo_model.wordlists import ADJECTIVES, ANIMALS, NAMES, THINGS, TOPICS, VERBS, words

_WORDS = [*ADJECTIVES, *ANIMALS, *THINGS, *TOPICS, *VERBS]
_SMALL_WORDS = words("the a of and in on is to my your it we you they was not with for at by this that are he she i")
_STARTS = words(
    "b c d f g h j k l m n p r s t v w z bl br ch cl dr fl fr gl gr kr pl pr sch sh sk sl sn sp st str th tr tw qu x y"
)
_VOWELS = words("a e i o u a e i o u ai au ea ee ie oa oo ou y")
_ENDS = ["", "", "", *words("b ck d f g k l ll m n nd ng nt p r rk rt s sh ss st t th x z")]
_REPEAT = Wordings(
    (
        "repeat after me: {0}", "repeat after me: {0}", "repeat: {0}", "say: {0}", 'say "{0}"', "repeat this: {0}",
        "copy this: {0}", "write exactly: {0}", "repeat the words: {0}", "say exactly this: {0}",
        "repeat the following: {0}", 'repeat "{0}"', "say after me: {0}", 'repeat after me: "{0}"',
        "repeat after me, {0}", "say the words: {0}", "repeat this sentence: {0}", 'say exactly "{0}"',
        "repeat after me:\n{0}", "copy: {0}", 'write "{0}"', "repeat the text: {0}", "type this: {0}",
        'answer with "{0}"', "answer with exactly: {0}", "tell me this: {0}", "repeat it: {0}",
        "repeat the following text:\n\n{0}",
    ),
    (
        "repeat these words: {0}", "say this: {0}", "write this again: {0}", "repeat the phrase: {0}",
        "copy the following: {0}", 'repeat the words "{0}"', "repeat exactly: {0}", "say this after me: {0}",
        "repeat the following words:\n{0}",
    ),
)  # fmt: skip
_JSON = Wordings(
    (
        "answer as json: {0}", "write this as json: {0}", "turn this into json: {0}", "as json: {0}",
        "make json of this: {0}", "give me json for {0}", "make a json object with {0}", "json: {0}",
        "write a json object with {0}", "format as json: {0}", "return json: {0}", "make json: {0}",
    ),
    (
        "convert this to json: {0}", "answer with a json object: {0}", "write it as json: {0}",
        "give me a json object with {0}",
    ),
)  # fmt: skip
_KEYS = (
    "name", "age", "city", "color", "animal", "thing", "price", "number", "title", "size", "country", "job", "id",
    "year", "topic", "street", "friend", "weight", "count", "kind",
)  # fmt: skip
_NUMBER_KEYS = {"age", "price", "number", "size", "id", "year", "weight", "count"}
_LISTS = (("{0} {1}", ", "), ("{0}: {1}", ", "), ("{0} = {1}", ", "), ("{0} {1}", " and "), ("{0}: {1}", "; "))


def repeat(rng: Random, held_out: bool) -> Exchange:
    text = phrase(rng)
    prompt = begin(rng, _REPEAT.draw(rng, held_out), held_out).format(text)
    return Exchange(prompt, text, "I say the same words again.")


def answer_json(rng: Random, held_out: bool) -> Exchange:
    keys = rng.sample(_KEYS, rng.choice((1, 2, 2, 3)))
    values = {key: rng.randint(0, 999) if key in _NUMBER_KEYS else _value(rng) for key in keys}
    pair, separator = rng.choice(_LISTS)
    listed = separator.join(pair.format(key, value) for key, value in values.items())
    prompt = begin(rng, _JSON.draw(rng, held_out), held_out).format(listed)
    return Exchange(prompt, json.dumps(values), "I write the keys and values as JSON.")


def phrase(rng: Random) -> str:
    """One to a dozen words: a sentence, a list, anything."""
    length = rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10, 12))
    text = rng.choice((" ", " ", " ", " ", ", ")).join(word(rng) for _ in range(length))
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.05:
        text = text.upper()
    return text + rng.choice((".", "!", "?", "...", "!!")) if rng.random() < 0.3 else text


def word(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.45:
        return rng.choice(_WORDS)
    if roll < 0.60:
        return rng.choice(_SMALL_WORDS)
    if roll < 0.83:
        return made_up(rng)
    if roll < 0.90:
        return rng.choice(NAMES)
    if roll < 0.97:
        return str(rng.randint(0, 10 ** rng.randint(1, 5)))
    return foreign(rng)[:3]


def made_up(rng: Random) -> str:
    """An invented word, such as "tramel" or "quoob"."""
    syllables = rng.choice((1, 2, 2, 2, 3, 3))
    return "".join(rng.choice(_STARTS) + rng.choice(_VOWELS) + rng.choice(_ENDS) for _ in range(syllables))


def made_up_name(rng: Random) -> str:
    return made_up(rng).capitalize()


def _value(rng: Random) -> str:
    return rng.choice((rng.choice(NAMES), rng.choice(_WORDS), made_up(rng), made_up_name(rng)))
