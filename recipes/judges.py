"""Judges the values of a recipe: each says why a value is refused, or None."""

from __future__ import annotations

from collections.abc import Collection

from ..runtime.cuda.names import wrong_target
from ..runtime.dtypes import ACTIVATION_FORMATS, FP4_FORMATS, REDUCED_FORMATS, WEIGHT_FORMATS
from ..runtime.engine_file.split import Split
from ..runtime.errors import Wrong, nearest, shown


def wrong_version(version: int) -> Wrong | None:
    """Why `version` is refused, or None."""
    return None if version == 1 else Wrong("expected recipe version 1", shown(version))


def wrong_format(name: str) -> Wrong | None:
    """Why `name` is refused as a weight format, or None."""
    known = ("none", *WEIGHT_FORMATS)
    if name in known:
        return None
    hint = nearest("none" if name in ("no", "off", "null") else name, known)
    return Wrong("expected a weight format", f"{name!r}{hint}", "" if hint else ", ".join(known))


def wrong_precision(key: str, name: str) -> Wrong | None:
    """Why `name` is refused as the format of activations or of the KV cache, or None."""
    known = ACTIVATION_FORMATS if key == "activations" else REDUCED_FORMATS
    asked = f"expected {key} of {' or '.join(known)}"
    return None if name in known else Wrong(asked, f"{name!r}{nearest(name, known)}")


def has_use(activations: str, weights: str) -> bool:
    """Whether activations in a format change the products of weights in a format."""
    return weights != "none" if activations == "fp8" else activations == weights


def wrong_pair(activations: str, weights: Collection[str]) -> Wrong | None:
    """Why a recipe with these formats of activations and of weights is refused, or None."""
    if activations not in FP4_FORMATS or activations in weights:
        return None
    asked = f"cannot use activations {activations} beside weights in other formats"
    return Wrong(asked, f"weights in {' and '.join(sorted(weights))}", f"quantize {activations}, or no activations")


def wrong_targets(targets: tuple[str, ...]) -> Wrong | None:
    """Why `targets` are refused, or None."""
    for target in targets:
        if wrong := wrong_target(target):
            return wrong
    if not targets or len(set(targets)) != len(targets):
        return Wrong("expected targets to name at least one target, each once", ", ".join(targets) or "none")
    return None


def wrong_number(key: str, value: int, largest: int) -> Wrong | None:
    """Why `value` is refused as a count from 1 to `largest`, or None."""
    return None if 1 <= value <= largest else Wrong(f"expected {key} from 1 to {largest}", shown(value))


def wrong_parallel(names: tuple[str, ...]) -> Wrong | None:
    """Why `names` are refused as splits over ranks, or None."""
    asked = "expected parallel to name splits such as tp1, tp2, pp2, tp4-pp2 or tp2-ep4, each once"
    try:
        splits = [Split.parse(name) for name in names]
    except ValueError as error:
        return Wrong(asked, str(error))
    return Wrong(asked, ", ".join(names) or "none") if not names or len({*splits}) != len(splits) else None
