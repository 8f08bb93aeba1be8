"""Experts that files have in a weight format already are kept so: what a recipe may say of them, and what a build says.

To quantize them anew would lose accuracy twice, and mxfp4 of GPT-OSS is what its weights were trained in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase

from ..recipes.recipe import Recipe
from ..runtime.errors import RecipeError


def formats_of(recipe: Recipe, stored: Mapping[str, str]) -> Callable[[str], str]:
    """The format that a module's weight has in the engine: that of the files, else what the recipe says."""
    return lambda module: stored.get(module) or recipe.format_of(module)


def require_kept(recipe: Recipe, linears: Collection[str], stored: Mapping[str, str]) -> None:
    """Check that no rule of the recipe asks for another format of `stored` linears alone.

    A rule that matches other `linears` too holds for those, as the default does.

    Raises:
        RecipeError: a rule does.
    """
    for rule in recipe.rules:
        matched = [name for name in linears if fnmatchcase(name, rule.match)]
        others = {stored.get(name, "") for name in matched} - {rule.format}
        if matched and others and "" not in others:
            raise RecipeError(
                f"cannot apply recipe rule {rule.match!r} ({rule.format})",
                found=f"experts that the files store in {' and '.join(sorted(others))}, which llmc keeps as they are",
                fix=f"no such rule, or `{rule.match}: {min(others)}`; other formats need a checkpoint in bf16",
            )


def kept_notes(recipe: Recipe, stored: Mapping[str, str]) -> Iterator[str]:
    """A note for each format in which linears stay although the recipe has another for them."""
    kept = Counter((fmt, recipe.format_of(name)) for name, fmt in stored.items() if recipe.format_of(name) != fmt)
    for (fmt, asked), count in kept.items():
        others = "" if asked == "none" else f"; {asked} is for other weights"
        yield f"experts stay in {fmt}, as the files store them ({count} stacks){others}"
