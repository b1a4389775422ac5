"""The corpus that every machine has: docstrings of the standard library and of the installed Python packages.

A document is one module: its docstrings in order of appearance, each under the line that declares its owner.
Modules are read in the order of the hash of their names, so that any limit takes an even sample of packages.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from pretrain.corpus.documents import BadRecordError, Block, Document, InputFile
from pretrain.errors import UserError

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
"""Tests document little and hold files that are broken on purpose."""

Owner = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def module_files(package: str = "") -> list[InputFile]:
    """Every module of the standard library and the installed packages, or those of one top-level `package`.

    Raises UserError when there is none.
    """
    paths = sysconfig.get_paths()
    roots = list(dict.fromkeys(Path(paths[key]) for key in ("stdlib", "purelib", "platlib")))
    found = {name: path for root in reversed(roots) for name, path in _modules(root, package)}
    if not found:
        raise UserError(
            f"no Python module called {package!r} is installed", mend="use docs:// for all packages"
        )
    names = sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [InputFile("module", name, str(found[name]), found[name].stat().st_size) for name in names]


def parse_module(block: Block) -> Iterator[Document]:
    """The document of one Python file. Raises BadRecordError when it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in strings of others are no concern of ours
        try:
            tree = ast.parse(block.payload)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BadRecordError("bad_python", str(error), line=getattr(error, "lineno", None)) from None
    text = "\n\n".join(_passages(tree))
    if text:
        yield Document(text + "\n")


def _modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    for folder, folders, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        if package and relative == Path("."):
            folders[:] = [name for name in folders if name == package]
            files = [name for name in files if name == f"{package}.py"]
        for name in files:
            if name.endswith(".py"):
                yield (relative / name).as_posix(), Path(folder) / name


def _passages(owner: Owner) -> Iterator[str]:
    text = _docstring(owner)
    if text:
        yield f"{_declaration(owner)}\n{text}" if not isinstance(owner, ast.Module) else text
    for node in ast.iter_child_nodes(owner):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _passages(node)


def _docstring(owner: Owner) -> str:
    first = owner.body[0] if owner.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return inspect.cleandoc(first.value.value).strip()
    return ""


def _declaration(owner: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(owner, ast.ClassDef):
        return f"class {owner.name}"
    arguments = owner.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return f"{owner.name}({', '.join(names)})"
