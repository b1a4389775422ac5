"""Every metric of replies by its name. Where papers call different things by one word, each has a name here.

Percent unless the meaning says otherwise. docs/metrics.md says which name is which column of which paper.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from finetune.metrics import diversity, encoder, fed, knowledge, overlap, persona, samples, text
from finetune.metrics.prediction import Prediction
from finetune.metrics.resources import Resources, UnavailableError, needs_package, wordnet
from finetune.metrics.stopwords import FUNCTION_WORDS, read_words
from pretrain.errors import UserError

Predictions = Sequence[Prediction]
Compute = Callable[[Predictions, Resources], float]


@dataclass(frozen=True)
class Metric:
    """One figure about a model's replies."""

    compute: Compute
    """At least one prediction, each with at least one reply -> the figure.

    Raises UserError (mostly UnavailableError) if it cannot be had here.
    """
    meaning: str
    better: str = "higher"
    """`higher`, `lower`, or "" where neither is."""
    library: str = ""
    """Distribution that computes it."""
    resources: tuple[str, ...] = ()
    """Fields of `Resources` that it reads."""
    together: bool = False
    """Looks at all replies to a context at once; the others are computed for each draw and averaged."""


def check_names(names: Iterable[str]) -> None:
    """Refuse unknown metrics: call it before a long generation.

    Raises:
        UserError: a name that is not in `METRICS`; the nearest one is suggested.
    """
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            mend = f"did you mean {near[0]}?" if near else f"known: {', '.join(METRICS)}"
            raise UserError(f"no metric {name!r}", where="metrics", mend=mend)


# what metrics are given


def _of_replies(compute: Callable[[list[str]], float]) -> Compute:
    return lambda predictions, _: compute(_replies(predictions))


def _against(compute: Callable[[list[str], overlap.References], float]) -> Compute:
    return lambda predictions, _: compute(_replies(predictions), _references(predictions))


def _replies(predictions: Predictions) -> list[str]:
    return [prediction.replies[0] for prediction in predictions]


def _references(predictions: Predictions) -> overlap.References:
    without = sum(not prediction.references for prediction in predictions)
    if without:
        raise UnavailableError(f"needs references: {without} of {len(predictions)} predictions have none")
    return [prediction.references for prediction in predictions]


def _some(predictions: Predictions, wanted: Callable[[Prediction], bool], what: str) -> list[Prediction]:
    found = [prediction for prediction in predictions if wanted(prediction)]
    if not found:
        raise UnavailableError(f"needs predictions with {what}: there are none")
    return found


# metrics that need more than texts


def _meteor(predictions: Predictions, resources: Resources) -> float:
    return overlap.meteor(_replies(predictions), _references(predictions), wordnet(resources.wordnet))


def _wiki_f1(predictions: Predictions, _: Resources) -> float:
    some = _some(predictions, lambda p: p.chosen is not None, "knowledge behind the reference")
    return knowledge.knowledge_f1(_replies(some), [p.knowledge[p.chosen or 0] for p in some])


def _wiki_f1_selected(predictions: Predictions, _: Resources) -> float:
    some = _some(predictions, lambda p: p.selected is not None, _SELECTED)
    return knowledge.knowledge_f1(_replies(some), [_selected(p) for p in some])


def _knowledge_accuracy(predictions: Predictions, _: Resources) -> float:
    some = _some(predictions, lambda p: p.selected is not None, _SELECTED)
    return knowledge.accuracy([p.selected for p in some if p.selected is not None], [p.chosen for p in some])


_SELECTED = "knowledge that the model selected"


def _selected(prediction: Prediction) -> str:
    number = prediction.selected
    return prediction.knowledge[number] if number is not None and number >= 0 else ""


def _entities(predictions: Predictions, resources: Resources) -> float:
    _some(predictions, lambda p: bool(p.entities), "entities")
    stop_words = read_words(resources.stop_words) if resources.stop_words else FUNCTION_WORDS
    return knowledge.entities(_replies(predictions), [p.entities for p in predictions], stop_words)


def _persona_distance(predictions: Predictions, resources: Resources, own: bool) -> float:
    whose = "a persona" if own else "a partner's persona"
    some = _some(predictions, lambda p: bool(p.persona if own else p.partner_persona), whose)
    path = resources.place("word_vectors", "word vectors")
    vectors = needs_package("gensim", lambda: persona.read_vectors(path))
    found = persona.persona_distance(
        _replies(some),
        [p.persona if own else p.partner_persona for p in some],
        vectors,
        _dull_words(predictions, resources),
    )
    if found is None:
        raise UnavailableError(
            f"needs {whose} with a keyword: all words lack vectors, or are stop words or frequent words"
        )
    return found


def _dull_words(predictions: Predictions, resources: Resources) -> frozenset[str]:
    from gensim.parsing.preprocessing import STOPWORDS

    stop_words = read_words(resources.stop_words) if resources.stop_words else frozenset(STOPWORDS)
    if resources.frequent_words:
        return stop_words | read_words(resources.frequent_words)
    texts = (one for p in predictions for one in (*p.context[-1:], *p.references[:1]))
    return stop_words | frozenset(persona.frequent_words(texts))


def _encoder(resources: Resources, name: str, what: str) -> encoder.Encoder:
    return encoder.load(resources.place(name, what), resources.run_on())


def _bertscore(predictions: Predictions, resources: Resources) -> float:
    accepted = _references(predictions)
    judge = _encoder(resources, "bertscore", "a model folder (the papers: roberta-large)")
    return encoder.bertscore(_replies(predictions), accepted, judge)


def _similarity(predictions: Predictions, resources: Resources, pooling: encoder.Pooling) -> float:
    groups = [p.replies for p in _some(predictions, lambda p: len(p.replies) > 1, "two or more replies")]
    return encoder.similarity(groups, _encoder(resources, "bert", "a BERT's folder"), pooling)


def _reference_similarity(predictions: Predictions, resources: Resources) -> float:
    groups = [
        p.references for p in _some(predictions, lambda p: len(p.references) > 1, "two or more references")
    ]
    return encoder.similarity(groups, _encoder(resources, "bert", "a BERT's folder"))


def _fed(predictions: Predictions, resources: Resources) -> float:
    model = resources.place("fed_model", "a dialogue language model's folder (the paper: DialoGPT-large)")
    follow_ups = fed.read_follow_ups(resources.place("fed_follow_ups", "FED's follow-up sentences (JSON)"))
    conversations = [(*p.context, p.replies[0]) for p in predictions]
    return fed.fed(conversations, fed.load(model, resources.run_on()), follow_ups)


def _self_bleu(predictions: Predictions, _: Resources) -> float:
    return samples.self_bleu(
        [p.replies for p in _some(predictions, lambda p: len(p.replies) > 1, "two replies")]
    )


def _covering(compute: Callable[[samples.Groups, samples.Groups], float]) -> Compute:
    return lambda predictions, _: compute([p.replies for p in predictions], _references(predictions))


METRICS: dict[str, Metric] = {
    # overlap with the references
    "f1": Metric(_against(overlap.f1), "ParlAI's F1 of normalized words, best reference"),
    **{
        f"bleu_{n}": Metric(
            _against(partial(overlap.bleu, order=n)), f"corpus BLEU-{n}, no smoothing", library="sacrebleu"
        )
        for n in (1, 2, 4)
    },
    **{
        f"bleu_{n}_method7": Metric(
            _against(partial(overlap.bleu_method7, order=n)),
            f"mean sentence BLEU-{n} with NLTK's smoothing 7; may exceed 100",
            library="nltk",
        )
        for n in (1, 2)
    },
    "nist_4": Metric(
        _against(partial(overlap.nist, order=4)), "cumulative corpus NIST-4, bits", library="nltk"
    ),
    "meteor_nltk15": Metric(
        _meteor, "METEOR with 1.5's parameters and WordNet synonyms", library="nltk", resources=("wordnet",)
    ),
    "meteor_stem": Metric(
        _against(partial(overlap.meteor, wordnet=overlap.NoSynonyms())),
        "METEOR with 1.5's parameters, equal words and stems only",
        library="nltk",
    ),
    "rouge_l": Metric(_against(overlap.rouge_l), "ROUGE-L, F of normalized stems", library="rouge-score"),
    "rouge_l_recall": Metric(
        _against(partial(overlap.rouge_l, field="recall")),
        "ROUGE-L, recall of normalized stems",
        library="rouge-score",
    ),
    "bertscore": Metric(
        _bertscore, "BERTScore F1, not rescaled", library="transformers", resources=("bertscore",)
    ),
    # diversity
    **{
        f"distinct_{n}": Metric(
            _of_replies(partial(diversity.distinct, order=n)), f"different {n}-grams of all {n}-grams"
        )
        for n in (1, 2)
    },
    **{
        f"distinct_{n}_normalized": Metric(
            _of_replies(partial(diversity.distinct, order=n, tokenize=text.normalized)),
            f"different {n}-grams of all {n}-grams, normalized words",
        )
        for n in (1, 2)
    },
    "distinct_2_no_articles": Metric(
        _of_replies(partial(diversity.distinct, order=2, tokenize=text.without_articles)),
        "different bigrams of all bigrams, lower-case, without articles",
    ),
    "distinct_2_per_word": Metric(
        _of_replies(partial(diversity.distinct_per_word, order=2)), "different bigrams of all words"
    ),
    **{
        f"entropy_{n}": Metric(
            _of_replies(partial(diversity.entropy, order=n)),
            f"entropy of the {n}-grams of all replies, nats",
            library="scipy",
        )
        for n in (1, 2, 3, 4)
    },
    "entropy_4_no_articles": Metric(
        _of_replies(partial(diversity.entropy, order=4, tokenize=text.without_articles)),
        "entropy of the 4-grams of all replies, lower-case, without articles, nats",
        library="scipy",
    ),
    **{
        f"entropy_{n}_characters": Metric(
            _of_replies(partial(diversity.entropy_of_characters, order=n)),
            f"entropy of the character {n}-grams of each reply, bits",
            library="scipy",
        )
        for n in (1, 2, 3)
    },
    "length": Metric(_of_replies(diversity.length), "words per reply", better=""),
    "length_no_articles": Metric(
        _of_replies(partial(diversity.length, tokenize=text.without_articles)),
        "words per reply, articles aside",
        better="",
    ),
    # knowledge
    "wiki_f1": Metric(_wiki_f1, "F1 of normalized words with the knowledge behind the reference"),
    "wiki_f1_selected": Metric(
        _wiki_f1_selected, "F1 of normalized words with the knowledge the model selected"
    ),
    "knowledge_accuracy": Metric(_knowledge_accuracy, "knowledge selected rightly"),
    "entities": Metric(
        _entities, "entities of the retrieved graphs per reply, a number", resources=("stop_words",)
    ),
    "safe": Metric(_of_replies(knowledge.safe), "replies with I'm not sure or I don't know", better="lower"),
    "safe_official": Metric(
        _of_replies(partial(knowledge.safe, phrases=knowledge.SAFE_OFFICIAL)),
        "replies with I'm not sure or I do know, as the authors' code searches",
        better="lower",
    ),
    # persona
    "p_distance": Metric(
        partial(_persona_distance, own=False),
        "P.Distance to the persona of the one who is answered, a cosine",
        library="gensim",
        resources=("word_vectors", "frequent_words", "stop_words"),
    ),
    "p_distance_own": Metric(
        partial(_persona_distance, own=True),
        "P.Distance to the persona of the one who answers, a cosine",
        library="gensim",
        resources=("word_vectors", "frequent_words", "stop_words"),
    ),
    # the whole dialogue
    "fed": Metric(
        _fed,
        "FED, mean loss of complaints over six aspects, nats",
        library="transformers",
        resources=("fed_model", "fed_follow_ups"),
    ),
    # N replies to one context
    "bleu_precision": Metric(
        _covering(samples.bleu_precision),
        "sentence BLEU of each reply with its nearest reference",
        library="sacrebleu",
        together=True,
    ),
    "bleu_recall": Metric(
        _covering(samples.bleu_recall),
        "sentence BLEU of each reference with its nearest reply",
        library="sacrebleu",
        together=True,
    ),
    "self_bleu": Metric(
        _self_bleu,
        "sentence BLEU of each reply with the others to its context",
        better="lower",
        library="sacrebleu",
        together=True,
    ),
    "similarity": Metric(
        partial(_similarity, pooling="cls"),
        "cosine of the replies to one context, BERT's first token",
        better="lower",
        library="transformers",
        resources=("bert",),
        together=True,
    ),
    "similarity_mean": Metric(
        partial(_similarity, pooling="mean"),
        "cosine of the replies to one context, mean over BERT's tokens",
        better="lower",
        library="transformers",
        resources=("bert",),
        together=True,
    ),
    "reference_similarity": Metric(
        _reference_similarity,
        "cosine of the references of one context, BERT's first token",
        better="",
        library="transformers",
        resources=("bert",),
        together=True,
    ),
}
"""Name -> metric."""
