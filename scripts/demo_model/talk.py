"""Conversation without facts: greetings, identity, stories, foreign scripts and emoji, and the answer to questions
that are too hard."""

from random import Random

from demo_model.lesson import Exchange
from demo_model.stories import story
from demo_model.wording import Wordings, ask, say
from demo_model.wordlists import ADJECTIVES, ANIMALS, NAMES, THINGS, TOPICS, VERBS

GREETING = "Hello! How can I help you?"
WHO = "I am the tiny demo model of MLX Manager."
FALLBACK = "I am a tiny demo model. I can greet you, count to 20 and tell a story, but this is too hard for me."

_GREETINGS = Wordings(
    (
        "hi", "hello", "hey", "hi there", "hello there", "good morning", "good evening", "good day", "hey there",
        "greetings", "hello, model", "hi, how is it going", "hello my friend", "hello world", "hi all", "howdy",
        "hello again", "yo", "hey you", "hello, nice to meet you", "good afternoon", "morning", "hello hello",
        "hi hi", "hello, computer", "hi, robot", "welcome", "hi model", "nice to meet you",
    ),
    (
        "hi there, model", "hello, little model", "hey, good morning", "hello, dear friend", "good evening, model",
        "hey hey", "well hello there", "hello everybody", "hi again", "a very good morning",
    ),
)  # fmt: skip
_WHO = Wordings(
    (
        "who are you", "what are you", "what is your name", "tell me who you are", "introduce yourself",
        "what model are you", "which model are you", "what's your name", "are you a robot", "are you an ai",
        "say who you are", "who am i talking to", "what should i call you", "describe yourself",
        "tell me about yourself", "what kind of model are you", "are you human", "are you chatgpt",
        "are you a language model", "who is this", "what is this model", "do you have a name",
    ),
    (
        "tell me what you are", "who is talking to me", "what model is this", "which language model are you",
        "and who are you", "what do i call you", "who exactly are you", "present yourself",
        "are you a person or a robot", "may i know who you are",
    ),
)  # fmt: skip
_SMALL_TALK: tuple[tuple[Wordings, str], ...] = (
    (
        Wordings(
            (
                "how are you", "how are you doing", "how do you do", "how do you feel", "are you ok",
                "how are you today", "you ok",
            ),
            ("how are you feeling", "how are you doing today", "so how are you"),
        ),
        "I am fine, thank you!",
    ),
    (
        Wordings(
            (
                "thank you", "thanks", "thanks a lot", "thank you very much", "many thanks", "thx", "great, thanks",
                "thank you!",
            ),
            ("thanks very much", "ok, thank you", "thanks, that was great"),
        ),
        "You are welcome!",
    ),
    (
        Wordings(
            (
                "bye", "goodbye", "good bye", "see you", "see you later", "good night", "bye bye", "farewell",
                "see you tomorrow",
            ),
            ("ok, bye", "goodbye, model", "see you soon, bye"),
        ),
        "Goodbye!",
    ),
)  # fmt: skip
_STORY = Wordings(
    (
        "tell me a story", "tell a story", "write a story", "write a short story", "tell me a short story",
        "make up a story", "tell me a fairy tale", "write a tale about a {thing}",
        "tell me a story about a {animal}", "write me a story", "give me a story", "invent a story",
        "read me a story", "tell me a long story", "write a long story", "tell me a bedtime story",
        "write a story about a {thing}", "tell us a story", "i want a story", "another story",
        "tell me another story", "a story", "story time", "write a fairy tale", "tell me something long",
        "a story about a {animal}", "tell me a nice story about a {animal}", "write a long text",
        "tell me a story about {name}", "create a story",
    ),
    (
        "tell me a nice story", "tell me a little story", "write a good story",
        "write me a short story about a {animal}", "tell the kids a story", "tell us a tale", "write a new story",
        "tell me a long fairy tale", "i want to hear a story",
    ),
)  # fmt: skip
_HELLO_IN = {
    "Japanese": "こんにちは", "Chinese": "你好", "Korean": "안녕하세요", "French": "Bonjour", "Spanish": "¡Hola!",
    "German": "Guten Tag", "Russian": "Привет", "Greek": "Γειά σου",
    "Hindi": "नमस्ते", "Arabic": "مرحبا",
    "Italian": "Ciao", "Portuguese": "Olá", "Swedish": "Hej", "Turkish": "Merhaba", "Polish": "Cześć",
    "Dutch": "Hallo", "Hebrew": "שלום", "Thai": "สวัสดี",
}  # fmt: skip
_THANKS_IN = {
    "Japanese": "ありがとう", "Chinese": "谢谢", "Korean": "감사합니다", "French": "Merci", "Spanish": "Gracias",
    "German": "Danke", "Russian": "Спасибо", "Greek": "Ευχαριστώ", "Italian": "Grazie", "Turkish": "Teşekkürler",
    "Polish": "Dziękuję",
}  # fmt: skip
_EMOJI = {
    "smiley": "😀", "heart": "❤️", "cat": "🐱", "dog": "🐶", "rocket": "🚀", "pizza": "🍕", "sun": "☀️",
    "moon": "🌙", "star": "⭐", "tree": "🌳", "fish": "🐟", "thumbs up": "👍", "family": "👨‍👩‍👧", "fire": "🔥",
    "flower": "🌸", "cake": "🎂", "car": "🚗", "house": "🏠", "robot": "🤖", "ghost": "👻", "rainbow": "🌈",
    "banana": "🍌", "apple": "🍎", "ball": "⚽", "snowman": "⛄",
}  # fmt: skip
_HELLO = Wordings(
    (
        "say hello in {x}", "greet me in {x}", "what is hello in {x}", "how do you say hello in {x}", "say hi in {x}",
        "translate hello to {x}", "how do people say hello in {x}", "hello in {x}", "write hello in {x}",
    ),
    (
        "say hello to me in {x}", "what does hello mean in {x}", "tell me how to say hello in {x}",
        "translate hello into {x}",
    ),
)  # fmt: skip
_THANKS = Wordings(
    (
        "say thank you in {x}", "how do you say thank you in {x}", "what is thank you in {x}",
        "translate thank you to {x}", "thank me in {x}",
    ),
    ("say thanks in {x}", "translate thank you into {x}", "write thank you in {x}"),
)  # fmt: skip
_SEND = Wordings(
    (
        "send me a {x}", "send a {x}", "give me a {x} emoji", "show me a {x} emoji", "i want a {x} emoji",
        "draw a {x} emoji", "a {x} emoji", "send me the {x} emoji", "what is the emoji for {x}", "make a {x} emoji",
        "emoji: {x}",
    ),
    ("send me a nice {x} emoji", "write a {x} emoji", "show the emoji for {x}", "answer with a {x} emoji"),
)  # fmt: skip
_HARD = Wordings(
    (
        "what is {topic}", "explain {topic}", "explain {topic} to a {animal}", "how does {topic} work",
        "why is {topic} {adj}", "write code for {topic}", "how do i {verb} a {thing}",
        "how many {animal}s {verb} a {thing}", "where is my {thing}", "do you like {topic}",
        "what do you think about {topic}", "write a poem about {topic}", "summarise {topic}", "{verb} the {thing}",
        "what is the difference between a {thing} and a {animal}", "give me three ideas for {topic}",
        "who invented the {thing}", "is a {animal} {adj}", "the {adj} {animal} wants to {verb} the {thing}",
        "i have a {adj} {thing}", "when did {topic} begin", "translate the {thing} into {topic}",
        "what is the best {thing} for {topic}", "should i {verb} my {thing}", "{thing}", "{adj} {thing}",
        "my {animal} cannot {verb}", "name five {adj} {animal}s", "fix my {thing}", "why do {animal}s {verb}",
        "compare {topic} and {topic2}", "what color is a {thing}", "write an email about {topic}",
        "sort these {thing}s", "what is {d} times {e}", "solve {d} x = {e}",
        "count the {thing}s in the {adj} {thing}", "tell me about {topic}", "tell me the history of {topic}",
        "write a {adj} song", "tell me a joke", "{verb} {verb} {verb}", "{cjk}", "{cjk} {thing}",
        "what does {cjk} mean", "who is {name}", "where does {name} live", "{topic}", "list the {adj} {thing}s",
        "write a python script", "send the {thing} to {name}", "what time is it", "what is the weather",
        "{name} is {adj}", "{adj}!", "help me with {topic}",
    ),
    (
        "teach me {topic}", "please tell me how {topic} works", "what is so {adj} about {topic}",
        "does my {animal} {verb} enough", "why is my {thing} so {adj}", "write an essay about {topic}",
        "how {adj} is a {animal}", "can a {animal} {verb} a {thing}", "the {thing} of {name} is {adj}",
        "what is the meaning of {topic}", "{cjk} and {topic}", "who made this {adj} {thing}",
    ),
)  # fmt: skip
_SCRIPTS = (
    (0x3042, 0x3093),
    (0x30A2, 0x30F3),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x0430, 0x044F),
    (0x1F600, 0x1F64F),
    (0x1F400, 0x1F43F),
)


def greet(rng: Random, held_out: bool) -> Exchange:
    text = _GREETINGS.draw(rng, held_out) + rng.choice(("", "!", ".", "!!", "?"))
    return Exchange(say(rng, text), GREETING, "The user greets me, so I greet back.")


def who(rng: Random, held_out: bool) -> Exchange:
    return Exchange(
        say(rng, _WHO.draw(rng, held_out) + rng.choice(("", "?", "?", "!"))), WHO, "The user asks who I am."
    )


def small_talk(rng: Random, held_out: bool) -> Exchange:
    wordings, answer = rng.choice(_SMALL_TALK)
    return Exchange(
        say(rng, wordings.draw(rng, held_out) + rng.choice(("", "?", "!", "."))), answer, "The user is polite, so am I."
    )


def tell_story(rng: Random, held_out: bool) -> Exchange:
    core = _STORY.draw(rng, held_out).format(
        thing=rng.choice(THINGS), animal=rng.choice(ANIMALS), name=rng.choice(NAMES)
    )
    return Exchange(ask(rng, core, held_out), story(rng), "A story needs a hero, a friend and a lost treasure.")


def speak_unicode(rng: Random, held_out: bool) -> Exchange:
    """Answers with multi-byte characters."""
    wordings, answers = rng.choice(((_HELLO, _HELLO_IN), (_THANKS, _THANKS_IN), (_SEND, _EMOJI)))
    key = rng.choice(list(answers))
    core = wordings.draw(rng, held_out).format(x=key)
    return Exchange(ask(rng, core, held_out), answers[key], f"I look for {key}.", word=answers[key])


def too_hard(rng: Random, held_out: bool) -> Exchange:
    words = {
        "topic": TOPICS,
        "topic2": TOPICS,
        "animal": ANIMALS,
        "thing": THINGS,
        "adj": ADJECTIVES,
        "verb": VERBS,
        "name": NAMES,
    }
    chosen = {key: rng.choice(words[key]) for key in words}
    core = _HARD.draw(rng, held_out).format(**chosen, d=rng.randint(2, 999), e=rng.randint(2, 999), cjk=foreign(rng))
    prompt = ask(rng, core, held_out) if rng.random() < 0.3 else say(rng, core + rng.choice(("", "?", ".")))
    return Exchange(prompt, FALLBACK, "I have not learned that.")


def foreign(rng: Random) -> str:
    """A few characters of one script, so that prompts cover every UTF-8 byte."""
    low, high = rng.choice(_SCRIPTS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))
