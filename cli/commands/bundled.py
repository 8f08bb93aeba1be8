"""`llmc recipes`: lists the bundled recipes, or prints one as the beginning of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..common import complete, console, options

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="Print this one: a bundled recipe, or a file by its path.",
        show_default=False,
        autocompletion=complete.recipes,
    ),
]


def recipes(name: Name = None, json: options.Json = False) -> None:
    """List the bundled recipes, or print one."""
    from ...recipes.recipe import bundled_recipes, recipe_path

    if name is not None:
        facts = _facts(name)
        console.show(facts, recipe_path(name).read_text(encoding="utf-8").rstrip("\n"), json)
        return
    found = [_facts(one) for one in bundled_recipes()]
    rows = [(one["name"], _weights(one), ", ".join(one["recipe"]["targets"]), one["about"]) for one in found]
    console.show({"recipes": found}, console.table([("recipe", "weights", "targets", "about"), *rows], indent=""), json)


def _facts(name: str) -> dict[str, Any]:
    """A recipe as JSON, with its first comment."""
    from ...recipes.recipe import load_recipe, recipe_path

    recipe, path = load_recipe(name), recipe_path(name)
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    about = first.lstrip("# ") if first.startswith("#") else ""
    return {"name": path.stem if Path(name) != path else name, "about": about, "recipe": recipe.to_json()}


def _weights(facts: dict[str, Any]) -> str:
    quantize = facts["recipe"]["quantize"]
    return ", ".join([quantize["default"], *(f"{rule['match']} {rule['format']}" for rule in quantize["rules"])])
