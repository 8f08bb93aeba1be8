"""A legal graph as a profile's sections: the launch plan of every kind of step, and one file of all its cubins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ....passes.graph.graph import Graph
from ....runtime.plan.formula import value
from ....runtime.plan.plan import Argument, Binary, Launch, Module, Plan, Program, Tensor
from ....runtime.progress import Progress
from ....runtime.scheduling.executor import MAX_ROWS
from ..target import Emitted, Limits
from .arena import Life, place
from .call import Call, Operand
from .cubins.cache import source_digest
from .cubins.compile import Cubin, Variant, compile_variants, variant_of
from .lowering import Lowering, Model, Shape, raw
from .operators import lower
from .tuning.tactics import HEURISTIC

MAX_PREFILL = 2048
"""Prompt tokens per step: enough for arithmetic to hide the weights, few enough for decoding requests to wait for."""
SMALL_PREFILL = 64
TOLERANCE = 3e-2
"""Of the probe: activations are rounded to 8 bits of mantissa (bf16) between operators."""


def emit(graph: Graph, limits: Limits, sm: int, progress: Progress) -> Emitted:
    """Plan every program, compile every kernel once."""
    table = limits.tactics
    drafted, variants = draft(graph, limits, sm)
    cubins = compile_variants(variants, sm, progress=progress)
    modules, code, ptx = with_binaries(drafted.modules, [cubins[variant] for variant in variants])
    plan = replace(drafted, modules=modules)
    weights = {name: raw(graph.weights[name]) for name, tensor in plan.tensors.items() if tensor.kind == "weight"}
    notes = ("sm_* profiles compute a float32 checkpoint in bfloat16",) if limits.dtype == "float32" else ()
    if table is not None and table.kernels != plan.kernels:
        notes += (f"tiles {table.name} of sm_{sm} were measured with other kernels: llmc tune measures these",)
    sections = {"plan.json": plan.to_json(), "kernels.cubins": code, "kernels.ptx": ptx}
    needs = {"sm": sm, "shared": max(cubin.shared + cubin.static_shared for cubin in cubins.values())}
    return Emitted(sections, "plan.json", weights, needs, TOLERANCE, notes)


def draft(graph: Graph, limits: Limits, sm: int) -> tuple[Plan, list[Variant]]:
    """The plan whose modules have no machine code yet, and what each module is compiled from, in the same order."""
    table = limits.tactics
    tiles = table.tiles if table is not None else {}
    context, batch = limits.max_context, limits.max_batch
    model = Model(graph, sm, _activation(limits.dtype), context, batch, max_prefill(batch, context), limits.kv, tiles)
    shared: dict[str, Tensor] = {}
    lowered = [lower(model, shape, shared) for shape in shapes(batch, context)]
    variants: dict[Variant, int] = {}
    programs = tuple(_program(lowering, variants) for lowering in lowered)
    plan = Plan(
        sm=sm,
        activation=model.activation,
        max_blocks=model.max_blocks,
        caches=model.kv_caches,
        kernels=source_digest(),
        tactics=table.name if table is not None else HEURISTIC,
        tensors=dict(sorted(shared.items())),
        modules=tuple(map(_module, variants)),
        programs=programs,
    )
    return plan, list(variants)


def max_prefill(max_batch: int, max_context: int) -> int:
    """The most prompt tokens of a step."""
    return min(MAX_PREFILL, max_batch * max_context)


def shapes(max_batch: int, max_context: int) -> tuple[Shape, ...]:
    """Decode steps of 1, 2, 4, 8 ... sequences up to the largest batch; mixed steps, small and large."""
    batches = [1 << i for i in range(max_batch.bit_length()) if 1 << i < max_batch] + [max_batch]
    decode = tuple(Shape(True, n, n, n) for n in batches)
    small = (Shape(False, SMALL_PREFILL, min(max_batch, SMALL_PREFILL), SMALL_PREFILL),)
    prompt = max_prefill(max_batch, max_context)
    return (*decode, *small, Shape(False, prompt + max_batch, max_batch, min(MAX_ROWS, prompt) + max_batch))


def _activation(dtype: str) -> str:
    return "f16" if dtype == "float16" else "bf16"


def _program(lowering: Lowering, variants: dict[Variant, int]) -> Program:
    shape, calls = lowering.shape, lowering.calls
    limits = {"tokens": shape.tokens, "sequences": shape.sequences, "rows": shape.rows}
    offsets, arena = place(_lives(lowering, limits))
    buffers = {
        name: Tensor("buffer", operand.dtype, tuple(map(str, operand.shape)), offsets[name])
        for name, operand in sorted(lowering.buffers.items())
        if name in offsets
    }
    launches = []
    for label, call in calls:
        index = variants.setdefault(variant_of(call), len(variants))
        launches.append(
            Launch(
                module=index,
                arguments=tuple(_argument(argument) for _, argument in call.ordered),
                grid=tuple(str(size) for size in (*call.grid, 1, 1)[:3]),
                writes=tuple(operand.name for operand in _written(call)),
                bytes=str(call.bytes),
                operations=str(call.operations),
                label=label,
            )
        )
    return Program(shape.decode, shape.tokens, shape.sequences, shape.rows, arena, buffers, tuple(launches))


OUTPUTS = ("logits", "sampled", "status", "top_ids", "top_logits", "summary")
"""Buffers the host reads when a step is done: they live to its end."""


def _lives(lowering: Lowering, limits: Mapping[str, int]) -> dict[str, Life]:
    spans: dict[str, tuple[int, int]] = {}
    last = len(lowering.calls)
    for index, (_, call) in enumerate(lowering.calls):
        for argument in call.arguments.values():
            if isinstance(argument, Operand) and argument.name in lowering.buffers:
                first, _ = spans.get(argument.name, (index, index))
                spans[argument.name] = first, last if argument.name in OUTPUTS else index
    return {
        name: Life(value(lowering.buffers[name].bytes, limits), first, stop) for name, (first, stop) in spans.items()
    }


def _written(call: Call) -> Iterator[Operand]:
    for name in call.writes:
        operand = call.arguments[name]
        assert isinstance(operand, Operand)
        yield operand


def _argument(argument: object) -> Argument:
    if isinstance(argument, Operand):
        return Argument(tensor=argument.name)
    if isinstance(argument, str):
        return Argument(size=argument)
    if isinstance(argument, int):
        return Argument(integer=argument)
    assert isinstance(argument, float)
    return Argument(real=argument)


def _module(variant: Variant) -> Module:
    return Module(variant.kernel, dict(variant.constants), variant.types, variant.warps, variant.stages)


def with_binaries(modules: Sequence[Module], cubins: Sequence[Cubin]) -> tuple[tuple[Module, ...], bytes, bytes]:
    """The modules with their machine code; then all cubins and all PTX, in order of first use, equal ones once."""
    code, ptx = _Joined(), _Joined()
    made = tuple(
        replace(module, binary=_binary(cubin, code.offset(cubin.data), ptx.offset(cubin.ptx.encode())))
        for module, cubin in zip(modules, cubins, strict=True)
    )
    return made, bytes(code.data), bytes(ptx.data)


class _Joined:
    """Pieces end to end, each once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._offsets: dict[bytes, int] = {}

    def offset(self, piece: bytes) -> int:
        if piece not in self._offsets:
            self._offsets[piece] = len(self.data)
            self.data += piece
        return self._offsets[piece]


def _binary(cubin: Cubin, offset: int, ptx_offset: int) -> Binary:
    return Binary(
        offset=offset,
        size=len(cubin.data),
        entry=cubin.entry,
        warps=cubin.warps,
        shared=cubin.shared,
        registers=cubin.registers,
        spills=cubin.spills,
        pdl=cubin.pdl,
        global_scratch=cubin.global_scratch,
        global_scratch_align=cubin.global_scratch_align,
        profile_scratch=cubin.profile_scratch,
        ptx_offset=ptx_offset,
        ptx_size=len(cubin.ptx.encode()),
    )
