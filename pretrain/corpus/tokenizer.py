"""Byte-level BPE tokenizers with BART's layout of special tokens.

Corpus text is *encoded as plain text*: a page that contains the characters `<s>` or `<mask>` yields the
sub-words of those characters and never a control id, so that no corpus can inject one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from pretrain.errors import UserError
from pretrain.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
WORD_MARKS = ("Ġ", "Ċ", "ĉ", "č")
"""Byte-level spellings of space, line feed, tab and carriage return; a token that opens so opens a word."""

TOKENIZER_FOLDER = "tokenizer"
"""Where a shard set and a run keep theirs."""

PIECE_CHARACTERS = 1 << 15
"""Long texts are encoded in pieces of about this many characters; see `_pieces`."""
PIECES_AT_A_TIME = 256


class Tokenizer:
    """Token <-> id mapping of one byte-level BPE vocabulary.

    `vocab` maps token to id, `merges` are the BPE merges by rank. Ids 0..3 are `<s> <pad> </s> <unk>` and
    the last one is `<mask>`, as in BART.
    """

    bos, pad, eos, unk = range(4)

    def __init__(
        self, vocab: dict[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = False
    ):
        self._vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
        self._merges = [(left, right) for left, right in merges]
        self._prefix_space = prefix_space
        self.vocab_size = len(self._vocab)
        self.mask = self.vocab_size - 1
        _check_layout(self._vocab)
        self._plain = _backend(self._vocab, self._merges, prefix_space)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides which ids a text gets; the same for both file layouts of a tokenizer."""
        content = json.dumps([list(self._vocab.items()), self._merges, self._prefix_space], ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, uint16 (uint32 past 65,536 tokens), without special tokens.

        Raises UnicodeEncodeError for a text that is no valid Unicode (a lone surrogate).
        """
        pieces = [_pieces(text) for text in texts]
        flat = [piece for group in pieces for piece in group]
        dtype = token_dtype(self.vocab_size)
        # The library's result of a piece takes many times the memory of its ids, so few are held at a time.
        groups = (flat[at : at + PIECES_AT_A_TIME] for at in range(0, len(flat), PIECES_AT_A_TIME))
        arrays = (
            np.array(encoding.ids, dtype=dtype)
            for group in groups
            for encoding in self._plain.encode_batch_fast(group, add_special_tokens=False)
        )
        return [_join([next(arrays) for _ in group], dtype) for group in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens appear by name."""
        return str(self._plain.decode([int(i) for i in ids], skip_special_tokens=False))

    def word_starts(self) -> np.ndarray:
        """bool `[vocab_size]`: the token opens with a blank, so it begins a word; specials do not."""
        starts = np.zeros(self.vocab_size, dtype=bool)
        for token, number in self._vocab.items():
            starts[number] = token.startswith(WORD_MARKS)
        return starts

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a tokenizer folder that this module and `transformers` load; the same bytes each time."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        files = {
            "vocab.json": json.dumps(self._vocab, ensure_ascii=False) + "\n",
            "merges.txt": "#version: 0.2\n" + merges,
            "tokenizer.json": self._with_specials().to_str(pretty=False),
            "tokenizer_config.json": json.dumps(self._config(), indent=2) + "\n",
        }
        for name, content in files.items():
            write_atomically(folder / name, content)

    def hf(self) -> PreTrainedTokenizerBase:
        """The same tokenizer as a `transformers` object (imports transformers: slow)."""
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return AutoTokenizer.from_pretrained(folder)

    def _with_specials(self) -> tokenizers.Tokenizer:
        full = _backend(self._vocab, self._merges, self._prefix_space)
        full.add_special_tokens(
            [tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIALS]
        )
        # BART's <mask> swallows the space before it, so that "a <mask>" has no stray blank token.
        full.add_special_tokens([tokenizers.AddedToken(MASK, special=True, normalized=False, lstrip=True)])
        full.post_processor = processors.RobertaProcessing(
            ("</s>", self.eos),
            ("<s>", self.bos),
            trim_offsets=True,
            add_prefix_space=self._prefix_space,
        )
        return full

    def _config(self) -> dict[str, Any]:
        return {
            "tokenizer_class": "BartTokenizer",
            "add_prefix_space": self._prefix_space,
            "model_max_length": 1024,
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": MASK,
        }


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a tokenizer folder: `vocab.json` + `merges.txt`, or `tokenizer.json` alone.

    Raises UserError when it is absent, unreadable, not byte-level BPE, or not laid out as BART's.
    """
    folder = Path(path)
    mend = "give a BART tokenizer folder (vocab.json + merges.txt, or tokenizer.json)"
    if not folder.is_dir():
        raise UserError("no such tokenizer folder", where=str(folder), mend=mend)
    pair, single = (folder / "vocab.json", folder / "merges.txt"), folder / "tokenizer.json"
    try:
        if all(file.is_file() for file in pair):
            vocab = json.loads(pair[0].read_text(encoding="utf-8"))
            return Tokenizer(vocab, _read_merges(pair[1]), prefix_space=_prefix_space(folder))
        if single.is_file():
            return _from_tokenizer_json(json.loads(single.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(error.what, where=str(folder), mend=mend) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"this tokenizer cannot be read ({error})", where=str(folder), mend=mend) from None
    raise UserError("no tokenizer in this folder", where=str(folder), mend=mend)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on `texts`; `vocab_size` counts the five special tokens.

    Raises UserError when `vocab_size` cannot hold the specials and the 256 bytes.
    """
    floor = len(SPECIALS) + 1 + 256
    if vocab_size < floor:
        raise UserError(f"a byte-level vocabulary needs at least {floor} tokens, got {vocab_size}")
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # <mask> comes last, so it is added afterwards
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    model = json.loads(raw.to_str())["model"]
    vocab = dict(model["vocab"])
    vocab[MASK] = len(vocab)
    return Tokenizer(vocab, [(left, right) for left, right in model["merges"]])


def _backend(
    vocab: dict[str, int], merges: list[tuple[str, str]], prefix_space: bool
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _check_layout(vocab: dict[str, int]) -> None:
    if list(vocab.values()) != list(range(len(vocab))):
        raise UserError("the ids of the vocabulary are not 0, 1, 2, ... without gaps")
    names = list(vocab)
    if tuple(names[:4]) != SPECIALS or names[-1] != MASK:
        raise UserError(
            f"special tokens are not BART's: ids 0..3 are {' '.join(names[:4])} and the last is {names[-1]}, "
            f"expected {' '.join(SPECIALS)} and {MASK}"
        )


def _prefix_space(folder: Path) -> bool:
    """Whether texts begin with a space for this tokenizer; the pair of files does not say."""
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("add_prefix_space"))


def _read_merges(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(row) != 2 for row in rows):
        raise ValueError("merges.txt has a line that is not two tokens")
    return [(left, right) for left, right in rows]


def _from_tokenizer_json(content: dict[str, Any]) -> Tokenizer:
    model, before = content["model"], content.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or before.get("type") != "ByteLevel" or content.get("normalizer"):
        raise UserError("this is not a byte-level BPE tokenizer")
    vocab = dict(model["vocab"])
    vocab.update({token["content"]: token["id"] for token in content.get("added_tokens", [])})
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    merges = [(left, right) for left, right in pairs]
    return Tokenizer(vocab, merges, prefix_space=bool(before.get("add_prefix_space")))


def _pieces(text: str) -> list[str]:
    """Cut `text` where that cannot change its tokens: before a single blank between two non-blanks.

    The pre-tokenizer never lets a word reach across such a place. Short pieces keep the library's cost per
    character flat and its memory small on whole books.
    """
    pieces, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = _safe_cut(text, start + PIECE_CHARACTERS)
        if cut < 0:
            break
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces


def _safe_cut(text: str, after: int) -> int:
    cut = text.find(" ", after)
    while cut >= 0 and (cut + 1 >= len(text) or text[cut - 1].isspace() or text[cut + 1].isspace()):
        cut = text.find(" ", cut + 1)
    return cut


def _join(arrays: list[np.ndarray], dtype: np.dtype[Any]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays).astype(dtype, copy=False)
