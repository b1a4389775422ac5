"""What a program is going to read, and whether it is there: the same on every node."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from pretrain.corpus.shardset import ShardSet
from pretrain.errors import UserError

MOST_FILES = 100_000
HEAD_BYTES = 1 << 20


def fingerprints(program: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Fingerprint of each path that `pretrain WORD...` or `finetune WORD...` reads, and what cannot be read.

    A program whose words do not resolve is no fault of the node, but every node says so.
    """
    try:
        sets, others = _places(program)
    except UserError as error:
        return {}, [str(error)]
    found, problems = {}, []
    for paths, fingerprint in ((sets, of_shard_set), (others, of_files)):
        for path in paths:
            try:
                found[str(path)] = fingerprint(path)
            except UserError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{path} cannot be read: {error.strerror}")
    return found, problems


def of_shard_set(path: Path) -> str:
    """The hash of a shard set, once every shard is there at its size.

    Raises:
        UserError, OSError: it is none, or not whole.
    """
    opened = ShardSet.open(path)
    for number, shard in enumerate(opened.shards):
        size = opened.path(number).stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"{size} bytes instead of {shard.bytes}",
                where=str(opened.path(number)),
                mend=f"membart shards verify {path}",
            )
    return opened.hash


def of_files(path: Path) -> str:
    """Of a folder the names and sizes of what is in it; of a file its size and first MiB.

    Raises:
        UserError, OSError: nothing is there; an empty folder is one where nothing is mounted.
    """
    mark = hashlib.sha256()
    if path.is_dir():
        files = [file for file in itertools.islice(path.rglob("*"), MOST_FILES) if file.is_file()]
        if not files:
            raise UserError("the folder is empty", where=str(path), mend="mount the file system")
        for name, size in sorted((str(file.relative_to(path)), file.stat().st_size) for file in files):
            mark.update(f"{name} {size}\n".encode())
    else:
        with path.open("rb") as stream:
            mark.update(f"{path.stat().st_size} ".encode() + stream.read(HEAD_BYTES))
    return mark.hexdigest()


def _places(program: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The shard sets, and the other local files and folders, that the program's recipe names.

    Raises:
        UserError: the words do not resolve to a recipe.
    """
    name, *words = program
    options: dict[str, list[str]] = {"--from": [], "--data": []}
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        option, _, value = word.partition("=")
        if option in options:
            options[option].append(value or next(rest, ""))
        else:
            plain.append(word)
    if name == "finetune":
        from finetune.__main__ import resolve
        from finetune.dialogue.load import Source

        start = options["--from"][-1] if options["--from"] else None
        tuned = resolve(plain[0], plain[1:], start, options["--data"])
        sources = [Source.parse(source) for source in tuned.data.sources]
        read = [Path(source.absolute().place) for source in sources if not source.generated]
        knowledge = tuned.model.get("knowledge")
        named = [Path(str(knowledge)).resolve()] if knowledge else []
        return [], [*read, *named, *_local(tuned.backbone)]
    from pretrain.recipe import load

    kept = Path(plain[0]) / "recipe.yaml"
    recipe = load(str(kept) if kept.is_file() else plain[0], plain[1:])
    return [Path(folder).resolve() for folder in recipe.data.shards], _local(recipe.model.init)


def _local(place: str) -> list[Path]:
    """A folder of this machine; a hub's name or `scratch` is none."""
    return [Path(place).resolve()] if Path(place).exists() else []
