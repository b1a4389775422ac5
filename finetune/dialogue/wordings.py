"""What is said in synthetic dialogues: kinds of facts with their words, animals, greetings, small talk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of fact; `{}` is its value. `self_asks` asks the other speaker for theirs."""

    values: tuple[str, ...]
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    answers: tuple[str, ...]
    self_asks: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KINDS: Mapping[str, Kind] = {
    "name": Kind(
        _words("anna ben clara david emma frank grace henry iris jack kate leo"),
        ("my name is {} .", "i am called {} ."),
        ("do you remember my name ?", "what is my name ?"),
        ("your name is {} .", "you are called {} ."),
        ("what is your name ?",),
    ),
    "city": Kind(
        _words("berlin cairo dublin lima london madrid oslo paris rome tokyo vienna warsaw"),
        ("i live in {} .", "my home is in {} ."),
        ("do you remember where i live ?", "where do i live ?"),
        ("you live in {} .", "your home is in {} ."),
        ("where do you live ?",),
    ),
    "pet": Kind(
        _words("cat dog horse parrot rabbit snake turtle hamster goat duck pony mouse"),
        ("i have a {} .", "my pet is a {} ."),
        ("do you remember my pet ?", "what pet do i have ?"),
        ("you have a {} .", "your pet is a {} ."),
        ("do you have a pet ?",),
    ),
    "colour": Kind(
        _words("red blue green yellow purple black white brown pink grey gold silver"),
        ("my favourite colour is {} .", "the colour i like best is {} ."),
        ("do you remember my favourite colour ?", "what colour do i like best ?"),
        ("your favourite colour is {} .", "the colour you like best is {} ."),
        ("what colour do you like best ?",),
    ),
    "food": Kind(
        _words("pizza rice soup bread cheese pasta salad cake noodles beans curry pie"),
        ("my favourite food is {} .", "the food i like best is {} ."),
        ("do you remember my favourite food ?", "what food do i like best ?"),
        ("your favourite food is {} .", "the food you like best is {} ."),
        ("what food do you like best ?",),
    ),
    "job": Kind(
        _words("baker doctor farmer lawyer nurse painter pilot teacher waiter driver singer writer"),
        ("i work as a {} .", "my job is that of a {} ."),
        ("do you remember my job ?", "what do i do for a living ?"),
        ("you work as a {} .", "your job is that of a {} ."),
        ("what do you do for a living ?",),
    ),
    "hobby": Kind(
        _words(
            "chess football tennis swimming dancing reading cooking fishing running skating sewing cycling"
        ),
        ("my hobby is {} .", "in my free time i enjoy {} ."),
        ("do you remember my hobby ?", "what do i do in my free time ?"),
        ("your hobby is {} .", "in your free time you enjoy {} ."),
        ("what do you do in your free time ?",),
    ),
    "month": Kind(
        _words("january february march april may june july august september october november december"),
        ("my birthday is in {} .", "i was born in {} ."),
        ("do you remember my birthday ?", "when is my birthday ?"),
        ("your birthday is in {} .", "you were born in {} ."),
        ("when is your birthday ?",),
    ),
}
VALUES = 12
"""Words that each kind of fact has."""

ANIMALS: Mapping[str, tuple[str, str, str]] = {
    "otter": ("river", "fish", "playful"),
    "camel": ("desert", "thorns", "patient"),
    "owl": ("forest", "mice", "silent"),
    "whale": ("ocean", "krill", "huge"),
    "bear": ("mountains", "berries", "strong"),
    "bee": ("hive", "nectar", "busy"),
    "frog": ("pond", "flies", "slippery"),
    "lion": ("savanna", "zebras", "proud"),
    "penguin": ("antarctic", "squid", "clumsy"),
    "squirrel": ("park", "nuts", "quick"),
    "panda": ("hills", "bamboo", "calm"),
    "crab": ("beach", "algae", "shy"),
}
"""Where each lives, what it eats, what it is like."""
FACTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "the {animal} lives in the {value} .",
        "where does the {animal} live ?",
        ("the {animal} lives in the {value} .", "you find the {animal} in the {value} ."),
    ),
    (
        "the {animal} eats {value} .",
        "what does the {animal} eat ?",
        ("the {animal} eats {value} .", "i read that the {animal} eats {value} ."),
    ),
    (
        "the {animal} is {value} .",
        "what is the {animal} like ?",
        ("the {animal} is {value} .", "people say that the {animal} is {value} ."),
    ),
)
"""Sentence of knowledge, question, replies."""

GREETINGS = (
    ("hello !", "good morning !", "hi there !"),
    ("hi , nice to see you !", "hello ! how can i help ?", "good to see you !"),
)
HEARD = ("i will remember that .", "good to know .", "thank you for telling me .", "oh , i see .")
SMALL_TALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "how are you today ?",
        (
            "i am fine , thank you .",
            "i am a little tired .",
            "never better !",
            "not so well , but it will pass .",
        ),
    ),
    (
        "what a lovely day !",
        (
            "yes , the sun is out .",
            "i like it too .",
            "it will rain in the evening .",
            "let us go for a walk .",
        ),
    ),
    (
        "did you sleep well ?",
        (
            "yes , like a stone .",
            "no , it was too loud .",
            "i had a strange dream .",
            "quite well , thank you .",
        ),
    ),
    (
        "any plans for the evening ?",
        ("i will watch a film .", "nothing at all .", "i am going to meet a friend .", "maybe a long bath ."),
    ),
    (
        "i am so bored .",
        ("then read a book .", "me too .", "let us play a game .", "call a friend !"),
    ),
    (
        "do you like music ?",
        ("yes , above all jazz .", "i prefer silence .", "i sing every day .", "of course , who does not ?"),
    ),
)
