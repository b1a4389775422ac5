"""What some metrics need and no package brings: WordNet, word vectors, models. It is named, never fetched."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pretrain.errors import UserError

_DOCS = "see docs/metrics.md"


class UnavailableError(UserError):
    """A metric cannot be computed here; one line says what is missing and where it is looked for."""


def variable(name: str) -> str:
    """The environment variable of a field of `Resources`."""
    return f"MEMBART_{name.upper()}"


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(variable(name))
    return Path(value) if value else None


@dataclass(frozen=True)
class Resources:
    """Where things are. What is not given is asked of the environment: `word_vectors` is
    `MEMBART_WORD_VECTORS` there, and so on."""

    wordnet: Path | None = None
    """Folder that holds `corpora/wordnet`; else NLTK's own search path, which begins with `NLTK_DATA`."""
    word_vectors: Path | None = field(default_factory=partial(_from_environment, "word_vectors"))
    """Word vectors for P.Distance: word2vec binary or text, GloVe, or gensim's `.kv`."""
    frequent_words: Path | None = field(default_factory=partial(_from_environment, "frequent_words"))
    """The training data's most frequent words, one a line; else those of the dialogues that are scored."""
    stop_words: Path | None = field(default_factory=partial(_from_environment, "stop_words"))
    """Words without content, one a line; else each metric's own list."""
    bertscore: Path | None = field(default_factory=partial(_from_environment, "bertscore"))
    """Model folder for BERTScore: roberta-large in the papers."""
    bert: Path | None = field(default_factory=partial(_from_environment, "bert"))
    """Model folder for the similarity of replies: any BERT."""
    fed_model: Path | None = field(default_factory=partial(_from_environment, "fed_model"))
    """Model folder for FED: DialoGPT-large in the paper."""
    fed_follow_ups: Path | None = field(default_factory=partial(_from_environment, "fed_follow_ups"))
    """FED's follow-up sentences as JSON, see `finetune.metrics.fed`."""
    device: str | None = None
    """Where models run: `cpu`, `cuda`, ...; else a GPU if there is one."""

    def place(self, name: str, what: str) -> Path:
        """The existing path of a resource.

        Raises:
            UnavailableError: not named, or named and not there.
        """
        path: Path | None = getattr(self, name)
        if path is None:
            raise UnavailableError(f"needs {what}: set {variable(name)} to its path ({_DOCS})")
        if not path.exists():
            raise UnavailableError(f"needs {what}: {variable(name)} names {path}, which does not exist")
        return path

    def run_on(self) -> str:
        """The device for models."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


def needs_package(package: str, load: Callable[[], Any]) -> Any:
    """What `load` gives.

    Raises:
        UnavailableError: the optional package is not installed.
    """
    try:
        return load()
    except ImportError:
        raise UnavailableError(f"needs {package}: pip install 'membart[metrics]'") from None


@lru_cache(maxsize=1)
def wordnet(folder: Path | None) -> Any:
    """NLTK's reader of WordNet.

    Raises:
        UnavailableError: it is in none of the places.
    """
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    if folder is not None and str(folder) not in nltk.data.path:
        # NLTK opens nothing outside this path.
        nltk.data.path.append(str(folder))
    places = [str(folder)] if folder is not None else list(nltk.data.path)
    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            with warnings.catch_warnings():
                # It says that only English will work; METEOR asks for no more.
                warnings.simplefilter("ignore", UserWarning)
                return WordNetCorpusReader(nltk.data.find(name, places), None)
        except LookupError:
            continue
        except (OSError, ValueError) as error:
            raise UnavailableError(f"needs WordNet: what {places} hold cannot be read: {error}") from None
    where = ", ".join(places)
    raise UnavailableError(
        f"needs WordNet: set NLTK_DATA to a folder with corpora/wordnet ({_DOCS}); not in {where}"
    )
