"""Names of GPUs as users and drivers write them, and `native`: each leads to a compute capability, a target, a chip."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..chips import CHIPS, GPUS, SM, Chip, capability, target_for
from ..errors import RecipeError, ResourceError, Wrong
from . import gpus

CPU, NATIVE = "cpu", "native"
"""Targets that are no GPU's name: any machine's, and those of the machine that this process runs on."""
_WITHOUT_FIGURES: Mapping[int, str] = {
    60: "p100",
    61: "p4 p40",
    70: "v100",
    75: "t4 rtx4000 rtx5000 rtx6000 rtx8000",
    80: "a30 a800",
    86: "a2 a10g a16 a40 rtxa2000 rtxa4000 rtxa4500 rtxa5000 rtxa5500 rtxa6000",
    87: "orinnx orinnano",
    89: "l20 l40 rtx2000ada rtx4000ada rtx4500ada rtx5000ada rtx5880ada rtx6000ada",
    90: "h20 h800 gh200",
    100: "b100",
    103: "gb300",
    110: "thor",
    120: "rtxpro2000 rtxpro4000 rtxpro4500 rtxpro5000 rtxpro6000maxq",
}
"""Other GPUs by compute capability (NVIDIA's list of CUDA GPUs): an engine can be built for them, but not priced."""
_SERIES = {"rtx50": 120, "rtx40": 89, "rtx30": 86, "rtx20": 75, "gtx16": 75, "gtx10": 61}
"""Series of GeForce by compute capability; the model is two more digits."""
_MODEL = re.compile(r"([gr]tx\d\d)[5-9]0(?:ti|super|d|laptop)*")
_WORDS = """
    nvidia geforce tesla quadro gpu jetson agx dgx blackwell generation edition nvgpu server
    hgx ac sxm sxm2 sxm3 sxm4 sxm5 sxm6 hbm2 hbm2e hbm3 hbm3e
"""
_SAME = frozenset(_WORDS.split())
"""Words around a GPU's name that change neither its compute capability nor its figures."""
_BOARDS = ("pcie", "nvl", "workstation")
"""Boards of the same compute capability, but with other figures than the SXM module or the server edition."""
_MEMORY = re.compile(r"(\d{1,4})gb")
_CAPABILITY = re.compile(r"(?:sm)?(\d{1,2})\.?(\d)[af]?")
_FORM = re.compile(r"sxm\d?|pcie|nvl")
_OTHER_NAMES = {"spark": "gb10", **{f"a{number}": f"rtxa{number}" for number in (2000, 4000, 4500, 5000, 5500, 6000)}}


@dataclass(frozen=True)
class _Name:
    """A GPU as somebody writes it: "NVIDIA A100-SXM4-80GB" is a100 with 80 GB."""

    plain: str
    board: str
    """The board if it is not the one with the figures."""
    memory: int
    """Gigabytes; 0 if they are not named."""

    @property
    def sm(self) -> int | None:
        """Compute capability, 90 for 9.0; None if no such GPU is known."""
        if self.plain in CHIPS:
            return CHIPS[self.plain].sm
        if model := _MODEL.fullmatch(self.plain):
            return _SERIES.get(model[1])
        return next((sm for sm, names in _WITHOUT_FIGURES.items() if self.plain in names.split()), None)


def _read(name: str) -> _Name:
    spaced = _FORM.sub(r" \g<0> ", name.lower())  # h100sxm
    words = [word for word in re.split(r"[\s_/()-]+", spaced) if word and word not in _SAME]
    memory = next((int(found[1]) for word in words if (found := _MEMORY.fullmatch(word))), 0)
    plain = "".join(word for word in words if word not in _BOARDS and not _MEMORY.fullmatch(word))
    if found := _CAPABILITY.fullmatch(plain):  # sm_90, SM 90a, 9.0, 90
        plain = f"sm_{found[1]}{found[2]}"
    return _Name(_OTHER_NAMES.get(plain, plain), "".join(word for word in words if word in _BOARDS), memory)


def targets_of(name: str) -> tuple[str, ...]:
    """The target of this name or of the GPU with this name; of "native", those of this machine's GPUs, else cpu.

    Empty if there is none: the name is unknown, or llmc does not build for GPUs of its compute capability.
    """
    if name.lower() == CPU:
        return (CPU,)
    here = name.lower() == NATIVE
    capabilities = [gpu.sm for gpu in gpus.detect().gpus] if here else [known_capability(name)]
    found = dict.fromkeys(target for sm in capabilities if sm is not None and (target := target_for(sm)))
    return tuple(found) or ((CPU,) if here else ())


def wrong_target(name: str) -> Wrong | None:
    """Why `name` is refused as a target, or None. No name is suggested: the nearest may be of another generation."""
    if targets_of(name):
        return None
    sm = known_capability(name)
    has = "" if sm is None else f" of compute capability {capability(sm)}"
    named = {target: [one for one in GPUS if target_for(CHIPS[one].sm) == target] for target in reversed(SM)}
    known = ", ".join(f"{target} ({', '.join(names)})" for target, names in named.items())
    return Wrong("expected a target", f"{name!r}{has}", f"{CPU}, {NATIVE} (this machine), {known}")


def chip_named(name: str) -> Chip:
    """The figures of the GPU with this name; of "native", those of this machine's first GPU.

    Raises:
        RecipeError: no such GPU is known, or its figures are not.
        ResourceError: "native" on a machine without a GPU.
    """
    asked = _read(_first_here().name) if name.lower() == NATIVE else _read(name)
    found = CHIPS.get(asked.plain)
    if found is not None and not asked.board and asked.memory in (0, found.gigabytes):
        return found
    if asked.sm is None:
        raise _unknown(name)
    same = [one for one in GPUS if CHIPS[one].sm == asked.sm]
    raise RecipeError(
        f"cannot find the figures of {name!r}",
        found=f"compute capability {capability(asked.sm)}; figures are known of {', '.join(GPUS)}",
        fix=f"{' or '.join(same)}, of the same capability" if same else "one of these",
    )


def known_capability(name: str) -> int | None:
    """The compute capability, 90 for 9.0, of the GPU with this name; None if no such GPU is known."""
    return _read(name).sm


def capability_of(name: str) -> int:
    """The compute capability of the GPU with this name; of "native", that of this machine's first GPU.

    Raises:
        RecipeError: no such GPU is known.
        ResourceError: "native" on a machine without a GPU.
    """
    sm = _first_here().sm if name.lower() == NATIVE else known_capability(name)
    if sm is None:
        raise _unknown(name)
    return sm


def _first_here() -> gpus.Gpu:
    found = gpus.detect()
    if not found.gpus:
        raise ResourceError("cannot find a GPU of this machine", found=found.problem, fix="a GPU's name, such as h100")
    return found.gpus[0]


def _unknown(name: str) -> RecipeError:
    return RecipeError(f"cannot find chip {name!r}", fix=f"one of {', '.join(CHIPS)}, or {NATIVE}")
