"""BERTScore, similarity and FED with tiny random models from folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from finetune.metrics import encoder, fed
from finetune.metrics.prediction import Prediction
from finetune.metrics.resources import Resources
from finetune.metrics.scoring import evaluate
from pretrain.errors import UserError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]
TEXTS = ["a b", "c d e f", "a"]


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if "cls_token" in special:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", **special)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than these models do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, initializer_range=0.5, **shape)
    BertModel(config).save_pretrained(folder)
    tokenizer(cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=8, n_layer=1, n_head=2, n_positions=16, initializer_range=0.5
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer(eos_token="[SEP]").save_pretrained(folder)
    return folder


@lru_cache(maxsize=1)
def plain_bert(folder: Path) -> BertModel:
    return BertModel.from_pretrained(folder).eval()


@lru_cache(maxsize=1)
def plain_gpt2(folder: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def states(folder: Path, text: str, layer: int) -> list[list[float]]:
    """The states of one text by transformers alone."""
    ids = [1, *(WORDS.index(word) for word in text.split()), 2]
    with torch.no_grad():
        found = plain_bert(folder)(torch.tensor([ids]), output_hidden_states=True)
    return found.hidden_states[layer][0].tolist()


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.hypot(*one) / math.hypot(*other)


def test_bertscore_by_loops_over_the_ninth_layer(bert: Path):
    reply, reference = states(bert, "a b", 9), states(bert, "c d e f", 9)
    # Every state may be matched; [CLS] and [SEP] (the ends) are not counted.
    precision = sum(max(cosine(x, y) for y in reference) for x in reply[1:-1]) / 2
    recall = sum(max(cosine(x, y) for y in reply) for x in reference[1:-1]) / 4
    model = encoder.load(bert, "cpu")
    expected = 200 * precision * recall / (precision + recall)
    assert encoder.bertscore(["a b"], [["c d e f"]], model) == pytest.approx(expected, rel=1e-4)


def test_bertscore_of_gold_is_100_and_of_nothing_0(bert: Path):
    model = encoder.load(bert, "cpu")
    assert encoder.bertscore(TEXTS, [[text] for text in TEXTS], model) == pytest.approx(100, rel=1e-5)
    # The best reference counts; an empty text is not an error.
    assert encoder.bertscore(["a b", "", "a"], [["h", "a b"], ["a"], [""]], model) == pytest.approx(100 / 3)


def test_bertscore_of_a_batch_is_the_mean_of_its_rows(bert: Path):
    model = encoder.load(bert, "cpu")
    references = [["h g"], ["a"], ["c c c c c c"]]
    alone = [encoder.bertscore([t], [r], model) for t, r in zip(TEXTS, references, strict=True)]
    assert encoder.bertscore(TEXTS, references, model) == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_long_texts_are_cut(bert: Path):
    model = encoder.load(bert, "cpu")
    assert encoder.bertscore([" ".join("a" * 40)], [[" ".join("a" * 50)]], model) == pytest.approx(
        100, rel=1e-5
    )


def test_a_model_without_a_known_layer_is_refused(gpt2: Path):
    with pytest.raises(UserError, match="no BERTScore layer is known for gpt2 of 1 layers"):
        encoder.bertscore_layer(encoder.Encoder(gpt2, "cpu"))


def test_similarity_is_the_mean_cosine_of_pairs(bert: Path):
    first = {text: states(bert, text, -1) for text in TEXTS}
    a, b, c = (first[text][0] for text in TEXTS)
    pairs = (cosine(a, b) + cosine(a, c) + cosine(b, c)) / 3
    model = encoder.load(bert, "cpu")
    # The second context says one thing twice: 1.
    assert encoder.similarity([TEXTS, ["h", "h"]], model) == pytest.approx((pairs + 1) / 2, rel=1e-4)

    def mean(rows: list[list[float]]) -> list[float]:
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    x, y = (mean(first[text][1:-1]) for text in TEXTS[:2])
    assert encoder.similarity([TEXTS[:2]], model, "mean") == pytest.approx(cosine(x, y), rel=1e-4)


def hand_loss(folder: Path, ids: list[int]) -> float:
    with torch.no_grad():
        scores = plain_gpt2(folder)(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(float(scores[n, ids[n + 1]]) for n in range(len(ids) - 1)) / (len(ids) - 1)


def test_fed_is_the_mean_loss_of_complaints_less_that_of_praise(gpt2: Path):
    # [SEP] a b [SEP] c [SEP] complaint
    told = [2, 4, 5, 2, 6, 2]
    bad, worse, good = (hand_loss(gpt2, told + ids) for ids in ([7, 8, 9], [10], [11]))
    follow_ups = {"dull": {"negative": ["d e f", "g"], "positive": ["h"]}, "rude": {"negative": ["g"]}}
    judge = fed.load(gpt2, "cpu")
    found = fed.fed([["a b", "c"]], judge, follow_ups, ("dull", "rude"))
    assert found == pytest.approx(((bad + worse) / 2 - good + worse) / 2, rel=1e-4)


def test_fed_keeps_the_end_of_a_long_conversation(gpt2: Path):
    judge = fed.load(gpt2, "cpu")
    # 16 positions: an end token, then the last 15 of a a ... [SEP] b
    (found,) = judge.losses([" ".join("a" * 30)], ["b"])
    assert found == pytest.approx(hand_loss(gpt2, [2, *[4] * 13, 2, 5]), rel=1e-4)


def test_models_and_follow_ups_are_named_by_resources(bert: Path, gpt2: Path, tmp_path: Path):
    follow_ups = tmp_path / "follow_ups.json"
    follow_ups.write_text(json.dumps({aspect: {"positive": [], "negative": ["g"]} for aspect in fed.ASPECTS}))
    resources = Resources(bertscore=bert, bert=bert, fed_model=gpt2, fed_follow_ups=follow_ups, device="cpu")
    names = ["bertscore", "similarity", "similarity_mean", "reference_similarity", "fed"]
    one = Prediction("d", 1, ("a b",), ("c", "c"), ("c", "c"))
    report = evaluate([one], names, resources)
    # All aspects have one and the same complaint.
    expected = hand_loss(gpt2, [2, 4, 5, 2, 6, 2, 10])
    assert report.values == pytest.approx(
        {"bertscore": 100, "similarity": 1, "similarity_mean": 1, "reference_similarity": 1, "fed": expected},
        rel=1e-4,
    )
    follow_ups.write_text('{"relevant": {"negative": ["g"]}}')
    report = evaluate([one], ["fed"], resources)
    assert "no negative follow-up of the aspect 'correct'" in report.unavailable["fed"]
    report = evaluate([one], ["fed", "length"], Resources(fed_model=tmp_path, fed_follow_ups=follow_ups))
    assert str(follow_ups) in report.unavailable["fed"]
    assert report.values == {"length": 1}


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    for load in (encoder.Encoder, fed.Judge):
        with pytest.raises(UserError, match="cannot be read as a"):
            load(tmp_path, "cpu")
