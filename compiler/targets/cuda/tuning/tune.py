"""Measures tiles for the linears of an engine on the GPU of this machine; `llmc tune` writes them to a table.

A linear is measured with the tiles that differ from the heuristic's in at most two fields, each by one step: blocks and
warps by a factor of two, stages and parts of K by one, parts of K also by a factor of two; and with a few tiles of the
native kernel, where there is one. Tiles that do not fit the chip or spill registers are not measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from .....runtime.cuda.driver import Driver
from .....runtime.dtypes import KERNEL_DTYPES
from .....runtime.engine_file.bind import evaluate_weight, from_json
from .....runtime.engine_file.file import EngineFile
from .....runtime.errors import LlmcError
from .....runtime.numbers import f32_to_bf16
from .....runtime.plan.formula import value
from .....runtime.plan.plan import Launch, Plan, Program
from .....runtime.progress import NO_PROGRESS, Progress
from ..call import KernelCall, Operand
from ..cubins.cache import KernelCache, source_digest
from ..cubins.compile import Cubin, specialization_of, try_compile
from ..kernels.linear import fp8 as linear_fp8
from ..kernels.linear import large as linear_large
from ..kernels.linear import small as linear_small
from ..kernels.linear.choose import linear
from ..kernels.linear.native import gemm, stream, versus
from ..kernels.linear.parts.fused import ALONE, Fused
from ..kernels.linear.tiles import Tile, default_tile, wrong_tile
from .measure import Effort, Form, measure_forms
from .tactics import Key, Row, Table, tile_key

KINDS = {"linear_small": "small", "linear_large": "large", "linear_fp8": "fp8"}
KINDS |= {stream.KERNEL.name: "small", gemm.KERNEL.name: "fp8"}
_KERNELS = {"small": linear_small.KERNEL, "large": linear_large.KERNEL, "fp8": linear_fp8.LINEAR}
_WEIGHTS = ("w", "scale", "tensor_scale", "w_scale")
"""Parameters that hold weights."""
_RESULTS = ("y", "normed", "squares")
"""Parameters that are written."""
_PARTS = ("workspace", "counters")
"""Parameters that a call has only if its tile splits K."""
_WORTH = 0.99
"""A tile replaces the heuristic's only below this fraction of its time: a smaller gain is noise."""
_E4M3_BELOW_2 = 0xBF
"""Masking a byte with it gives an E4M3 number below 2, and never NaN."""


@dataclass(frozen=True)
class TunedLinear:
    """A linear of a plan in steps of at most `tokens`."""

    kind: str
    n: int
    k: int
    format: str
    tokens: int
    decode: bool
    operands: Mapping[str, Operand]
    """Operands by parameter; each has its parameter's name."""
    sources: Mapping[str, str]
    """The plan's tensors of the operands, by parameter."""
    sizes: Mapping[str, int]
    activation: str | None
    """The activation of gate, if the weight is gate|up and the epilogue computes act(gate) * up."""
    fused: Fused
    bytes: int
    """Bytes of the weights in all launches."""

    @property
    def key(self) -> Key:
        return tile_key(self.kind, self.n, self.k, self.format, self.tokens)

    @property
    def weights(self) -> tuple[str, ...]:
        """The operands that hold weights: each copy of the weights has its own."""
        return tuple(name for name in _WEIGHTS if name in self.operands)

    def call(self, tile: Tile, sm: int) -> KernelCall:
        """The call of the linear with a tile."""
        found = self.operands
        return linear(
            *(found["x"], tuple(found[name] for name in self.weights), found["y"]),
            format=self.format,
            max_tokens=self.tokens,
            sm=sm,
            tile=lambda kind, n, k: tile,
            make=Operand.of,
            expanded=lambda n, k: (found["w"], found["w_scale"]),
            counters=lambda count: Operand("counters", "i32", (count,)),
            scales=found.get("x_scale"),
            bias=found.get("bias"),
            activation=self.activation,
            residual=found.get("residual"),
            fused=self.fused,
        )


@dataclass(frozen=True)
class Tuned:
    """The result of tuning a profile."""

    table: Table
    linears: int
    """Linears of the profile; fewer rows than linears mean that time ran out."""
    wrong: tuple[str, ...]
    """Tiles whose result differed from the heuristic's."""


@dataclass
class Tuner:
    """Measures the linears of a profile on a GPU."""

    driver: Driver
    limit: float
    """Seconds after which no further linear is measured; an unfinished one is dropped."""
    effort: Effort = field(default_factory=Effort)
    clock: Callable[[], float] = time.monotonic
    progress: Progress = NO_PROGRESS
    found: Callable[[Row], None] = lambda row: None
    """Called with every row as soon as it is measured."""

    def tune(self, engine: EngineFile, profile: str, *, gpu: str, date: str) -> Tuned:
        """Measure every linear of a profile; linears of small decode steps and with large weights come first.

        Raises:
            LlmcError: a heuristic tile does not compile, the driver refuses, or a kernel fails; see `measure_forms`.
        """
        facts = engine.manifest.profiles[profile]
        plan = Plan.from_json(engine.section(facts.graph), what=f"{engine.path}: {facts.graph}")
        linears, stop = linears_of(plan), self.clock() + self.limit
        rows: list[Row] = []
        wrong: list[str] = []
        for one in linears:
            if self.clock() >= stop:
                break
            row = self._row(one, plan.sm, contents_of(one, engine, plan, facts.weights), stop, wrong)
            if row is not None:
                rows.append(row)
                self.found(row)
        table = Table(
            plan.sm, gpu, self.driver.version, date, source_digest(), KernelCache.default().tools.triton, tuple(rows)
        )
        return Tuned(table, len(linears), tuple(wrong))

    def _row(
        self, linear: TunedLinear, sm: int, contents: Mapping[str, np.ndarray], stop: float, wrong: list[str]
    ) -> Row | None:
        calls = {tile: linear.call(tile, sm) for tile in candidates(linear, sm)}
        outcomes = try_compile([specialization_of(call) for call in calls.values()], sm, progress=self.progress)
        forms: dict[Tile, Form] = {}
        for tile, call in calls.items():
            outcome = outcomes[specialization_of(call)]
            if isinstance(outcome, LlmcError) and not forms:
                raise outcome
            if isinstance(outcome, Cubin) and (not forms or not outcome.code.spills):
                forms[tile] = Form(call, outcome)
        times = measure_forms(
            self.driver,
            list(forms.values()),
            contents,
            linear.weights,
            linear.sizes,
            effort=self.effort,
            within_limit=lambda: self.clock() < stop,
        )
        if times is None:
            return None
        wrong += [f"{linear.key}: {tile}" for tile, seconds in zip(forms, times, strict=True) if seconds is None]
        measured = {tile: seconds for tile, seconds in zip(forms, times, strict=True) if seconds is not None}
        heuristic = next(iter(forms))
        best = min(measured, key=lambda tile: measured[tile])
        if measured[best] > _WORTH * measured[heuristic]:
            best = heuristic
        ns, heuristic_ns = (max(1, round(1e9 * measured[tile])) for tile in (best, heuristic))
        return Row(linear.kind, linear.n, linear.k, linear.format, linear.tokens, best, ns, heuristic_ns)


def candidates(linear: TunedLinear, sm: int) -> list[Tile]:
    """The tiles to try: the heuristic's first, then its neighbours, then those of the native kernel."""
    base = default_tile(linear.kind, linear.n, linear.k, linear.format, linear.tokens, sm)
    steps: dict[str, set[int]] = {
        name: {getattr(base, name) // 2, getattr(base, name) * 2} for name in ("block_n", "block_k", "block_m", "warps")
    }
    steps["stages"] = {base.stages - 1, base.stages + 1}
    steps["splits"] = {base.splits - 1, base.splits + 1, base.splits // 2, base.splits * 2}
    ones = [(name, number) for name, numbers in steps.items() for number in sorted(numbers)]
    tiles = [replace(base, **{name: number}) for name, number in ones]
    tiles += [replace(base, **dict(both)) for both in combinations(ones, 2) if both[0][0] != both[1][0]]
    near = [tile for tile in dict.fromkeys(tiles) if tile != base and _possible(linear, tile, sm)]
    return [base, *near, *native_tiles(linear, sm)]


def native_tiles(linear: TunedLinear, sm: int) -> list[Tile]:
    """The tiles of the native kernel to try."""
    x, weights = linear.operands["x"], [linear.operands[name] for name in linear.weights]
    shape, squares = (linear.n, linear.k, linear.format, linear.key[-1]), linear.fused.squares is not None
    return versus.tiles(linear.kind, *shape, sm, x, weights, squares=squares)


def _possible(linear: TunedLinear, tile: Tile, sm: int) -> bool:
    return not wrong_tile(linear.kind, linear.n, linear.k, linear.format, linear.key[-1], tile, sm)


def linears_of(plan: Plan) -> tuple[TunedLinear, ...]:
    """The distinct linears of a plan that a table can hold: of decode steps, few tokens and large weights first."""
    found: dict[Key, TunedLinear] = {}
    for program in plan.programs:
        for launch in program.kernels:
            if (linear := _linear(plan, program, launch)) is None:
                continue
            known = found.get(linear.key)
            found[linear.key] = linear if known is None else replace(known, bytes=known.bytes + linear.bytes)
    return tuple(sorted(found.values(), key=lambda one: (not one.decode, one.tokens, -one.bytes)))


def _linear(plan: Plan, program: Program, launch: Launch) -> TunedLinear | None:
    module = plan.modules[launch.module]
    if module.kernel not in KINDS:
        return None
    kind, constants = KINDS[module.kernel], module.constants
    operands, sources = {}, {}
    for name, argument in zip(_KERNELS[kind].given(constants), launch.arguments, strict=True):
        if argument.tensor is not None and name not in _PARTS:
            tensor = plan.tensor(program, argument.tensor)
            shape = tuple(int(size) if size.isdecimal() else size for size in tensor.shape)
            operands[name], sources[name] = Operand(name, tensor.dtype, shape), argument.tensor
    if operands["w"].dtype == "f32":
        return None
    return TunedLinear(
        kind=kind,
        n=constants["N"],
        k=constants["K"],
        format=constants.get("FORMAT", "fp8"),
        tokens=program.limits[str(operands["x"].shape[0])],
        decode=program.decode,
        operands=operands,
        sources=sources,
        sizes=program.limits,
        activation=constants.get("ACTIVATION"),
        fused=ALONE if kind == "fp8" else Fused.of(operands, constants),
        bytes=sum(value(operands[name].bytes, program.limits) for name in _WEIGHTS if name in operands),
    )


def contents_of(
    linear: TunedLinear, engine: EngineFile, plan: Plan, bindings: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """Values of the operands by parameter: the engine's weights, and random numbers with a fixed seed."""
    source = np.random.default_rng(0)
    contents = {}
    for name, operand in linear.operands.items():
        tensor = plan.tensors.get(linear.sources[name])
        if name in _RESULTS:
            continue
        if tensor is not None and tensor.kind == "weight":
            binding = from_json(bindings[linear.sources[name]])
            contents[name] = evaluate_weight(binding, engine.tensor, initializer=linear.sources[name])
        else:
            shape = [value(str(size), linear.sizes) for size in operand.shape]
            numbers = _random(source, operand.dtype, shape)
            contents[name] = np.square(numbers) if name == "x_squares" else numbers
    return contents


def _random(source: np.random.Generator, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype == "u8":
        return source.integers(0, 256, math.prod(shape), np.uint8).reshape(shape) & _E4M3_BELOW_2
    numbers = source.standard_normal(shape, np.float32)
    return f32_to_bf16(numbers) if dtype == "bf16" else numbers.astype(KERNEL_DTYPES[dtype].numpy)
