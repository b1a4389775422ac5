"""Command lines that name several sources: `--source web --input a b --source books --format text --input
c`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from pretrain.corpus.documents import ReadOptions
from pretrain.corpus.sources import FORMATS, SourceSpec
from pretrain.errors import UserError

GROUPED = "membart.sources"
OF_SOURCE = {
    "--input": str,
    "--format": str,
    "--text-field": str,
    "--document-tokens": int,
    "--max-document-bytes": int,
    "--max-documents": int,
    "--max-tokens": int,
}
"""Options that belong to the `--source` before them."""

_READ = ReadOptions()

# The order of options decides what they mean, so commands take their sources from `sources_of`; these
# declarations make the options known to the parser and to --help.
Source = Annotated[
    list[str], typer.Option(help="Name of a source; options up to the next --source are its own.")
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        help="Files, folders, globs, http(s)://..., hf://NAME[:config][:split] or docs://[PACKAGE]. "
        "The source called docs needs none."
    ),
]
Format = Annotated[list[str] | None, typer.Option(help=", ".join(FORMATS), show_default=FORMATS[0])]
TextField = Annotated[
    list[str] | None,
    typer.Option(help="Where the text of a JSON record is, as in body.text.", show_default=_READ.text_field),
]
DocumentTokens = Annotated[
    list[int] | None,
    typer.Option(
        help="Length of documents cut from sentence lines.", show_default=str(_READ.document_tokens)
    ),
]
MaxDocumentBytes = Annotated[
    list[int] | None,
    typer.Option(help="Longer records are refused.", show_default=str(_READ.max_document_bytes)),
]
MaxDocuments = Annotated[list[int] | None, typer.Option(help="Stop the source after so many documents.")]
MaxTokens = Annotated[list[int] | None, typer.Option(help="Stop the source after so many tokens.")]


class SourceGroups(TyperCommand):
    """Notes the order of the options of sources; `--input` takes all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spell `--input a b` as `--input a --input b` and parse as usual."""
        order: list[tuple[str, str]] = []
        plain: list[str] = []
        current = ""
        for word in args:
            name, equals, value = word.partition("=")
            if word.startswith("--"):
                current = name if name in OF_SOURCE or name == "--source" else ""
                plain.append(word)
                if equals and current:
                    order.append((current, value))
                    current = current if current == "--input" else ""
            elif current:
                plain += [word] if plain[-1] == current else [current, word]
                order.append((current, word))
                current = current if current == "--input" else ""
            else:
                plain.append(word)
        ctx.meta[GROUPED] = order
        return super().parse_args(ctx, plain)


def sources_of(ctx: typer.Context) -> list[SourceSpec]:
    """The sources of the command line. Raises UserError for an option before any source."""
    groups: list[dict[str, Any]] = []
    for option, value in ctx.meta[GROUPED]:
        if option == "--source":
            groups.append({"name": value, "inputs": []})
        elif not groups:
            raise UserError(f"{option} comes before any --source", mend="name the source first")
        elif option == "--input":
            groups[-1]["inputs"].append(value)
        else:
            groups[-1][option.removeprefix("--").replace("-", "_")] = OF_SOURCE[option](value)
    return [_spec(group) for group in groups]


def _spec(group: dict[str, Any]) -> SourceSpec:
    reading = {key: group.pop(key) for key in ReadOptions.__dataclass_fields__ if key in group}
    inputs = tuple(group.pop("inputs"))
    return SourceSpec(inputs=inputs, read=ReadOptions(**reading), **group)
