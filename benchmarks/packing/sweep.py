"""Linears of the plans with many tiles each: what a GPU times in turns, without compiling anything.

Decoding: of each linear the heuristic's tile first, then others that differ in blocks, parts of K, stages and warps;
those that the chip cannot hold or that spill registers are left out. Prompts: two sizes of tiles, and in FP8 with and
without the sums of 128 columns in float32 ("promote" 1 and 0, beside the fields of a tile). Both with the tiles of the
native kernels, whose route is "native".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from bringup.carry import Candidate, Swept

from llmc.compiler.targets.cuda.call import KernelCall, Operand
from llmc.compiler.targets.cuda.cubins.compile import specialization_of
from llmc.compiler.targets.cuda.kernels.linear.tiles import Tile, default_tile, wrong_tile
from llmc.compiler.targets.cuda.tuning.tune import TunedLinear, linears_of, native_tiles
from llmc.runtime.plan.formula import value
from llmc.runtime.plan.plan import Plan
from packing.kernels import Kernels

PROMPT = 2048
MOST = 13
"""Tiles of a decode linear besides the heuristic's; tiles that spill registers are dropped later."""
CHANGES: tuple[dict[str, int], ...] = (
    *({"splits": 1}, {"splits": 2}, {"splits": 4}, {"splits": 8}),
    *({"block_n": 32}, {"block_n": 128}, {"block_n": 128, "warps": 8}, {"block_n": 128, "warps": 8, "splits": 4}),
    *({"stages": 2}, {"stages": 4}, {"stages": 5}, {"warps": 8}),
    *({"block_n": 32, "stages": 5}, {"block_n": 32, "splits": 2}, {"block_n": 128, "splits": 4}),
    *({"block_n": 128, "stages": 4}, {"splits": 2, "stages": 5}, {"splits": 3}, {"block_n": 128, "splits": 8}),
)
"""Fields that replace the heuristic's, best guess first."""


@dataclass(frozen=True)
class Form:
    """A linear with a tile. promote: None where the kernel has no such choice."""

    tile: Tile
    call: KernelCall
    promote: bool | None = None

    @property
    def numbers(self) -> dict[str, int | str]:
        return asdict(self.tile) | ({} if self.promote is None else {"promote": int(self.promote)})


@dataclass(frozen=True)
class Wanted:
    """A linear at a number of tokens, and all of its forms, the heuristic's first. keep: spilling ones, too."""

    linear: TunedLinear
    forms: tuple[Form, ...]
    keep: bool = False


def decoding(plan: Plan, tokens: int) -> list[Wanted]:
    """The linears of the decode program for this number of sequences, most weights first."""
    found = [one for one in linears_of(plan) if one.decode and one.tokens == tokens and one.kind == "small"]
    return [Wanted(one, tuple(Form(t, one.call(t, plan.sm)) for t in tiles(one, plan.sm))) for one in found]


def prompts(plan: Plan) -> list[Wanted]:
    """The linears over all tokens of the largest program, at a prompt of `PROMPT` tokens."""
    most = plan.programs[-1].tokens
    large = [one for one in linears_of(plan) if one.kind in ("large", "fp8") and one.tokens == most]
    sized = [replace(one, sizes={**one.sizes, "tokens": PROMPT}) for one in large]
    return [Wanted(one, tuple(_prompt_forms(one, plan.sm)), keep=True) for one in sized]


def tiles(linear: TunedLinear, sm: int) -> list[Tile]:
    """The heuristic's tile, then the others that the chip may hold."""
    base = default_tile(linear.kind, linear.n, linear.k, linear.format, linear.tokens, sm)
    possible = [tile for tile in _changed(base, CHANGES) if _possible(linear, tile, sm)]
    return [base, *possible[:MOST], *native_tiles(linear, sm)]


PROMPT_TILES: tuple[dict[str, int], ...] = ({"block_m": 128}, {"block_m": 256}, {"block_m": 256, "stages": 3})


def _prompt_forms(linear: TunedLinear, sm: int) -> Iterator[Form]:
    base = default_tile(linear.kind, linear.n, linear.k, linear.format, linear.tokens, sm)
    for tile in (base, *(tile for tile in _changed(base, PROMPT_TILES) if _possible(linear, tile, sm))):
        call = linear.call(tile, sm)
        if linear.kind != "fp8":
            yield Form(tile, call)
            continue
        for promote in (True, False):
            yield Form(tile, replace(call, constants={**call.constants, "PROMOTE": promote}), promote)
    for tile in native_tiles(linear, sm):
        yield Form(tile, linear.call(tile, sm), False)


def _changed(base: Tile, changes: Sequence[dict[str, int]]) -> Iterable[Tile]:
    made = (replace(base, **change) for change in changes)
    return [tile for tile in dict.fromkeys(made) if tile != base]


def _possible(linear: TunedLinear, tile: Tile, sm: int) -> bool:
    return not wrong_tile(linear.kind, linear.n, linear.k, linear.format, linear.key[-1], tile, sm)


def swept(wanted: Wanted, kernels: Kernels) -> Swept:
    """What is carried of a linear whose forms have been compiled, as far as they could be."""
    linear, sizes = wanted.linear, wanted.linear.sizes
    forms = [form for form in wanted.forms if (known := kernels.cubins.get(specialization_of(form.call))) is not None
             and (form is wanted.forms[0] or wanted.keep or not known.code.spills)]  # fmt: skip
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for form in forms:
        for operand in form.call.arguments.values():
            if isinstance(operand, Operand):
                shape = tuple(value(dim, sizes) for dim in operand.shape)
                known_shape = tensors[operand.name][1] if operand.name in tensors else shape
                tensors[operand.name] = operand.dtype, tuple(map(max, shape, known_shape))
    first = wanted.forms[0].call
    return Swept(
        kind=linear.kind,
        n=linear.n,
        k=linear.k,
        format=linear.format,
        tokens=value(str(linear.operands["x"].shape[0]), sizes),
        bytes=value(first.bytes, sizes),
        operations=value(first.operations, sizes),
        tensors=tensors,
        weights=linear.weights,
        candidates=tuple(_candidate(form, kernels, sizes) for form in forms),
    )


def _candidate(form: Form, kernels: Kernels, sizes: dict[str, int] | object) -> Candidate:
    assert isinstance(sizes, dict)
    x, y, z = (value(formula, sizes) for formula in (*form.call.grid, 1, 1)[:3])
    arguments = tuple(
        argument.name if isinstance(argument, Operand) else sizes[argument] if isinstance(argument, str) else argument
        for _, argument in form.call.ordered
    )
    return Candidate(form.numbers, kernels.id(specialization_of(form.call)), (x, y, z), arguments)
