"""Stories of a few hundred tokens from a small grammar: every slot has several wordings, and the hero, the friend,
the place and the lost thing stay the same from the first line to the last."""

from random import Random

from demo_model.wordlists import ADJECTIVES, ANIMALS, NAMES, THINGS

_PLACES = (
    "forest", "village", "valley", "harbour", "castle", "desert", "meadow", "city", "mountain", "island",
)  # fmt: skip
_SCENES: tuple[tuple[str, ...], ...] = (
    (
        "Once upon a time, in a {place_is} {place}, there lived a {hero_is} {animal} called {hero}.",
        "Long ago, a {hero_is} {animal} called {hero} lived in a {place_is} {place}.",
        "There was once a {hero_is} {animal} called {hero}, who lived in a {place_is} {place}.",
        "In a {place_is} {place} far away lived {hero}, a {hero_is} {animal}.",
    ),
    (
        "Of all things in the world, {hero} loved a {thing_is} {thing} most.",
        "{hero} had only one treasure, and that was a {thing_is} {thing}.",
        "Every evening {hero} sat by the door and looked at a {thing_is} {thing}.",
        "Above the bed of {hero} hung a {thing_is} {thing}, a present from an old aunt.",
    ),
    (
        "One morning the {thing} was gone.",
        "But one day the {thing} was not there any more.",
        "Then, on a rainy night, somebody took the {thing} away.",
        "One evening {hero} came home, and the {thing} had disappeared.",
    ),
    (
        "{hero} looked under the bed, behind the door and on the roof, but found nothing.",
        "{hero} searched the whole house, from the cellar to the roof, and found only dust.",
        "{hero} cried a little, drank a cup of tea and made a plan.",
    ),
    (
        '"I will find it," said {hero}, "even if I have to walk to the end of the world."',
        '"Nobody takes my {thing}," said {hero}, and put some bread into a bag.',
        '"Sitting here will not help," said {hero}, and opened the door.',
    ),
    (
        "On the road {hero} met {friend}, a {friend_is} {helper}.",
        "Behind the first hill {hero} met a {friend_is} {helper}, whose name was {friend}.",
        "At the river sat {friend}, a {friend_is} {helper}, counting the waves.",
    ),
    (
        '"Where are you going?" asked {friend}.',
        '"You look sad," said {friend}. "What has happened?"',
        '"Good morning," said {friend}. "Why are you in such a hurry?"',
    ),
    (
        '"I am looking for my {thing}," said {hero}. "Have you seen it?"',
        '"My {thing} is gone," said {hero}, "and I do not know where to look."',
        '"Somebody took my {thing}," said {hero}, "and I want it back."',
    ),
    (
        "{friend} thought for a while and looked at the clouds.",
        "{friend} scratched an ear and thought for a long time.",
        "{friend} nodded slowly, as if that were an old story.",
    ),
    (
        '"I saw something shine behind the old mill," said {friend}. "Come, I will show you the way."',
        '"The wind told me about it," said {friend}. "It is hidden in the cave above the lake."',
        '"Ask the moon," said {friend}. "The moon sees everything. I will come with you."',
    ),
    (
        "So they walked together, over three hills and through two rivers.",
        "So they went on together, and the way was long and full of stones.",
        "So the two of them set off, and they sang to keep their feet moving.",
    ),
    (
        "At noon they shared the bread, and at night they slept under a tree.",
        "When they were tired, they rested in the grass and told each other jokes.",
        "It rained and it snowed, but they did not turn back.",
    ),
    (
        "On the third day they came to a dark gate, and in front of it stood a {guard_is} {guard}.",
        "On the third day they found a small door in a rock, and a {guard_is} {guard} was sleeping before it.",
        "On the third day they saw a tower without windows, and a {guard_is} {guard} kept watch there.",
    ),
    (
        '"Nobody may pass," said the {guard}, "who cannot make me laugh."',
        '"You may pass," said the {guard}, "if you tell me something that I do not know."',
        '"I have been alone here for a hundred years," said the {guard}. "Do you want to play with me?"',
    ),
    (
        "{hero} was afraid, but {friend} took a deep breath and began to dance.",
        "{hero} told the {guard} everything that had happened, from the beginning to the end.",
        "{friend} whispered something into the ear of the {guard}, and both of them smiled.",
    ),
    (
        "The {guard} laughed so loudly that the stones shook, and the way was free.",
        "The {guard} wiped away a tear and stepped aside.",
        "The {guard} bowed politely and let them in.",
    ),
    (
        "Inside it was bright and warm, and on a small table lay the {thing}.",
        "Behind it, in the light of a single candle, stood the {thing}.",
        "There, among a thousand old shoes, they found the {thing}.",
    ),
    (
        "A little mouse had borrowed it, because it was so lonely in the dark.",
        "The wind had carried it there, just for fun.",
        "Nobody ever learned how it had come to that place.",
    ),
    (
        '"Thank you, {friend}," said {hero}. "Without you I would have given up."',
        '"You are a true friend, {friend}," said {hero}.',
        '"We did it, {friend}!" cried {hero}, and jumped for joy.',
    ),
    (
        "They went home together, and the whole {place} came out to greet them.",
        "When they came back to the {place}, all the neighbours baked a cake.",
        "The way home to the {place} seemed much shorter, as it always does.",
    ),
    (
        "From that day on {friend} lived next door, and the {thing} stood in the window for everyone to see.",
        "{hero} gave one half of everything to {friend}, and the {thing} belonged to both of them.",
        "And every year, on the same day, {hero} and {friend} told the story of the {thing} again.",
    ),
    (
        "And if they have not moved away, they are still there today.",
        "That is the end of the story.",
        "And so they learned that a friend is worth more than any treasure.",
        "They lived happily for many, many years.",
    ),
)  # fmt: skip


def story(rng: Random) -> str:
    """A story of 22 sentences in three paragraphs."""
    hero, friend = rng.sample(NAMES, 2)
    animal, helper, guard = rng.sample(ANIMALS, 3)
    words = {"hero": hero, "friend": friend, "animal": animal, "helper": helper, "guard": guard}
    words |= {"place": rng.choice(_PLACES), "thing": rng.choice(THINGS)}
    names = ("hero_is", "friend_is", "guard_is", "place_is", "thing_is")
    words |= dict(zip(names, rng.sample(_CONSONANT_ADJECTIVES, len(names)), strict=True))
    sentences = [rng.choice(scene).format(**words) for scene in _SCENES]
    return "\n\n".join(" ".join(part) for part in (sentences[:5], sentences[5:14], sentences[14:]))


_CONSONANT_ADJECTIVES = [word for word in ADJECTIVES if word[0] not in "aeiouh"]
