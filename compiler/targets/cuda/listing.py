"""A GPU profile for people: its launches with formulas, the PTX of each kernel, and what each kernel takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ....runtime.plan.listing import plan_text
from ....runtime.plan.plan import Plan
from .cubins.compile import Cubin, Specialization
from .cubins.figures import figures_of
from .cubins.report import Entry
from .cubins.sass import disassembler


def listing(
    plan: Plan, specializations: Sequence[Specialization], cubins: Mapping[Specialization, Cubin]
) -> dict[str, str]:
    """Texts by file name. kernels.json has the facts of `llmc kernels` for each module, in the plan's order."""
    program = disassembler()
    figures = figures_of(cubins, plan.sm, program) if program is not None else {}
    files = {"launches.txt": plan_text(plan)}
    kernels = []
    for index, specialization in enumerate(specializations):
        facts = Entry(plan.sm, specialization, True, cubins[specialization], figures.get(specialization)).as_json()
        name = f"ptx/{index:03d}-{specialization.kernel}.ptx"
        kernels.append({"ptx": name, **{key: value for key, value in facts.items() if key != "decode"}})
        files[name] = cubins[specialization].ptx
    return {**files, "kernels.json": json.dumps(kernels, indent=1) + "\n"}
