"""The weight formats by name: the one table that recipes, passes and the store look things up in."""

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
    """The format of that name. Raises RecipeError with the nearest known name."""
    if name not in FORMATS:
        raise RecipeError(f"unknown weight format {name!r}{nearest(name, FORMATS)}", fix=f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


__all__ = ["FORMATS", "Format", "format_named", "require_finite"]
