"""Checks that a recipe's formats can store every linear of a model, and proposes the one rule that makes them.

A block that does not divide a layer's width refuses the whole build; the rule leaves exactly the linears concerned as
they are, in all layers, and the refusal shows the recipe with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import takewhile

from ..quantize import FORMATS
from ..recipes.recipe import QuantizeRule, Recipe, with_flags
from ..runtime.errors import Unsupported
from .families.spec import DecoderSpec

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_WITHIN = 8
"""Characters from the end of a name at which kinds of linears may differ."""
Linears = Mapping[str, tuple[int, int]]
"""Rows and columns of a weight by the module's name."""


def require_storable(recipe: Recipe, spec: DecoderSpec, stored: Collection[str] = ()) -> None:
    """Check every linear's shape against its format, but those that files have `stored` in a format already.

    Raises:
        Unsupported: a format cannot store some; proposes one rule, and shows the recipe that has it.
    """
    linears = {name: shape for name, shape in spec.linears().items() if name not in stored}
    reasons = {name: why for name in linears if (why := _reason(recipe.format_of(name), linears[name]))}
    if not reasons:
        return
    formats = dict.fromkeys(recipe.format_of(name) for name in reasons)
    rule = QuantizeRule(_glob(recipe, linears, reasons), "none")
    found = {why: [name for name, one in reasons.items() if one == why] for why in reasons.values()}
    raise Unsupported(
        f"cannot store {', '.join(_kinds(reasons))} as {' or '.join(formats)}",
        found="; ".join(f"{why} ({len(names)} of {len(linears)} linears)" for why, names in found.items()),
        fix=f"a recipe rule with `{rule.match}: none`, as in this file for --recipe, without --quantize:\n"
        + _as_file(_with_rule(recipe, rule, linears)),
    )


def _reason(name: str, shape: tuple[int, int]) -> str:
    return "" if name == "none" else FORMATS[name].check(*shape)


def _kinds(names: Collection[str]) -> list[str]:
    """Names with `*` for the number of a layer, each once."""
    return [*dict.fromkeys(_LAYER.sub("*", name) for name in names)]


def _glob(recipe: Recipe, linears: Linears, concerned: Collection[str]) -> str:
    """The glob that covers all linears concerned, and the fewest others that are quantized.

    A rule for the head that only --quantize has put there is not counted on: who writes a recipe may leave it out.
    """
    own_head = recipe.rules == with_flags(None, quantize=recipe.default_format).rules
    wanted = {name for name in linears if own_head and _reason(recipe.default_format, linears[name])} | {*concerned}
    others = [name for name in linears if name not in wanted and recipe.format_of(name) != "none"]
    globs = [one for one in _candidates(_kinds(wanted), _kinds(others)) if all(fnmatchcase(n, one) for n in wanted)]
    return min(globs, key=lambda one: sum(fnmatchcase(name, one) for name in others))


def _candidates(wanted: list[str], others: list[str]) -> Iterator[str]:
    """Globs, the plainest first."""
    if len(wanted) == 1:
        yield wanted[0]
    if not others:
        yield "*"
    end = _beginning(one[::-1] for one in wanted)[::-1]
    yield f"*{end}"
    yield f"{_beginning(wanted)}*{end}"
    for back in range(1, min(_WITHIN, *map(len, wanted)) + 1):
        marks = sorted({one[-back] for one in wanted})
        if all(one[-back:][:1] not in marks for one in others):
            rest = "?" * (back - 1 - len(end)) + end[-back + 1 :] if back > 1 else ""
            yield f"*[{''.join(marks)}]{rest}"
    yield "*"


def _beginning(names: Iterable[str]) -> str:
    """The characters with which all names begin."""
    return "".join(one[0] for one in takewhile(lambda at: len({*at}) == 1, zip(*names, strict=False)))


def _with_rule(recipe: Recipe, rule: QuantizeRule, linears: Linears) -> Recipe:
    """The recipe with the rule at the place where it changes the fewest formats, and all linears can be stored."""

    def changed(one: Recipe) -> tuple[int, int]:
        formats = {name: one.format_of(name) for name in linears}
        refused = sum(bool(_reason(formats[name], shape)) for name, shape in linears.items())
        return refused, sum(formats[name] != recipe.format_of(name) for name in linears)

    rules = recipe.rules
    places = [replace(recipe, rules=(*rules[:at], rule, *rules[at:])) for at in range(len(rules) + 1)]
    return min(reversed(places), key=changed)


def _as_file(recipe: Recipe) -> str:
    """The YAML of a recipe, without the values that a recipe has by itself. A JSON text is one of YAML."""
    lines = ["version: 1", "quantize:", f"  default: {recipe.default_format}", "  rules:"]
    lines += [f"    - {{match: {json.dumps(rule.match)}, format: {rule.format}}}" for rule in recipe.rules]
    if recipe.activations != "none":
        lines.append(f"  activations: {recipe.activations}")
    plain = Recipe()
    for key in ("kv", "targets", "parallel", "max_context", "max_batch"):
        if (value := getattr(recipe, key)) != getattr(plain, key):
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(f"    {line}" for line in lines)
