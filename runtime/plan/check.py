"""Checks a launch plan that was read, before anything is allocated: names, formulas, and bounds of buffers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..dtypes import KERNEL_DTYPES
from ..engine_file.split import MAX_DEGREE
from ..errors import EngineError, nearest
from .collective import OPS, Collective
from .formula import SIZES, value

if TYPE_CHECKING:
    from .plan import Argument, Plan, Program, Tensor

KINDS = ("weight", "cache", "input", "state", "buffer")
"""Read from the engine; a layer's keys or values; filled before each step; kept between steps; used by one program."""


def check(plan: Plan, what: str) -> None:
    """Check, before anything is allocated, that names and modules exist and that buffers lie inside their arenas."""
    rank = plan.rank
    if not (1 <= rank.tp <= MAX_DEGREE and 1 <= rank.pp <= MAX_DEGREE and rank.number < rank.tp * rank.pp):
        raise EngineError(f"expected a rank of a split in {what}", found=f"{rank.number} of {rank.tp} * {rank.pp}")
    counts = {cache.size: cache.blocks for cache in plan.caches}
    if len(counts) < len(plan.caches) or not all(0 < count <= plan.max_blocks for count in counts.values()):
        found = ", ".join(f"{cache.size} {cache.blocks}" for cache in plan.caches)
        kinds = f"distinct kinds of cache in {what}, each of 1 to {plan.max_blocks} blocks"
        raise EngineError(f"expected {kinds}", found=found[:200])
    sizes = dict.fromkeys((*SIZES, *counts, "slots"), 1)
    for index, program in enumerate(plan.programs):
        where = f"program {index} of {what}"
        known = {**plan.tensors, **program.buffers}
        for name, tensor in known.items():
            _check_tensor(tensor, sizes, f"tensor {name!r} of {where}")
        for name, tensor in program.buffers.items():
            if tensor.kind != "buffer" or tensor.offset + tensor.bytes(program.limits) > program.arena:
                found = f"offset {tensor.offset}"
                raise EngineError(f"expected buffer {name!r} inside the arena of {where}", found=found)
        kernels = [one for one in program.launches if not isinstance(one, Collective)]
        for formula in {f for one in kernels for f in (*one.grid, one.bytes, one.operations)}:
            value(formula, program.limits)
        for launch in program.launches:
            if isinstance(launch, Collective):
                _check_collective(plan, program, launch, f"collective {launch.label!r} of {where}")
                continue
            if launch.module >= len(plan.modules) or len(launch.grid) != 3:
                wanted = f"one of {len(plan.modules)} modules and a grid of 3 in launch {launch.label!r}"
                raise EngineError(f"expected {wanted} of {where}", found=f"module {launch.module}")
            for argument in launch.arguments:
                _check_argument(argument, known, f"launch {launch.label!r} of {where}")


def _check_tensor(tensor: Tensor, sizes: Mapping[str, int], where: str) -> None:
    if tensor.kind not in KINDS or tensor.dtype not in KERNEL_DTYPES:
        raise EngineError(f"expected a known kind and dtype of {where}", found=f"{tensor.kind}, {tensor.dtype}")
    tensor.dims(sizes)


def _check_collective(plan: Plan, program: Program, one: Collective, where: str) -> None:
    """Check the operator, the peer, and that what is moved lies inside the tensors."""
    if one.collective not in OPS:
        found = f"{one.collective[:80]!r}{nearest(one.collective, OPS)}"
        raise EngineError(f"expected an operator between ranks in {where}", found=found)
    if OPS[one.collective] != (one.sends is not None, one.receives is not None):
        raise EngineError(f"expected the tensors of a {one.collective} in {where}", found=", ".join(one.tensors)[:200])
    rank, paired = plan.rank, False in OPS[one.collective]
    ranks = rank.tp * rank.pp
    if (one.peer is not None) != paired or (one.peer is not None and (one.peer >= ranks or one.peer == rank.number)):
        wanted = f"another rank of {ranks} as the peer" if paired else "no peer"
        raise EngineError(f"expected {wanted} in {where}", found=str(one.peer))
    count = value(one.count, program.limits)
    for formula in (one.bytes, one.link_bytes):
        value(formula, program.limits)
    times = {"all_gather": (1, rank.tp), "reduce_scatter": (rank.tp, 1)}.get(one.collective, (1, 1))
    dtypes = set()
    for name, parts in zip((one.sends, one.receives), times, strict=True):
        if name is None:
            continue
        tensor = program.buffers.get(name)
        if tensor is None:
            raise EngineError(f"expected a buffer in {where}", found=f"{name[:80]!r}{nearest(name, program.buffers)}")
        dtypes.add(tensor.dtype)
        if count * parts * KERNEL_DTYPES[tensor.dtype].bytes > tensor.bytes(program.limits):
            found = f"{count * parts} of {math.prod(tensor.dims(program.limits))} numbers"
            raise EngineError(f"expected numbers inside buffer {name!r} in {where}", found=found)
    if len(dtypes) > 1:
        raise EngineError(f"expected one dtype in {where}", found=", ".join(sorted(dtypes)))


def _check_argument(argument: Argument, known: Mapping[str, Tensor], where: str) -> None:
    given = [item for item in (argument.tensor, argument.size, argument.integer, argument.real) if item is not None]
    if len(given) != 1:
        raise EngineError(f"expected one value per argument in {where}", found=f"{given}"[:80])
    if argument.tensor is not None and argument.tensor not in known:
        found = f"{argument.tensor[:80]!r}{nearest(argument.tensor, known)}"
        raise EngineError(f"expected a known tensor in {where}", found=found)
    if argument.size is not None and argument.size not in SIZES:
        found = f"{argument.size[:80]!r}{nearest(argument.size, SIZES)}"
        raise EngineError(f"expected a known size in {where}", found=found)
