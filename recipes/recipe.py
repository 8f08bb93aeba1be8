"""What to build, as a value: read from strict YAML so that a typing error never becomes another engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ..runtime.errors import RecipeError, nearest
from ..runtime.files.safetensors import open_regular, read_at
from ..runtime.files.strict_json import canonical
from .strict_yaml import Document, Mapping, Node

TARGETS = ("cpu", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
# The names of quantize.FORMATS, which needs torch: a mistake in a recipe is told before that is imported.
FORMATS = ("fp8", "nvfp4", "mxfp4", "int8", "int8-g128", "int4", "int4-g128")
SCHEMA = "recipes/recipe.schema.json"
MAX_CONTEXT = 2**24
MAX_BATCH = 4096

_FOLDER = Path(__file__).resolve().parent
_MAX_BYTES = 16 * 1024
_KEYS = ("version", "extends", "quantize", "kv", "targets", "max_context", "max_batch")
_NOT_BUILT_YET = ("parallel", "gates")
NARROW = ("none", "fp8")
"""Formats of activations in large products, and of the KV cache."""
# A 4-bit head costs far more accuracy than its bytes are worth; a tied embedding is stored in the head's format.
_HEAD_FORMAT = {"int4": "int8", "int4-g128": "int8"}


@dataclass(frozen=True)
class QuantizeRule:
    """`format` for the modules that the glob `match` covers (`*` also covers dots), such as `model.layers.*.mlp.*`."""

    match: str
    format: str

    def __post_init__(self) -> None:
        if not self.match:
            raise RecipeError("a rule has an empty match", fix="a glob on module names, such as 'lm_head'")
        _demand(wrong_format(self.format), f"rule {self.match}: ")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers and limits of an engine. Raises RecipeError for values out of range.

    `max_context` None means the model's own context, at most 4096 tokens. activations "fp8": steps of many tokens
    multiply quantized weights on FP8 tensor cores, with activations rounded to E4M3 by token. kv "fp8": the KV cache of
    GPU profiles holds E4M3.
    """

    version: int = 1
    default_format: str = "none"
    rules: tuple[QuantizeRule, ...] = ()
    targets: tuple[str, ...] = ("cpu",)
    max_context: int | None = None
    max_batch: int = 8
    activations: str = "none"
    kv: str = "none"

    def __post_init__(self) -> None:
        _demand(wrong_version(self.version), "")
        _demand(wrong_format(self.default_format), "")
        _demand(wrong_targets(self.targets), "")
        _demand(wrong_narrow(self.activations), "activations: ")
        _demand(wrong_narrow(self.kv), "kv: ")
        if self.max_context is not None:
            _demand(wrong_number(self.max_context, MAX_CONTEXT), "max_context: ")
        _demand(wrong_number(self.max_batch, MAX_BATCH), "max_batch: ")

    def format_of(self, module: str) -> str:
        """The format's name for a module's weight: the last matching rule, else the default; "none" keeps it."""
        for rule in reversed(self.rules):
            if fnmatchcase(module, rule.match):
                return rule.format
        return self.default_format

    def canonical(self) -> bytes:
        """Canonical JSON: equal recipes give equal bytes whatever file, base or flags they came from."""
        return canonical(
            {
                "version": self.version,
                "quantize": {
                    "default": self.default_format,
                    "rules": [{"match": rule.match, "format": rule.format} for rule in self.rules],
                    "activations": self.activations,
                },
                "kv": self.kv,
                "targets": list(self.targets),
                "max_context": self.max_context,
                "max_batch": self.max_batch,
            }
        )


def bundled_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with llmc."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a bundled recipe by name, or a file by its path (anything with a separator or ending in .yaml, .yml).

    Raises RecipeError with line, column and a caret for everything that is not a recipe.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.name != name_or_path:
        return _read(name_or_path, path)
    return _read_bundled(name_or_path)


def with_flags(
    recipe: Recipe | None,
    *,
    quantize: str | None = None,
    activations: str | None = None,
    kv: str | None = None,
    targets: Iterable[str] | None = None,
    max_context: int | None = None,
    max_batch: int | None = None,
) -> Recipe:
    """The recipe with command-line values put over it; None leaves a value as it is.

    `quantize` replaces all weight formats of the recipe, rules too, so that its effect does not depend on the file.
    """
    result = recipe or Recipe()
    if quantize is not None:
        _demand(wrong_format(quantize), "")
        head = _HEAD_FORMAT.get(quantize)
        rules = (QuantizeRule("lm_head", head),) if head else ()
        result = replace(result, default_format=quantize, rules=rules)
    if activations is not None:
        result = replace(result, activations=activations)
    if kv is not None:
        result = replace(result, kv=kv)
    if targets is not None:
        result = replace(result, targets=tuple(targets))
    if max_context is not None:
        result = replace(result, max_context=max_context)
    if max_batch is not None:
        result = replace(result, max_batch=max_batch)
    return result


def wrong_version(version: int) -> str:
    """Why this is no version we read, or ""."""
    return "" if version == 1 else f"recipe version {version} is not known: this llmc reads version 1"


def wrong_format(name: str) -> str:
    """Why this names no weight format, or ""."""
    known = ("none", *FORMATS)
    if name in known:
        return ""
    hint = nearest("none" if name in ("no", "off", "null") else name, known)
    return f"no weight format {name!r}{hint or ', known: ' + ', '.join(known)}"


def wrong_narrow(name: str) -> str:
    """Why this is no format of activations or of the KV cache, or ""."""
    return "" if name in NARROW else f"no format {name!r}{nearest(name, NARROW)}, known: {', '.join(NARROW)}"


def wrong_targets(targets: tuple[str, ...]) -> str:
    """Why these are no targets, or ""."""
    for target in targets:
        if target not in TARGETS:
            return f"no target {target!r}{nearest(target, TARGETS)}, known: {', '.join(TARGETS)}"
    if not targets or len(set(targets)) != len(targets):
        return "targets must name at least one target, each once"
    return ""


def wrong_number(value: int, largest: int) -> str:
    """Why this is no count from 1 to `largest`, or ""."""
    return "" if 1 <= value <= largest else f"{value} is not a number from 1 to {largest}"


def _demand(wrong: str, prefix: str) -> None:
    if wrong:
        raise RecipeError(prefix + wrong)


def _read_bundled(name: str) -> Recipe:
    known = bundled_recipes()
    if name not in known:
        raise RecipeError(
            f"no recipe {name!r}{nearest(name, known)}",
            found=f"bundled recipes: {', '.join(known)}",
            fix="a name of this list, or a file by its path, such as ./my-recipe.yaml",
        )
    return _read(f"{name}.yaml", _FOLDER / f"{name}.yaml")


def _read(shown: str, path: Path) -> Recipe:
    document = Document(shown, _bytes(shown, path), schema=SCHEMA)
    return _recipe(document.mapping())


def _bytes(shown: str, path: Path) -> bytes:
    with open_regular(path, error=RecipeError) as (fd, size):
        if size > _MAX_BYTES:
            raise RecipeError(f"the recipe {shown} is too large", found=f"{size} bytes, at most {_MAX_BYTES}")
        return read_at(fd, 0, size, what=shown, error=RecipeError)


def _recipe(top: Mapping) -> Recipe:
    if "version" in top:
        top["version"].integer(wrong_version)  # first: a later version may have other keys
    for key in _NOT_BUILT_YET:
        if key in top:
            raise top.error_at(key, f"'{key}' is not built yet")
    top.only(_KEYS)
    if "version" not in top:
        raise top.error("'version' is missing: write 'version: 1'")
    base = _read_bundled(top["extends"].text(_wrong_base)) if "extends" in top else Recipe()
    default, rules, activations = base.default_format, base.rules, base.activations
    if "quantize" in top:
        quantize = top["quantize"].mapping()
        quantize.only(("default", "rules", "activations"))
        if "default" in quantize:
            default = quantize["default"].text(wrong_format)
        if "rules" in quantize:
            rules += tuple(_rule(item) for item in quantize["rules"].items())
        if "activations" in quantize:
            activations = quantize["activations"].text(wrong_narrow)
    kv = top["kv"].text(wrong_narrow) if "kv" in top else base.kv
    targets, max_context, max_batch = base.targets, base.max_context, base.max_batch
    if "targets" in top:
        targets = tuple(item.text(lambda name: wrong_targets((name,))) for item in top["targets"].items())
        if wrong := wrong_targets(targets):
            raise top.error_at("targets", wrong)
    if "max_context" in top:
        max_context = top["max_context"].integer(lambda value: wrong_number(value, MAX_CONTEXT))
    if "max_batch" in top:
        max_batch = top["max_batch"].integer(lambda value: wrong_number(value, MAX_BATCH))
    return Recipe(1, default, rules, targets, max_context, max_batch, activations, kv)


def _wrong_base(name: str) -> str:
    known = bundled_recipes()
    return "" if name in known else f"'extends' names no bundled recipe{nearest(name, known)}: {', '.join(known)}"


def _rule(item: Node) -> QuantizeRule:
    rule = item.mapping()
    rule.only(("match", "format"))
    for key in ("match", "format"):
        if key not in rule:
            raise rule.error(f"a rule needs '{key}'")
    match = rule["match"].text(lambda text: "" if text else "an empty match: give a glob on module names")
    return QuantizeRule(match, rule["format"].text(wrong_format))
