"""The table of families as text: cells for a terminal, and docs/families.md, which `make families` writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...runtime.chips import TARGETS
from ...runtime.dtypes import WEIGHT_FORMATS
from ..config.foreign import FOREIGN
from ..families.reading import LOGITS
from .rows import Row, Wrapper, rows, wrappers

HEAD = ("model type", "architecture", "formats", "targets", "splits", "compared with", "beyond Llama")
WRAPPER_HEAD = ("model type", "architecture", "text model", "compared with", "left out")
_BEGINNING = """# Model families

What llmc computes, and what it refuses by name. `make families` writes this page from the table of families and from
the records of a small example config of each; `llmc families` prints the same table.
"""
_PATH = Path(__file__).parents[2] / "docs" / "families.md"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, in the order of HEAD."""
    optional = f"if its config says so: {', '.join(row.optional)}" if row.optional else ""
    return (
        row.model_type,
        row.architecture,
        "all" if row.formats == WEIGHT_FORMATS else ", ".join(row.formats),
        "all" if not row.gaps else f"cpu; sm_* lacks {', '.join(row.gaps)}",
        "; ".join(f"no {kind}: {why}" for kind, why in row.unsplit.items()) or "all",
        row.verified,
        "; ".join(filter(None, (", ".join(row.features), optional))),
    )


def wrapper_cells(row: Wrapper) -> tuple[str, ...]:
    """A row of the table of models of images and text, in the order of WRAPPER_HEAD."""
    return row.model_type, row.architecture, row.text, row.verified, ", ".join(row.left_out)


def legend() -> tuple[str, ...]:
    """What the words of the table stand for."""
    return (
        f"All formats: none, {', '.join(WEIGHT_FORMATS)}; a block must divide the width of a linear.",
        f"All targets: {', '.join(TARGETS)}. All splits: tpN and ppM, where N divides the heads and the MLP's"
        " width; epE of models with experts.",
        f"{LOGITS.capitalize()}: those of 5.23.0 in fp32, on small random weights; greedy tokens are equal.",
    )


def page() -> str:
    """The text of docs/families.md."""
    refused = [(", ".join(f"`{one}`" for one in names.split()), ", ".join(lacks)) for names, lacks in FOREIGN.items()]
    parts = [
        _BEGINNING,
        _table(HEAD, _quoted(map(cells, rows()))),
        "\n".join(f"* {line}" for line in legend()),
        "\n## Images, sound and text\n",
        "The text model of these is compiled; its config may name another family of the first table.\n",
        _table(WRAPPER_HEAD, _quoted(map(wrapper_cells, wrappers()))),
        "## Refused by name\n",
        "The refusal says what is missing, the nearest family that llmc computes, and the fields of config.json that",
        "differ from that family's. An architecture in no table is refused with the latter two.\n",
        _table(("`model_type`, also with `_text` at its end", "not computed"), refused),
    ]
    return "\n".join(parts)


def _quoted(lines: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    return [(f"`{model_type}`", f"`{architecture}`", *rest) for model_type, architecture, *rest in lines]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)) + "\n"


if __name__ == "__main__":
    _PATH.write_text(page(), encoding="utf-8")
