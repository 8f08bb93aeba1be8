"""A launch plan as text with its formulas; offsets, the kernels' digest and machine code are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .between import Collective
from .plan import Argument, Launch, Plan, Program, Tensor


def plan_text(plan: Plan) -> str:
    """Tensors, then every program with its launches."""
    head = (
        f"sm_{plan.sm} {plan.activation} block_tokens={plan.block_tokens} max_blocks={plan.max_blocks} pdl={plan.pdl}"
    )
    rings = [f"window {one.window}: a ring of {one.blocks} blocks" for one in plan.caches if one.window is not None]
    rank = [f"rank {plan.rank.number} of tp {plan.rank.tp}, pp {plan.rank.pp}"] if plan.rank_of is not None else []
    lines = [head, *rank, *rings, "", *_tensors(plan.tensors)]
    if plan.setup is not None:
        lines += ["", "setup", *_launches(plan, plan.setup)]
    for program in plan.programs:
        kind = "decode" if program.decode else "mixed"
        lines += ["", f"{kind}: tokens {program.tokens}, sequences {program.sequences}, rows {program.rows}"]
        lines += [*_tensors(program.buffers), *_launches(plan, program)]
    return "\n".join([*lines, ""])


def _launches(plan: Plan, program: Program) -> Iterator[str]:
    for launch in program.launches:
        yield from _collective(launch) if isinstance(launch, Collective) else _launch(plan, launch)


def _tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    return [f"  {one.kind} {name} {one.dtype} [{', '.join(one.shape)}]" for name, one in sorted(tensors.items())]


def _launch(plan: Plan, launch: Launch) -> list[str]:
    module = plan.modules[launch.module]
    arguments = ", ".join(map(_argument, launch.arguments))
    constants = " ".join(f"{name}={value!r}" for name, value in module.constants.items())
    return [
        f"  {launch.label}: {module.kernel}({arguments})",
        f"    grid [{', '.join(launch.grid)}], writes {', '.join(launch.writes)}",
        f"    bytes {launch.bytes}; operations {launch.operations}",
        f"    {constants} warps={module.warps} stages={module.stages} types={','.join(module.types)}",
    ]


def _collective(one: Collective) -> list[str]:
    peer = "" if one.peer is None else f", peer {one.peer}"
    return [
        f"  {one.label}: {one.collective}({one.sends or ''} -> {one.receives or ''}), count {one.count}{peer}",
        f"    bytes {one.bytes}; on the link {one.link_bytes}",
    ]


def _argument(argument: Argument) -> str:
    given = (argument.tensor, argument.size, argument.integer, argument.real)
    return next(str(one) for one in given if one is not None)
