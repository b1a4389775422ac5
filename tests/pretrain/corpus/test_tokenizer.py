"""Tokenizers: BART's layout, plain-text encoding, files that both libraries read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.corpus import tokenizer as module
from pretrain.corpus.tokenizer import Tokenizer, load_tokenizer, token_dtype, train_tokenizer
from pretrain.errors import UserError
from tests.pretrain.corpus.conftest import text_of


def test_layout_is_barts(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 420
    assert tokenizer.mask == 419
    assert tokenizer.decode([0, 1, 2, 3, 419]) == "<s><pad></s><unk><mask>"


def test_round_trip_of_any_text(tokenizer: Tokenizer) -> None:
    texts = [text_of(1), "naïve 日本語 🙂\n\n\ttabs", " leading", "trailing ", "", "\u2028\x0c\r lone"]
    for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokens.dtype == np.uint16
        assert tokenizer.decode(tokens) == text


def test_control_words_in_text_stay_text(tokenizer: Tokenizer) -> None:
    text = "a <s>struck</s> line, <mask> and <pad>"
    (tokens,) = tokenizer.encode_batch([text])
    assert not set(tokens.tolist()) & {0, 1, 2, 3, tokenizer.mask}
    assert tokenizer.decode(tokens) == text


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab1.' \n\t\u00a0\u2028\x1c日"), max_size=300))
def test_cutting_long_texts_changes_no_token(text: str) -> None:
    made = Tokenizer(dict(_SMALL), [("Ġ", "a"), ("a", "b"), ("Ġa", "b")])
    whole = made.encode_batch([text])[0]
    before = module.PIECE_CHARACTERS
    module.PIECE_CHARACTERS = 5
    try:
        assert made.encode_batch([text])[0].tolist() == whole.tolist()
    finally:
        module.PIECE_CHARACTERS = before


def _small() -> dict[str, int]:
    letters = sorted(__import__("tokenizers").pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġa", "ab", "Ġab", "<mask>"]
    return {name: number for number, name in enumerate(names)}


_SMALL = _small()


def test_both_file_layouts_are_one_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    (tmp_path / "tokenizer.json").unlink()
    pair = load_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "vocab.json").unlink()
    single = load_tokenizer(tmp_path)
    assert pair.fingerprint == single.fingerprint == tokenizer.fingerprint
    text = text_of(3)
    assert pair.encode_batch([text])[0].tolist() == single.encode_batch([text])[0].tolist()


def test_fingerprint_sees_a_swapped_pair_of_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    file = tmp_path / "vocab.json"
    vocab = json.loads(file.read_text())
    first, second = list(vocab)[280:282]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(vocab))
    assert load_tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


def test_transformers_reads_the_folder(tokenizer: Tokenizer) -> None:
    other = tokenizer.hf()
    text = text_of(5)
    (tokens,) = tokenizer.encode_batch([text])
    assert other(text).input_ids == [0, *tokens.tolist(), 2]
    assert other("home <mask> rain").input_ids.count(tokenizer.mask) == 1
    assert (other.bos_token_id, other.pad_token_id, other.eos_token_id, other.mask_token_id) == (0, 1, 2, 419)


def test_word_starts(tokenizer: Tokenizer) -> None:
    starts = tokenizer.word_starts()
    assert starts.shape == (420,)
    assert not starts[[0, 1, 2, 3, 419]].any()
    (tokens,) = tokenizer.encode_batch([" harbour harbour\nharbour"])
    pieces = [tokenizer.decode([token]) for token in tokens]
    assert [piece[0] in " \n" for piece in pieces] == starts[tokens].tolist()


def test_smallest_type_that_holds_the_vocabulary() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no tokenizer in this folder"),
        ({"vocab.json": "{", "merges.txt": ""}, "cannot be read"),
        ({"vocab.json": '{"a": 0, "b": 2}', "merges.txt": ""}, "without gaps"),
        ({"vocab.json": '{"a": 0, "b": 1}', "merges.txt": ""}, "not BART's"),
        ({"tokenizer.json": '{"model": {"type": "WordPiece", "vocab": {}}}'}, "not a byte-level BPE"),
        ({"tokenizer.json": "[]"}, "cannot be read"),
    ],
)
def test_bad_folders_are_one_clear_line(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "give a BART tokenizer folder" in str(caught.value)


def test_missing_folder_and_tiny_vocabulary() -> None:
    with pytest.raises(UserError, match="no such tokenizer folder"):
        load_tokenizer("nowhere")
    with pytest.raises(UserError, match="at least 261"):
        train_tokenizer(["a"], 260)


def test_a_prefix_space_survives_saving(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "plain")
    vocab = json.loads((tmp_path / "plain" / "vocab.json").read_text(encoding="utf-8"))
    prefixed = Tokenizer(vocab, [], prefix_space=True)
    prefixed.save(tmp_path / "prefixed")
    assert load_tokenizer(tmp_path / "prefixed").fingerprint == prefixed.fingerprint
    assert prefixed.fingerprint != Tokenizer(vocab, []).fingerprint
