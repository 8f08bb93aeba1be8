"""A small folder such as is carried to a machine with a GPU: a few cases, a plan without weights, and an engine."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from support.fakes.libcuda import cubin
from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from bringup.agree import plan_digest  # pyright: ignore[reportMissingImports]
from bringup.carry import CarriedCase, CarryWriter, CaseTensor  # pyright: ignore[reportMissingImports]

from llmc.runtime.cuda.contents import EngineContents
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.plan import Module, Plan

SM, PLAN, ENGINE = 90, "8b-fp8", "small-fp8"
TARGET = f"sm_{SM}"
FACTS = {"registers": 16, "spills": 0, "global_scratch": 0, "profile_scratch": 0, "pdl": False, "warps": 2, "shared": 0}
WORDS = 16
"""Numbers that a case's tensor has."""
RIGHT, WRONG = ("right", "also right"), ("wrong",)
"""Cases of the one kernel that the fake computes ("facts", it stores the value it gets first), and one it fails."""
STUB_PTX = ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry {entry}()\n{{ ret; }}\n"


def code_of(module: Module) -> dict[str, Any]:
    """The fields of `Code` of a plan's module, but for the two places."""
    code = module.code
    assert code is not None
    same = ("entry", "shared", "global_scratch", "profile_scratch", "pdl", "registers", "spills")
    named = {"kernel": module.kernel, "types": module.types, "warps": module.warps}
    return {**named, **{name: getattr(code, name) for name in same}}


def small_carry(folder: Path, engine: Path, *, wrong: bool) -> Path:
    """The folder, made of an engine of TARGET: its plan is also the one without weights.

    Over the fake all is right, as kernels leave zeros and zeros are expected; wrong: a case and the tokens are not.
    """
    folder.mkdir()
    writer = CarryWriter(folder, SM, {"commit": "a test"})
    plan = _plan(writer, engine)
    writer.plan(PLAN, plan)
    cases, arrays = _cases(writer, (*RIGHT, *WRONG) if wrong else RIGHT)
    writer.cases(cases, arrays)
    for name, types in (("probe_null", ("*i32",)), ("probe_read", ("*i32", "*i32"))):
        entry = {"kernel": name, "entry": name, "types": types, **FACTS}
        writer.add(entry, cubin(name), STUB_PTX.format(entry=name))
    writer.close()
    for part in ("engines", "simulated"):
        (folder / part).mkdir()
    (folder / "engines" / f"{ENGINE}.llmc").write_bytes(engine.read_bytes())
    trace = {
        "prompt": [5, 6, 7],
        "ids": [list(range(8))] * 3,
        "logits": [[float(wrong) * (8 - i) for i in range(8)]] * 3,
    }
    text = json.dumps({"plan": plan_digest(engine, SM), "traces": [trace] * 2})
    (folder / "simulated" / f"{ENGINE}.json").write_text(text)
    return folder


def _plan(writer: CarryWriter, engine: Path) -> Plan:
    with EngineFile.open(engine) as opened:
        contents = EngineContents(opened, TARGET)
        plan = Plan.from_json(opened.section(opened.manifest.profiles[TARGET].graph), what="a plan")
        modules = []
        for module in plan.modules:
            assert module.code is not None
            image = contents.cubin(module.code, module.kernel)
            writer.add(code_of(module), image, contents.ptx(module.code))
            offset, size = writer.place(image)
            modules.append(replace(module, code=replace(module.code, offset=offset, size=size)))
    return replace(plan, modules=tuple(modules))


def _cases(writer: CarryWriter, names: tuple[str, ...]) -> tuple[list[CarriedCase], dict[str, np.ndarray]]:
    """Cases of stubs: kernels of one argument besides the tensor, of which the fake computes only "facts"."""
    arrays = {"zeros": np.zeros(4 * WORDS, np.uint8), "expected": np.full(WORDS, np.nan)}
    arrays["expected"][0] = 77
    tensor = CaseTensor("out", "i32", (WORDS,), True, "zeros", "expected")
    cases = []
    for name in names:
        kernel = "facts" if name in RIGHT else name
        entry = {"kernel": kernel, "entry": kernel, "types": ("*i32", "i32"), **FACTS}
        code = writer.add(entry, cubin(kernel), STUB_PTX.format(entry=kernel))
        cases.append(CarriedCase(name, code, (2, 3, 1), ("out", 77), (tensor,), 1e-6))
    return cases, arrays
