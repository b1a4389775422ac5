"""The retriever: its loss by hand, that it learns, resumes to the bit, and what it reads of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from finetune.knowledge import queries
from finetune.knowledge.queries import Query
from finetune.knowledge.retriever.loss import Matched, match
from finetune.knowledge.retriever.model import Encoded, Retriever
from finetune.knowledge.retriever.settings import RetrieverSettings
from finetune.knowledge.retriever.train import Progress, few_words, train
from finetune.knowledge.words import words
from pretrain.errors import UserError
from tests.support import knowledge

CPU = torch.device("cpu")


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_hinge_by_hand() -> None:
    keys = unit((1.0, 0.0), (0.0, 1.0))
    tokens = unit((1.0, 0.0), (1.0, 1.0), (1.0, 0.0)).requires_grad_()
    found = match(tokens, keys, torch.tensor([0, 0, 1]), torch.tensor([7, 8]), 0.5, dice())
    # Far enough: 0. Between the two: the margin. On the wrong one: margin + 1.
    assert found.loss.item() == pytest.approx((0 + 0.5 + 1.5) / 3)
    assert found.recall.item() == pytest.approx(2 / 3)
    found.loss.backward()
    assert tokens.grad is not None
    assert tokens.grad[0].abs().max() == 0
    assert tokens.grad[2].abs().max() > 0


def test_negatives_are_other_texts_drawn_by_their_tokens() -> None:
    # Scores tell which sentence was drawn: sentence 1 has the text of 0, sentence 3 three times 2's tokens.
    keys = torch.eye(4)
    owners = torch.tensor([0, 1, 2, 3, 3, 3])
    hashes = torch.tensor([5, 5, 6, 7])
    token = torch.tensor([[0.0, 0.9, 0.1, 0.3]])
    drawn = []
    for seed in range(400):
        tokens = torch.cat([token, torch.zeros(5, 4)])
        with_it = match(tokens, keys, owners, hashes, 0.0, dice(seed)).loss * 6
        drawn.append(round(with_it.item(), 3))
    assert set(drawn) == {0.1, 0.3}
    assert 260 < drawn.count(0.3) < 340


def test_without_a_negative_there_is_no_loss() -> None:
    tokens = unit((1.0, 0.0), (0.0, 1.0)).requires_grad_()
    found = match(tokens, torch.eye(2), torch.tensor([0, 1]), torch.tensor([5, 5]), 0.5, dice())
    assert found.loss.item() == 0
    assert found.recall.item() == 1
    found.loss.backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().max() == 0


def test_it_learns_which_sentence_a_token_belongs_to() -> None:
    log = (knowledge.retriever_folder() / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["recall"] > 0.9


def test_recall_starts_near_chance(tmp_path: Path) -> None:
    settings = RetrieverSettings.of([*knowledge.SETTINGS, "steps=1", "lr=1e-9", "head_lr=1e-9"])
    seen: list[Progress] = []
    train(
        knowledge.base(),
        str(knowledge.model_folder()),
        tmp_path / "r",
        settings,
        device=CPU,
        told=seen.append,
    )
    assert seen[-1].recall < 0.2


def test_special_tokens_belong_to_no_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(tokens: torch.Tensor, *rest: Any) -> Matched:
        seen.append(len(tokens))
        return match(tokens, *rest)

    monkeypatch.setattr("finetune.knowledge.retriever.train.match", counted)
    settings = RetrieverSettings.of([*knowledge.SETTINGS, "steps=1"])
    place = str(knowledge.model_folder())
    model = train(knowledge.base(), place, tmp_path / "r", settings, device=CPU)
    sentences = knowledge.base().sentences(range(len(knowledge.base())))
    assert set(seen) == {int(model.encode(sentences).real.sum())}


def test_titles_are_hidden_from_the_sentences_side_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    encode = Retriever.encode

    def noted(self: Retriever, texts: list[str], longest: int | None = None) -> Encoded:
        seen.append(list(texts))
        return encode(self, texts, longest)

    monkeypatch.setattr(Retriever, "encode", noted)
    settings = RetrieverSettings.of([*knowledge.SETTINGS, "steps=1", "mask_title=1"])
    train(knowledge.base(), str(knowledge.model_folder()), tmp_path / "r", settings, device=CPU)
    said, told, validated = seen
    assert sorted(said) == sorted(validated) == sorted(sentence for _, sentence in knowledge.articles())
    titles = {sentence: title for title, sentence in knowledge.articles()}
    assert all(titles[one] not in other != one for one, other in zip(said, told, strict=True))


def test_memory_rows_are_dropped_and_long_texts_cut() -> None:
    model = knowledge.retriever()
    texts = model.encode(["A badon is a fish.", "tree"])
    with torch.no_grad():
        whole = model.tokens.encoder(input_ids=texts.ids, attention_mask=texts.mask).last_hidden_state
        states = model.tokens.states(texts)
    slots = whole.shape[1] - texts.ids.shape[1]
    assert slots == model.tokens.encoder.config.memory_len > 0
    assert torch.equal(states, whole[:, slots:])
    long = " ".join(title for title, _ in knowledge.articles())
    assert model.encode([long]).ids.shape[1] == 24 < model.longest
    assert model.encode([long], model.longest).ids.shape[1] == model.longest


def test_an_interrupted_training_ends_the_same(tmp_path: Path) -> None:
    settings = RetrieverSettings.of(
        [
            *knowledge.SETTINGS,
            "steps=6",
            "validate_every=2",
            "head_dropout=0.5",
            "mask_title=0.5",
            "hide_context=0.5",
        ]
    )

    def run(name: str, stop: int | None = None) -> Retriever:
        def told(progress: Progress) -> None:
            if progress.step == stop:
                raise KeyboardInterrupt

        place = str(knowledge.model_folder())
        return train(knowledge.base(), place, tmp_path / name, settings, device=CPU, told=told)

    with pytest.raises(KeyboardInterrupt):
        run("broken", stop=3)
    assert not (tmp_path / "broken").exists()
    state = tmp_path / "broken.building" / "state.pt"
    whole_state = state.read_bytes()
    state.write_bytes(whole_state[:1000])
    with pytest.raises(UserError, match=r"state\.pt: left by an interrupted call, .* -- --restart"):
        run("broken")
    state.write_bytes(whole_state)
    with pytest.raises(UserError, match="begun with other inputs"):
        train(
            knowledge.base(),
            str(knowledge.model_folder()),
            tmp_path / "broken",
            settings.model_copy(update={"seed": 2}),
            device=CPU,
        )
    broken, whole = run("broken").state_dict(), run("whole").state_dict()
    assert all(torch.equal(broken[name], whole[name]) for name in whole)


def test_without_its_context_a_sentence_is_one_to_four_words_in_a_row() -> None:
    sentence = "A badon, they say, is a fish."
    grid = [(length / 8, place / 16) for length in range(8) for place in range(16)]
    found = {few_words(sentence, length, place) for length, place in grid}
    assert {len(words(text)) for text in found} == {1, 2, 3, 4}
    assert {text for text in found if len(words(text)) == 1} == {word.text for word in words(sentence)}
    assert {"A badon, they say", "say, is a fish"} <= found
    assert few_words("two words", 0.99, 0.99) == "two words"
    assert few_words("?!", 0.5, 0.5) == "?!"


def test_it_is_read_back_as_it_was() -> None:
    model = knowledge.retriever()
    again = Retriever.open(knowledge.retriever_folder())
    texts = ["A badon is a fish.", "tree"]
    with torch.no_grad():
        first, second = (each.keys(each.encode(texts)) for each in (model, again))
    assert torch.equal(first, second)
    assert torch.allclose(first.norm(dim=-1), torch.ones(2))


def test_padding_and_specials_do_not_count() -> None:
    model = knowledge.retriever()
    with torch.no_grad():
        alone = model.keys(model.encode(["tree"]))
        padded = model.keys(model.encode(["tree", "A badon is a fish of the south."]))
        texts = model.encode(["tree"])
        mean = model.knowledge.states(texts)[0, texts.real[0]].mean(dim=0)
        own = torch.nn.functional.normalize(model.knowledge.head(mean), dim=-1)
    assert torch.allclose(alone[0], padded[0], atol=1e-5)
    assert torch.allclose(alone[0], own, atol=1e-5)
    assert texts.mask.sum() > texts.real.sum()
    assert model.encode(["tree"]).real.sum() == len(
        model.tokenizer("tree", add_special_tokens=False)["input_ids"]
    )


def test_a_bert_is_a_start_too(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(knowledge.model_folder())
    tokenizer.save_pretrained(tmp_path / "bert")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **shape)
    BertModel(config).save_pretrained(tmp_path / "bert")
    settings = RetrieverSettings.of([*knowledge.SETTINGS, "steps=1"])
    trained = train(knowledge.base(), str(tmp_path / "bert"), tmp_path / "r", settings, device=CPU)
    assert isinstance(trained.tokens.encoder, BertModel)
    assert trained.tokens.encoder is not trained.knowledge.encoder


def test_settings_are_checked() -> None:
    assert RetrieverSettings.of(["batch=8"]).batch == 8
    with pytest.raises(UserError, match=r"bacth: .*known: joint_size"):
        RetrieverSettings.of(["bacth=8"])
    with pytest.raises(UserError, match="margin"):
        RetrieverSettings.of(["margin=-1"])
    with pytest.raises(UserError, match="trained encoders"):
        Retriever.begin("scratch", RetrieverSettings())


def test_a_word_is_the_mean_of_its_pieces() -> None:
    model, text = knowledge.retriever(), "the  badon 🦉 swims!"
    word = words(text)[1]
    texts = model.encode([text])
    with torch.no_grad():
        outputs = model.token_outputs(texts)[0]
    pieces = [
        place
        for place, (start, end) in enumerate(texts.offsets[0].tolist())
        if texts.real[0, place] and start < word.end and end > word.start
    ]
    assert len(pieces) > 1
    mean = outputs[pieces].mean(dim=0)
    found = queries.vectors(model, [Query(text, [word])])[0]
    assert np.allclose(found[0], (mean / mean.norm()).numpy(), atol=1e-5)


def test_long_texts_are_read_in_windows_and_each_word_from_its_middle() -> None:
    model = knowledge.retriever()
    text = " ".join(f"{title}" for title, _ in knowledge.articles())
    pieces = queries.windows(model, text)
    assert len(pieces) > 2
    assert all(text[start : start + len(piece)] == piece for start, piece in pieces)
    assert pieces[0][0] == 0
    assert pieces[-1][0] + len(pieces[-1][1]) == len(text)
    found = queries.vectors(model, [Query(text, words(text))])[0]
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    middle = words(text)[len(words(text)) // 2]
    start, piece = max(
        pieces, key=lambda each: min(middle.start - each[0], each[0] + len(each[1]) - middle.end)
    )
    alone = queries.vectors(
        model, [Query(piece, [word for word in words(piece) if word.start + start == middle.start])]
    )[0]
    assert np.allclose(found[len(words(text)) // 2], alone[0], atol=1e-5)
