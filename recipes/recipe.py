"""What to build, as a value: read from strict YAML so that a typing error never becomes another engine."""

from __future__ import annotations

import json
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from ..runtime.chips import SM
from ..runtime.cuda.names import targets_of
from ..runtime.engine_file.split import Split
from ..runtime.errors import RecipeError, Wrong, demand, nearest, path_of, several, text_of
from ..runtime.files.safetensors import open_regular, read_at
from .flags import BuildFlags
from .judges import (
    wrong_format,
    wrong_number,
    wrong_pair,
    wrong_parallel,
    wrong_precision,
    wrong_targets,
    wrong_version,
)
from .strict_yaml import Document, Judge, Mapping, Node

SCHEMA = "recipes/recipe.schema.json"
MAX_CONTEXT = 2**24
MAX_BATCH = 4096

_FOLDER = Path(__file__).resolve().parent
_MAX_BYTES = 16 * 1024
_KEYS = ("version", "extends", "quantize", "kv", "targets", "parallel", "max_context", "max_batch")
_NOT_BUILT_YET = ("gates",)
_HEAD_FORMAT = {"int4": "int8", "int4-g128": "int8"}
"""A 4-bit head costs far more accuracy than its bytes are worth; a tied embedding is stored in the head's format."""


@dataclass(frozen=True)
class QuantizeRule:
    """`format` for the modules that the glob `match` covers (`*` also covers dots), such as `model.layers.*.mlp.*`."""

    match: str
    format: str

    def __post_init__(self) -> None:
        for name in ("match", "format"):
            text_of(f"a rule's {name}", getattr(self, name))
        if not self.match:
            raise RecipeError("expected a rule's match as a glob on module names, such as 'lm_head'", found="''")
        _demand(wrong_format(self.format))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers and limits of an engine.

    Raises:
        RecipeError: a value is out of range.
    """

    version: int = 1
    default_format: str = "none"
    rules: tuple[QuantizeRule, ...] = ()
    targets: tuple[str, ...] = ("cpu",)
    """A GPU's name, such as "h100", becomes the target that it runs; "native" becomes the targets of this machine.
    In one text, commas separate them."""
    parallel: tuple[str, ...] = ("tp1",)
    """Splits over ranks, each a profile of every target; "tp1" is one rank. In one text, commas separate them."""
    max_context: int | None = None
    """Tokens; None is the model's own context, at most 4096."""
    max_batch: int = 8
    activations: str = "none"
    """With "fp8", large steps multiply on FP8 tensor cores, with activations rounded to E4M3 by token. With "nvfp4" or
    "mxfp4", those whose weights have that format multiply on FP4 tensor cores, both sides rounded in groups."""
    kv: str = "none"
    """With "fp8", the KV cache of GPU profiles holds E4M3."""

    def __post_init__(self) -> None:
        self._demand_types()
        for key in ("targets", "parallel"):
            names = getattr(self, key)
            names = names.split(",") if isinstance(names, str) else names
            object.__setattr__(self, key, tuple(map(str.strip, several(key, names, text_of))))
        _demand(wrong_version(self.version))
        _demand(wrong_format(self.default_format))
        _demand(wrong_targets(self.targets))
        targets = dict.fromkeys(target for name in self.targets for target in targets_of(name))
        object.__setattr__(self, "targets", tuple(targets))
        _demand(wrong_parallel(self.parallel))
        object.__setattr__(self, "parallel", tuple(split.name for split in self.splits))
        _demand(wrong_precision("activations", self.activations) or wrong_pair(self.activations, self._weight_formats))
        _demand(wrong_precision("kv", self.kv))
        if self.max_context is not None:
            _demand(wrong_number("max_context", self.max_context, MAX_CONTEXT))
        _demand(wrong_number("max_batch", self.max_batch, MAX_BATCH))

    def _demand_types(self) -> None:
        for name in ("version", "max_context", "max_batch"):
            if name != "max_context" or self.max_context is not None:
                demand(name, getattr(self, name), "a whole number", int)
        for name, value in {"quantize": self.default_format, "activations": self.activations, "kv": self.kv}.items():
            text_of(name, value)
        demand("rules", self.rules, "a tuple of QuantizeRule", tuple)
        for rule in self.rules:
            demand("each of rules", rule, "a QuantizeRule", QuantizeRule)

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(map(Split.parse, self.parallel))

    @property
    def profiles(self) -> tuple[str, ...]:
        """The names of the profiles that an engine gets: every split of every target."""
        return tuple(split.profile(target) for target in self.targets for split in self.splits)

    def format_of(self, module: str) -> str:
        """The format's name for a module's weight: the last matching rule, else the default; "none" keeps it."""
        for rule in reversed(self.rules):
            if fnmatchcase(module, rule.match):
                return rule.format
        return self.default_format

    @property
    def _weight_formats(self) -> set[str]:
        return {self.default_format, *(rule.format for rule in self.rules)}

    def idle(self) -> dict[str, tuple[str, str]]:
        """The keys that change nothing in this recipe, each with the reason and what would give it an effect."""
        found: dict[str, tuple[str, str]] = {}
        if not any(target in SM for target in self.targets):
            why = f"targets {', '.join(self.targets)}, of which none is a GPU's", "targets such as cpu,h100"
            found = {"activations": why, "kv": why}
        elif self._weight_formats == {"none"}:
            found["activations"] = "no weight that is quantized", "quantize fp8"
        return {key: why for key, why in found.items() if getattr(self, key) != "none"}

    def to_json(self) -> dict[str, Any]:
        """Equal recipes give equal JSON whatever file, base or flags they came from."""
        return {
            "version": self.version,
            "quantize": {
                "default": self.default_format,
                "rules": [{"match": rule.match, "format": rule.format} for rule in self.rules],
                "activations": self.activations,
            },
            "kv": self.kv,
            "targets": list(self.targets),
            **({} if self.parallel == ("tp1",) else {"parallel": list(self.parallel)}),
            "max_context": self.max_context,
            "max_batch": self.max_batch,
        }


def bundled_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with llmc."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def name_of(recipe: Recipe) -> str | None:
    """The bundled recipe that has this content, whatever file or flags it came from; None if none has."""
    return next((name for name in bundled_recipes() if load_recipe(name) == recipe), None)


def load_recipe(name_or_path: str) -> Recipe:
    """Read a bundled recipe by name, or a file by its path (anything with a separator or ending in .yaml, .yml).

    Raises:
        RecipeError: it is not a recipe; the message gives line, column and a caret.
    """
    path = recipe_path(name_or_path)
    return _read(f"{name_or_path}.yaml" if path.parent == _FOLDER else name_or_path, path)


def recipe_path(name_or_path: str) -> Path:
    """The file of a recipe: of a bundled one by name, or any by its path.

    Raises:
        RecipeError: no bundled recipe has this name; names the nearest.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.name != name_or_path:
        return path
    known = bundled_recipes()
    if name_or_path not in known:
        raise RecipeError(
            f"cannot find the recipe {name_or_path!r}{nearest(name_or_path, known)}",
            found=f"bundled recipes: {', '.join(known)}",
            fix="a name of this list, or a file by its path, such as ./my-recipe.yaml",
        )
    return _FOLDER / f"{name_or_path}.yaml"


def with_flags(recipe: Recipe | AnyMapping[str, Any] | str | Path | None, **flags: Unpack[BuildFlags]) -> Recipe:
    """The recipe, also one by name or path (see `load_recipe`) or as a mapping, with command-line values put over it.

    `quantize` replaces all weight formats of the recipe, rules too, so that its effect does not depend on the file.

    Raises:
        RecipeError: a value is out of range, or changes nothing.
    """
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    if "quantize" in given:
        given["default_format"] = text_of("quantize", given.pop("quantize"))
        head = _HEAD_FORMAT.get(given["default_format"])
        given["rules"] = (QuantizeRule("lm_head", head),) if head else ()
    result = replace(_found(recipe), **given)
    for key, (reason, fix) in result.idle().items():
        if key in given:
            asked = f"cannot use {key} {given[key]}, which would change nothing"
            raise RecipeError(asked, found=reason, fix=f"{fix}, or no {key}")
    return result


def _found(recipe: Recipe | AnyMapping[str, Any] | str | Path | None) -> Recipe:
    if isinstance(recipe, AnyMapping):
        try:
            text = json.dumps({"version": 1, **recipe}, indent=1, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RecipeError("expected a recipe as keys and values of a recipe file", found=str(error)) from None
        return _recipe(Document("recipe", text, schema=SCHEMA).mapping())  # JSON is YAML
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    return load_recipe(recipe if isinstance(recipe, str) else str(path_of("recipe", recipe)))


def _demand(wrong: Wrong | None) -> None:
    if wrong:
        raise RecipeError(wrong.asked, found=wrong.found, fix=wrong.known)


def _read(shown: str, path: Path) -> Recipe:
    with open_regular(path, error=RecipeError) as (fd, size):
        if size > _MAX_BYTES:
            raise RecipeError(f"expected at most {_MAX_BYTES} bytes in the recipe {shown}", found=str(size))
        data = read_at(fd, 0, size, what=shown, error=RecipeError)
    return _recipe(Document(shown, data, schema=SCHEMA).mapping())


def _recipe(top: Mapping) -> Recipe:
    if "version" in top:
        top["version"].integer(wrong_version)  # first: a later version may have other keys
    for key in _NOT_BUILT_YET:
        if key in top:
            raise top.error_at(key, f"'{key}' is not built yet")
    top.only(_KEYS)
    if "version" not in top:
        raise top.error("expected 'version: 1'")
    base = load_recipe(top["extends"].text(_wrong_base)) if "extends" in top else Recipe()
    found: dict[str, Any] = {}
    if "quantize" in top:
        quantize = top["quantize"].mapping()
        quantize.only(("default", "rules", "activations"))
        found |= _texts(quantize, default=wrong_format, activations=partial(wrong_precision, "activations"))
        if "rules" in quantize:
            found["rules"] = base.rules + tuple(_rule(item) for item in quantize["rules"].items())
    found |= _texts(top, kv=partial(wrong_precision, "kv"))
    if "targets" in top:
        found["targets"] = tuple(item.text(lambda name: wrong_targets((name,))) for item in top["targets"].items())
        if wrong := wrong_targets(found["targets"]):
            raise top.error_at("targets", str(wrong))
    if "parallel" in top:
        found["parallel"] = tuple(item.text(lambda name: wrong_parallel((name,))) for item in top["parallel"].items())
        if wrong := wrong_parallel(found["parallel"]):
            raise top.error_at("parallel", str(wrong))
    for key, largest in (("max_context", MAX_CONTEXT), ("max_batch", MAX_BATCH)):
        if key in top:
            found[key] = top[key].integer(partial(wrong_number, key, largest=largest))
    return replace(base, **found)


def _texts(mapping: Mapping, **judges: Judge[str]) -> dict[str, str]:
    """The texts that a mapping has of these keys, by the field of a recipe."""
    fields = {"default": "default_format"}
    return {fields.get(key, key): mapping[key].text(wrong) for key, wrong in judges.items() if key in mapping}


def _wrong_base(name: str) -> Wrong | None:
    known = bundled_recipes()
    asked = "expected 'extends' to name a bundled recipe"
    return None if name in known else Wrong(asked, f"{name!r}{nearest(name, known)}", ", ".join(known))


def _rule(item: Node) -> QuantizeRule:
    rule = item.mapping()
    rule.only(("match", "format"))
    for key in ("match", "format"):
        if key not in rule:
            raise rule.error(f"expected '{key}' in a rule")
    match = rule["match"].text(lambda text: "" if text else "expected a glob on module names")
    return QuantizeRule(match, rule["format"].text(wrong_format))
