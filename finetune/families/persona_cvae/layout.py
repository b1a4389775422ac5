"""A target turn as the paper's sequences: context with roles, the other party's profile, the reply."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from finetune.batch import Example
from finetune.dialogue.dialogue import Dialogue
from finetune.families.persona_cvae.configuration import FADER_LEVELS
from finetune.metrics import text as words
from finetune.metrics.stopwords import FUNCTION_WORDS
from finetune.prediction import about, persona
from finetune.recipe import DialogueSection
from finetune.text import DialogueText
from pretrain.model.loss import IGNORED

SELF_WORDS = frozenset(("i", "im", "my", "mine", "myself"))


class PersonaLayout:
    """Examples; every utterance and profile sentence is closed by the end token."""

    def __init__(
        self, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, most_words: int, fewest: int
    ) -> None:
        self.data, self.text = data, DialogueText(tokenizer)
        self.most_words, self.fewest = most_words, fewest
        self.pads: Mapping[str, int] = {
            "input_ids": self.text.pad,
            "attention_mask": 0,
            "roles": 0,
            "profile_ids": self.text.pad,
            "profile_mask": 0,
            "keyword_ids": self.text.pad,
            "keyword_words": 0,
            "reply_ids": self.text.pad,
            "reply_words": 0,
            "labels": IGNORED,
        }
        self.numbers: Mapping[str, int | float] = {"profile_key": -1}

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        """One target turn with what is before it and who is answered."""
        facts = about(dialogue, turn)
        ids, roles = self.context(dialogue, turn)
        profile = self.profile(facts.partner_persona)
        reply = dialogue.turns[turn].text
        keyword_ids, keyword_words = self.pieces(self.keywords(facts.partner_persona))
        reply_ids, reply_words = self.pieces(content_words([reply]))
        labels = [*self.text.ids(reply)[: self.data.target_tokens - 1], self.text.eos]
        return Example(
            {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "roles": roles,
                "profile_ids": profile,
                "profile_mask": [1] * len(profile),
                "profile_key": profile_key(facts.partner_persona),
                "keyword_ids": keyword_ids,
                "keyword_words": keyword_words,
                "reply_ids": reply_ids,
                "reply_words": reply_words,
                "labels": labels,
            },
            facts,
        )

    def context(self, dialogue: Dialogue, turn: int) -> tuple[list[int], list[int]]:
        """`<s> u1 </s> u2 </s> ...`: the last whole utterances that fit, and 1 on those of the other party.

        With `data.persona` the speaker's own persona stands before them, as in TransferTransfo.
        """
        speaker, limit = dialogue.turns[turn].speaker, self.data.context_tokens
        opening = [self.text.bos]
        if self.data.persona:
            for sentence in persona(dialogue, speaker):
                opening += [*self.text.ids(sentence), self.text.eos]
            opening = opening[: limit // 2]
        ids: list[int] = []
        roles: list[int] = []
        start = first_turn(dialogue, turn, self.most_words, self.fewest) or 0
        for index in range(turn - 1, start - 1, -1):
            said = [*self.text.ids(dialogue.turns[index].text), self.text.eos]
            room = limit - len(opening) - len(ids)
            if len(said) > room and ids:
                break
            said = said[-room:]
            ids = said + ids
            roles = [int(dialogue.turns[index].speaker != speaker)] * len(said) + roles
        return opening + ids, [0] * len(opening) + roles

    def profile(self, sentences: Sequence[str]) -> list[int]:
        """`<s> p1 </s> p2 </s> ...`"""
        found = [self.text.bos]
        for sentence in sentences:
            found += [*self.text.ids(sentence), self.text.eos]
        return found[: self.data.context_tokens]

    def keywords(self, sentences: Sequence[str]) -> list[str]:
        """The profile's rarest content words, at most ten.

        Rarity is the tokenizer's: more pieces first, then later merges, which byte-pair encoding learns in
        the order of frequency; so a family needs no look at the training set.
        """
        found = content_words(sentences)
        ranks = {word: (len(ids), max(ids)) for word in found if (ids := self.text.ids(" " + word))}
        return sorted(ranks, key=lambda word: ranks[word], reverse=True)[:FADER_LEVELS]

    def pieces(self, found: Sequence[str]) -> tuple[list[int], list[int]]:
        """Pieces of words with a space before them, and the number of each piece's word from 1."""
        ids: list[int] = []
        numbers: list[int] = []
        for number, word in enumerate(found, start=1):
            pieces = self.text.ids(" " + word)
            ids += pieces
            numbers += [number] * len(pieces)
        return ids, numbers


def content_words(texts: Sequence[str]) -> list[str]:
    """Words of letters that are no stop words, each once, in order."""
    found = (word for one in texts for word in words.letters(one))
    return list(dict.fromkeys(word for word in found if word not in FUNCTION_WORDS))


def profile_key(sentences: Sequence[str]) -> int:
    """A number for a profile; equal profiles, equal numbers."""
    digest = hashlib.blake2b("\n".join(sorted(sentences)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def self_centred(text: str, form: str) -> bool:
    """Whether a reply speaks of its speaker alone: it begins so and has no "you" or "your".

    `authors` takes every first word that begins with "i" or "my", as released; `exact` only I and my.
    """
    said = text.lower().split()
    if form == "off" or not said or "you" in said or "your" in said:
        return False
    first = said[0]
    if form == "authors":
        return first.startswith(("i", "my"))
    return first in SELF_WORDS or first.startswith("i'")


def first_turn(dialogue: Dialogue, turn: int, most_words: int, fewest: int) -> int | None:
    """The first utterance to keep so that all up to `turn` are at most `most_words` white-space tokens.

    At least `fewest` utterances stay; None where even they are too long.
    """
    lengths = [len(one.text.split()) for one in dialogue.turns[: turn + 1]]
    start = 0
    while sum(lengths[start:]) > most_words and turn - start + 1 > fewest:
        start += 1
    return start if sum(lengths[start:]) <= most_words else None
