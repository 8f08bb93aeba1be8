"""The table of weight formats by name, which recipes, passes and the engine's writer read."""

from __future__ import annotations

from ..runtime.dtypes import WEIGHT_FORMATS
from ..runtime.errors import RecipeError, nearest
from .format import Format, require_finite
from .formats.fp8 import FP8
from .formats.int4 import INT4, INT4_G128
from .formats.int8 import INT8, INT8_G128
from .formats.mxfp4 import MXFP4
from .formats.nvfp4 import NVFP4

_MADE = {f.name: f for f in (FP8, NVFP4, MXFP4, INT8, INT8_G128, INT4, INT4_G128)}
FORMATS: dict[str, Format] = {name: _MADE[name] for name in WEIGHT_FORMATS}


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        RecipeError: no format has this name; the nearest one is suggested.
    """
    if name not in FORMATS:
        found = f"{name!r}{nearest(name, FORMATS)}"
        raise RecipeError("expected a weight format", found=found, fix=f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


__all__ = ["FORMATS", "Format", "format_named", "require_finite"]
