"""A launch plan as text with its formulas; offsets, the kernels' digest and machine code are left out."""

from __future__ import annotations

from collections.abc import Mapping

from .plan import Argument, Launch, Plan, Tensor


def plan_text(plan: Plan) -> str:
    """Tensors, then every program with its launches."""
    head = (
        f"sm_{plan.sm} {plan.activation} block_tokens={plan.block_tokens} max_blocks={plan.max_blocks} pdl={plan.pdl}"
    )
    rings = [f"window {one.window}: a ring of {one.blocks} blocks" for one in plan.caches if one.window is not None]
    lines = [head, *rings, "", *_tensors(plan.tensors)]
    for program in plan.programs:
        kind = "decode" if program.decode else "mixed"
        lines += ["", f"{kind}: tokens {program.tokens}, sequences {program.sequences}, rows {program.rows}"]
        lines += _tensors(program.buffers)
        for launch in program.launches:
            lines += _launch(plan, launch)
    return "\n".join([*lines, ""])


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


def _argument(argument: Argument) -> str:
    given = (argument.tensor, argument.size, argument.integer, argument.real)
    return next(str(one) for one in given if one is not None)
