"""Words get their items, whoever stops the work and however many share it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.wow_ki import pieces_to_text
from finetune.families.ki.alignment import NONE, token_items
from finetune.knowledge import speech
from finetune.knowledge.annotate import annotate, annotate_released, random_keys, released_spans
from finetune.knowledge.annotations import Annotations
from finetune.knowledge.controls import controlled
from finetune.knowledge.index import KnowledgeIndex
from finetune.knowledge.inspection import counts, sample
from finetune.knowledge.parallel import in_order
from finetune.knowledge.queries import Query, vectors
from finetune.knowledge.retrieval import Retrieval, RetrievalOptions, Utterance, titled
from finetune.knowledge.titles import Titles, write
from finetune.knowledge.words import StopWords, Word, pieces, words
from pretrain.errors import UserError
from tests.support import knowledge

TEXT = "The  Badon's nest 🦉 is unbelievably far, the fifin said."


def got(text: str, **options: bool | int) -> dict[str, tuple[str, bool]]:
    """Title and way of each word that has an item."""
    retrieval = Retrieval(knowledge.index(), RetrievalOptions.model_validate(options))
    [spans], _ = retrieval([Utterance(text)])
    names = knowledge.base().names(spans.items)
    return {
        text[start:end]: (name, bool(exact))
        for start, end, name, exact in zip(spans.starts, spans.ends, names, spans.exact, strict=True)
    }


def test_titles_are_found_and_the_rest_is_searched() -> None:
    found = got(TEXT)
    assert list(found) == ["Badon", "nest", "unbelievably", "far", "fifin", "said"]
    assert found["Badon"] == ("badon", True)
    assert found["fifin"] == ("fifin", True)
    assert not found["nest"][1]


def test_search_takes_the_nearest_item() -> None:
    index = knowledge.index()
    [spans], _ = Retrieval(index)([Utterance("a fish of the coast")])
    assert len(spans.items) == 2
    vector = vectors(index.retriever, [Query("a fish of the coast", words("a fish of the coast")[1:2])])[0]
    assert spans.items[0] == (index.keys @ vector[0]).argmax()
    assert spans.scores[0] == pytest.approx((index.keys @ vector[0]).max(), abs=1e-5)


def test_a_title_is_taken_before_an_item_that_search_likes_better() -> None:
    index = knowledge.index()
    by_search = {title: got(title, titles=False)[title] for title, _ in knowledge.articles()}
    title, (other, exact) = next((one, found) for one, found in by_search.items() if found[0] != one)
    assert not exact
    [spans], _ = Retrieval(index, RetrievalOptions(titles=False))([Utterance(title)])
    vector = vectors(index.retriever, [Query(title, words(title))])[0][0]
    own = index.base.titles.find(title)
    assert spans.scores[0] > index.keys[own] @ vector
    assert got(title.upper())[title.upper()] == (title, True) != (other, False)


def test_a_stop_word_has_nothing_even_if_it_is_a_title() -> None:
    retrieval = Retrieval(knowledge.index(), stop=StopWords())
    retrieval.stop.__dict__["listed"] = retrieval.stop.listed | {"badon"}
    [spans], count = retrieval([Utterance("badon baban")])
    assert count == 2
    assert knowledge.base().names(spans.items) == ["baban"]


def test_the_two_tricks_can_be_left_out() -> None:
    assert "The" in got(TEXT, stop_words=False)
    assert not any(exact for _, exact in got(TEXT, titles=False).values())


def test_titles_of_several_words_go_first_and_give_their_item_to_each(tmp_path: Path) -> None:
    write(tmp_path / "t", [("Wizard of Oz", 1), ("wizard", 2), ("J. K. Rowling", 3)])
    titles, text = Titles(tmp_path / "t"), "a WIZARD saw the wizard of  Oz by J. K. Rowling"
    row = words(text)
    found = {(word.text, item) for word, item in titled(text, row, titles, 3).items()}
    assert found == {("WIZARD", 2), ("wizard", 1), ("of", 1), ("Oz", 1), ("J", 3), ("K", 3), ("Rowling", 3)}
    assert {word.start for word in titled(text, row, titles, 1)} == {2, text.index("wizard")}


def test_the_context_is_read_too() -> None:
    retrieval = Retrieval(knowledge.index())
    near, far = retrieval(
        [Utterance("a fish", ()), Utterance("a fish", ("A badon is a fish of the south.",))]
    )[0]
    assert near.starts.tolist() == far.starts.tolist()
    assert near.scores[0] != far.scores[0]


def test_a_word_is_looked_up_where_it_stands_behind_its_context() -> None:
    index, before = knowledge.index(), "A badon is a fish of the south."
    [spans], _ = Retrieval(index)([Utterance("a fish", (before,))])
    word = Word("fish", len(before) + 3, len(before) + 7)
    [vector] = vectors(index.retriever, [Query(f"{before} a fish", [word])])[0]
    assert (spans.starts.tolist(), spans.ends.tolist()) == ([2], [6])
    assert spans.items[0] == (index.keys @ vector).argmax()
    assert spans.scores[0] == pytest.approx((index.keys @ vector).max(), abs=1e-5)


def test_each_piece_can_have_an_item_of_its_own() -> None:
    index, text = knowledge.index(), "  swimming people of the northern islands, badon!"
    tokens = index.retriever.offsets(text)
    retrieval = Retrieval(index, RetrievalOptions(unit="piece", pos=True))
    [spans], count = retrieval([Utterance(text)])
    wanted = [piece for piece in pieces(text, tokens) if piece.inside or piece.text not in StopWords()]
    assert count > len(wanted) > len(words(text))
    assert list(zip(spans.starts, spans.ends, strict=True)) == [(each.start, each.end) for each in wanted]
    queried = vectors(index.retriever, [Query(text, [each]) for each in wanted])
    nearest = [int((index.keys @ vector[0]).argmax()) for vector in queried]
    assert spans.items[~spans.exact].tolist() == [
        item for item, exact in zip(nearest, spans.exact, strict=True) if not exact
    ]
    assert spans.nouns is not None
    of_a_word = next(word for word in words(text) if word.text == "people")
    inside = (spans.starts >= of_a_word.start) & (spans.ends <= of_a_word.end)
    assert inside.sum() > 1
    assert spans.nouns[inside].all()
    # A model with the retriever's tokenizer has, token for token, what was found for it.
    found = token_items(text, tokens, spans)
    by_place = dict(zip(spans.starts.tolist(), spans.items.tolist(), strict=True))
    starts = [next((at for at in range(*token) if not text[at].isspace()), -1) for token in tokens]
    assert found.tolist() == [by_place.get(start, NONE) for start in starts]


def test_a_piece_inside_a_word_is_neither_stop_word_nor_title(tmp_path: Path) -> None:
    index = knowledge.index()
    first, *later = pieces("badon", index.retriever.offsets("badon"))
    retrieval = Retrieval(index, RetrievalOptions(unit="piece"), StopWords())
    retrieval.stop.__dict__["listed"] = retrieval.stop.listed | {piece.text for piece in (first, *later)}
    assert later
    assert retrieval([Utterance("badon")])[0][0].starts.tolist() == [piece.start for piece in later]
    write(tmp_path / "t", [(later[0].text, 5), (first.text, 6)])
    assert titled("badon", [first, *later], Titles(tmp_path / "t"), 1) == {first: 6}


def annotated(out: Path, **changes: object) -> Annotations:
    options = RetrievalOptions(context_turns=1, pos=True)
    return annotate(knowledge.index(), knowledge.dialogues(), out, options, **changes)  # type: ignore[arg-type]


@pytest.fixture
def parts_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.knowledge.annotate.PART_UTTERANCES", 10)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.usefixtures("parts_of_ten")
def test_bytes_do_not_depend_on_workers_or_interruptions(tmp_path: Path) -> None:
    one = annotated(tmp_path / "one", workers=1)
    annotated(tmp_path / "three", workers=3)

    def stop(done: int, total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotated(tmp_path / "broken", workers=1, told=stop)
    assert not (tmp_path / "broken").exists()
    first: list[int] = []
    annotated(tmp_path / "broken", workers=2, told=lambda done, total: first.append(done))
    assert first[0] >= 20
    assert content(tmp_path / "one") == content(tmp_path / "three") == content(tmp_path / "broken")
    assert one.manifest.utterances == 48
    assert one.manifest.words > one.manifest.spans > one.manifest.exact >= 48
    assert one.manifest.index == knowledge.index().hash
    assert one.sentences[0].startswith("A ")
    dialogue = knowledge.dialogues()[0]
    assert "baban" in " ".join(sample(one, dialogue))
    assert counts(one, knowledge.dialogues()).words == one.manifest.spans
    factual, linguistic = (len(controlled(one, kind).table.spans.items) for kind in ("factual", "linguistic"))
    assert factual + linguistic == one.manifest.spans
    assert min(factual, linguistic) > 0


def test_other_options_do_not_go_on_with_what_is_there(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotated(tmp_path / "a", told=stop)
    with pytest.raises(UserError, match=r"begun with other inputs or options -- .* --restart"):
        annotate(knowledge.index(), knowledge.dialogues(), tmp_path / "a")
    again = annotate(knowledge.index(), knowledge.dialogues(), tmp_path / "a", restart=True)
    assert again.manifest.context_turns == RetrievalOptions().context_turns


@pytest.mark.usefixtures("parts_of_ten")
def test_a_part_that_was_damaged_meanwhile_is_one_line(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotated(tmp_path / "a", told=stop)
    part = next((tmp_path / "a.building/parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=r"parts/\d\.npz: left by an interrupted call, .* -- --restart"):
        annotated(tmp_path / "a")


def test_an_index_that_loses_too_much_is_refused(tmp_path: Path) -> None:
    index = knowledge.index()
    poor = KnowledgeIndex(index.folder, {**index.manifest, "recall": 0.9}, index.base, index.retriever)
    with pytest.raises(UserError, match=r"90.0% of the words only, 95% are wanted -- .*--factory Flat"):
        annotate(poor, knowledge.dialogues(), tmp_path / "a")


def test_a_worker_that_dies_is_one_line() -> None:
    with pytest.raises(UserError, match="a worker process died"):
        list(in_order(lambda task: os._exit(1), [0], 1))

    def refuse(task: int) -> int:
        raise UserError(f"not {task}")

    with pytest.raises(UserError, match=r"^not 3$"):
        list(in_order(refuse, [3], 1))


def test_nouns_are_told_from_the_rest() -> None:
    text = "The British author donates money / gold, I read (books)!"
    row = words(text)
    marks = dict(zip([word.text for word in row], speech.nouns(text, row), strict=True))
    assert [word for word, noun in marks.items() if noun] == ["author", "money", "gold", "books"]


PIECES = ("##os", "ja", "##le", "##pen", "##os", "!", "##", "hot")
VOKENS = (4, 0, 7, 7, 9, 0, 0, 5_000_000_000)


def test_released_pieces_lie_where_their_text_has_them() -> None:
    text, spans = pieces_to_text(PIECES), released_spans(PIECES, VOKENS)
    found = [text[start:end] for start, end in zip(spans.starts, spans.ends, strict=True)]
    assert found == ["os", "le", "pen", "os", "hot"]
    assert spans.items.tolist() == [4, 7, 7, 9, 5_000_000_000]


def test_released_items_have_keys_of_their_own(tmp_path: Path) -> None:
    said = Turn(0, pieces_to_text(PIECES), pieces=PIECES, vokens=VOKENS)
    dialogue = Dialogue("a", (said, Turn(1, "yes")))
    found = annotate_released([dialogue], tmp_path / "a")
    assert found.of(dialogue, 0).items.tolist() == [0, 1, 1, 2, 3]
    assert (found.manifest.keys, found.manifest.joint_size, found.manifest.words) == ("random", 64, 8)
    assert np.allclose(np.linalg.norm(found.keys, axis=1), 1, atol=1e-5)
    assert len(np.unique(found.hashes)) == 4
    assert np.array_equal(random_keys(np.array([9]), 1)[0], found.keys[2])
    assert not np.array_equal(random_keys(np.array([9]), 2)[0], found.keys[2])
    with pytest.raises(UserError, match="no published knowledge items"):
        annotate_released([replace(dialogue, turns=dialogue.turns[1:])], tmp_path / "b")


def test_random_keys_point_everywhere_alike() -> None:
    keys = random_keys(np.arange(4000), 1)
    assert np.abs(keys.mean(axis=0)).max() < 0.01
    assert np.abs(keys.T @ keys / 4000 * 64 - np.eye(64)).max() < 0.2
