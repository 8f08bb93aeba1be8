"""Turns a legal graph into a profile's sections: a launch plan with a program per kind of step, and all cubins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, takewhile
from typing import Any

from ....passes.graph.graph import Graph
from ....runtime.engine_file.rope import table_inputs
from ....runtime.plan.between import ALONE, Collective
from ....runtime.plan.formula import value
from ....runtime.plan.plan import Argument, Launch, Module, Plan, Program, Tensor
from ....runtime.progress import Progress
from ....runtime.scheduling.executor import MAX_ROWS
from ..target import CompiledProfile, ProfileConfig
from .arena import Lifetime, place_buffers
from .call import Argument as GivenArgument
from .call import CollectiveCall, KernelCall, Operand, total
from .cubins.cache import source_digest
from .cubins.compile import Cubin, Specialization, compile_all, kernel_alone, specialization_of
from .cubins.worker import WAITS_FROM
from .listing import listing
from .lowering import CudaProfile, Lowering, Shared, StepShape
from .operators import lower
from .tuning.tactics import HEURISTIC

MAX_PREFILL = 2048
"""Prompt tokens per step: enough to be bound by arithmetic, few enough that decoding requests do not wait long."""
SMALL_PREFILLS = (64, 512)
"""Tokens of smaller programs for mixed steps, whose tiles fill the chip with fewer tokens."""
TOLERANCE = 3e-2
"""Tolerance of the golden probe: activations are rounded to 8 bits of mantissa (bf16) between operators."""


def emit(graph: Graph, config: ProfileConfig, sm: int, progress: Progress) -> CompiledProfile:
    """Plan every program and compile every kernel once.

    Raises:
        LlmcError: a kernel cannot be compiled; see `compile_all`.
    """
    table = config.tactics
    tiles = _Asked({} if table is None else table.tiles)
    drafted, specializations = draft(graph, config, sm, tiles)
    cubins = compile_all(specializations, sm, progress=progress)
    modules, code, ptx = with_code(drafted.modules, [cubins[specialization] for specialization in specializations])
    plan = replace(drafted, modules=modules)
    weights = {name: graph.weights[name] for name, tensor in plan.tensors.items() if tensor.kind == "weight"}
    notes = ("sm_* profiles compute a float32 checkpoint in bfloat16",) if config.dtype == "float32" else ()
    if table is not None and table.kernels != plan.kernels:
        notes += (f"tiles {table.name} of sm_{sm} were measured with other kernels: run llmc tune again",)
    if table is not None and not tiles.used:
        notes += (f"tiles {table.name} of sm_{sm} change nothing: no row is for a linear of this model",)
    sections = {"plan.json": plan.to_json(), "kernels.cubins": code, "kernels.ptx": ptx}
    needs = {"sm": sm, "shared": max(cubin.shared for cubin in cubins.values())}
    shown = partial(listing, plan, specializations, cubins)
    return CompiledProfile(sections, "plan.json", weights, needs, TOLERANCE, notes, shown)


class _Asked(dict[Any, Any]):
    """A table's tiles, and whether any of them was used."""

    used = False

    def get(self, key: Any, default: Any = None) -> Any:
        self.used |= key in self
        return super().get(key, default)


def draft(
    graph: Graph,
    config: ProfileConfig,
    sm: int,
    tiles: Mapping[Any, Any] | None = None,
    shapes: Sequence[StepShape] = (),
) -> tuple[Plan, list[Specialization]]:
    """The plan, whose modules have no machine code yet, and the specialization of each module, in the same order.

    `tiles` are those of the configuration's table; by default it is asked for them. `shapes` are the steps that get a
    program, by default all that an engine has; a plan of some steps is one to price: its modules
    are not specialized, and it has no digest of kernels.
    """
    table = config.tactics
    if tiles is None:
        tiles = table.tiles if table is not None else {}
    context, batch = config.max_context, config.max_batch
    activation = "f16" if config.dtype == "float16" else "bf16"
    profile = CudaProfile(
        graph, sm, activation, context, batch, max_prefill(batch, context), config.kv, tiles, config.rank
    )
    shared = Shared()
    lowered = [lower(profile, shape, shared) for shape in shapes or step_shapes(batch, context)]
    specializations: dict[Specialization, int] = {}
    special = kernel_alone if shapes else specialization_of
    programs = tuple(_program(lowering, specializations, special) for lowering in lowered)
    once = Lowering(profile, StepShape(False, 1, 1, 1), shared, list(shared.setup.values()))
    prepared = _program(once, specializations, special) if once.calls else None
    plan = Plan(
        sm=sm,
        activation=profile.activation,
        max_blocks=profile.max_blocks,
        caches=profile.kv_caches,
        kernels="" if shapes else source_digest(),
        tactics=table.name if table is not None else HEURISTIC,
        tensors=dict(sorted(shared.tensors.items())),
        modules=tuple(Module(v.kernel, dict(v.constants), v.types, v.warps, v.stages) for v in specializations),
        programs=programs,
        pdl=sm >= WAITS_FROM,
        rotary=_rotary(shared.tensors) or None,
        rank_of=config.rank if config.rank != ALONE else None,
        setup=prepared,
    )
    return plan, list(specializations)


def _rotary(shared: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Pairs that each rope rotates whose tables are inputs."""
    names = takewhile(lambda name: name in shared, (table_inputs(number)[0] for number in count()))
    return tuple(int(shared[name].shape[1]) for name in names)


def max_prefill(max_batch: int, max_context: int) -> int:
    """The most prompt tokens of a step."""
    return min(MAX_PREFILL, max_batch * max_context)


def step_shapes(max_batch: int, max_context: int) -> tuple[StepShape, ...]:
    """Decode steps of 1, 2, 4, 8 ... sequences up to the largest batch; mixed steps, from small to large."""
    batches = [1 << i for i in range(max_batch.bit_length()) if 1 << i < max_batch] + [max_batch]
    decode = tuple(StepShape(True, n, n, n) for n in batches)
    prompt = max_prefill(max_batch, max_context)
    small = [
        StepShape(False, tokens, min(max_batch, tokens), min(MAX_ROWS + max_batch, tokens))
        for tokens in SMALL_PREFILLS
        if tokens == SMALL_PREFILLS[0] or 2 * tokens <= prompt
    ]
    return (*decode, *small, StepShape(False, prompt + max_batch, max_batch, min(MAX_ROWS, prompt) + max_batch))


def _program(
    lowering: Lowering, specializations: dict[Specialization, int], special: Callable[[KernelCall], Specialization]
) -> Program:
    shape, calls = lowering.shape, lowering.calls
    limits = {"tokens": shape.tokens, "sequences": shape.sequences, "rows": shape.rows}
    offsets, arena = place_buffers(_lifetimes(lowering, limits))
    buffers = {
        name: Tensor("buffer", operand.dtype, tuple(map(str, operand.shape)), offsets[name])
        for name, operand in sorted(lowering.buffers.items())
        if name in offsets
    }
    launches: list[Launch | Collective] = []
    for label, call in calls:
        if isinstance(call, CollectiveCall):
            launches.append(_collective(label, call))
            continue
        index = specializations.setdefault(special(call), len(specializations))
        launches.append(
            Launch(
                module=index,
                arguments=tuple(_argument(argument) for _, argument in call.ordered),
                grid=tuple(str(size) for size in (*call.grid, 1, 1)[:3]),
                writes=tuple(call.operands[name].name for name in call.writes),
                bytes=str(call.bytes),
                operations=str(call.operations),
                label=label,
            )
        )
    return Program(shape.decode, shape.tokens, shape.sequences, shape.rows, arena, buffers, tuple(launches))


def _collective(label: str, call: CollectiveCall) -> Collective:
    return Collective(
        collective=call.op,
        sends=call.sends.name if call.sends is not None else None,
        receives=call.receives.name if call.receives is not None else None,
        count=call.count,
        peer=call.peer,
        bytes=total(*(operand.bytes for operand in call.operands.values())),
        link_bytes=call.link_bytes,
        label=label,
    )


OUTPUTS = ("logits", "sampled", "status", "top_ids", "top_logits", "summary")
"""Buffers that the host reads after a step: they stay allocated to the end of the program."""


def _lifetimes(lowering: Lowering, limits: Mapping[str, int]) -> dict[str, Lifetime]:
    spans: dict[str, tuple[int, int]] = {}
    last = len(lowering.calls)
    for index, (_, call) in enumerate(lowering.calls):
        for name in (operand.name for operand in call.operands.values()):
            first, _ = spans.get(name, (index, index))
            spans[name] = first, last if name in OUTPUTS else index
    return {
        name: Lifetime(value(lowering.buffers[name].bytes, limits), *span)
        for name, span in spans.items()
        if name in lowering.buffers
    }


def _argument(argument: GivenArgument) -> Argument:
    if isinstance(argument, Operand):
        return Argument(tensor=argument.name)
    if isinstance(argument, str):
        return Argument(size=argument)
    return Argument(integer=argument) if isinstance(argument, int) else Argument(real=argument)


def with_code(modules: Sequence[Module], cubins: Sequence[Cubin]) -> tuple[tuple[Module, ...], bytes, bytes]:
    """(modules with their machine code, all cubins, all PTX): bytes in order of first use, equal ones stored once."""
    code, code_at = _joined([cubin.data for cubin in cubins])
    ptx, ptx_at = _joined([cubin.ptx.encode() for cubin in cubins])
    placed = [
        replace(cubin.code, offset=start, size=size, ptx_offset=ptx_start, ptx_size=ptx_size)
        for cubin, (start, size), (ptx_start, ptx_size) in zip(cubins, code_at, ptx_at, strict=True)
    ]
    return tuple(replace(one, code=found) for one, found in zip(modules, placed, strict=True)), code, ptx


def _joined(pieces: Sequence[bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    """Pieces joined, equal ones stored once, and the (offset, size) of each piece."""
    places: dict[bytes, tuple[int, int]] = {}
    end = 0
    for piece in dict.fromkeys(pieces):
        places[piece] = end, len(piece)
        end += len(piece)
    return b"".join(places), [places[piece] for piece in pieces]
