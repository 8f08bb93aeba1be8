"""What compiled kernels are held to without a GPU: their costs, the order of their accesses, where parameters lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from golden.decode_path import decode_path
from support.kernel_cases import CASES
from support.paths import ROOT

from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization, compile_all, specialization_of
from llmc.compiler.targets.cuda.cubins.elf import Image, Parameter, image_of
from llmc.compiler.targets.cuda.cubins.figures import Figures, figures_of, main_loop, thread_bytes_in_flight, weights_of
from llmc.compiler.targets.cuda.cubins.report import Entry
from llmc.compiler.targets.cuda.cubins.sass import Instruction, Listing, disassemble, disassembler
from llmc.runtime.cuda.launches import layout
from llmc.runtime.errors import EngineError, ResourceError
from llmc.runtime.progress import NO_PROGRESS

GOLDEN = ROOT / "tests" / "golden" / "sm_90.kernels.json"
NEWER = (100, 120)
SCRATCH = ("*i8", "*i8")
"""What Triton's kernels take after their arguments."""
GLOBAL = {"LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "UBLKCP", "UTMALDG", "UTMASTG"}
"""Accesses to memory that the kernel before may still write, or read. A prefetch is none."""
LOCAL = {"LDL", "STL"}
Compiled = dict[Specialization, Cubin]
Listings = dict[Specialization, Listing]


def listings_of(cubins: Compiled) -> Listings:
    program = disassembler()
    assert program is not None, "the extra 'dev' brings one"
    sm = next(iter(cubins.values())).sm
    codes = [image_of(cubin.data, cubin.code.entry).code for cubin in cubins.values()]
    return dict(zip(cubins, disassemble(codes, sm, program), strict=True))


@pytest.fixture(scope="module")
def cubins() -> Compiled:
    """The decode path on sm_90."""
    return compile_all(decode_path(90), 90, progress=NO_PROGRESS)


@pytest.fixture(scope="module")
def listings(cubins: Compiled) -> Listings:
    return listings_of(cubins)


@pytest.fixture(scope="module", params=[pytest.param(sm, marks=pytest.mark.soak) for sm in NEWER])
def newer(request: pytest.FixtureRequest) -> tuple[Compiled, Listings]:
    """Of a newer chip a linear and the attention that are split."""
    chosen = [one for one in decode_path(request.param) if is_split(one)]
    few = {one.kernel: one for one in reversed(chosen)}
    compiled = compile_all(few.values(), request.param, progress=NO_PROGRESS)
    return compiled, listings_of(compiled)


def is_split(specialization: Specialization) -> bool:
    splits = dict(specialization.constants).get("SPLITS", 1)
    return isinstance(splits, int) and splits > 1


def name_of(specialization: Specialization) -> str:
    constants = " ".join(f"{name}={value}" for name, value in specialization.constants if value is not None)
    signature = f"{specialization.kernel}({' '.join(specialization.types)})"
    return f"{specialization.file}: {signature} {constants} warps={specialization.warps}"


def facts(specialization: Specialization, cubin: Cubin, figures: Figures) -> dict[str, object]:
    known = Entry(90, specialization, True, cubin, figures).as_json()
    kept = ("registers", "spills", "local", "shared", "loop", "instr_per_weight", "mma", "in_flight")
    return {name: list(known[name]) if name == "mma" else known[name] for name in kept}


def changed(found: dict[str, dict[str, object]], held: dict[str, dict[str, object]]) -> str:
    """The kernels that are not as held, each with its facts that differ; "" if there are none."""
    lines = [
        f"{name}: {fact} was {held.get(name, {}).get(fact)}, is {found.get(name, {}).get(fact)}"
        for name in sorted({*found, *held})
        for fact in sorted({*found.get(name, {}), *held.get(name, {})})
        if found.get(name, {}).get(fact) != held.get(name, {}).get(fact)
    ]
    return "\n".join([*lines, "`make golden` rewrites the file, `git diff` shows"]) if lines else ""


def test_the_decode_path_costs_what_is_committed(cubins: Compiled, pytestconfig: pytest.Config):
    """Exactly: sources and tools are pinned, so every difference has a reason, and is to be seen."""
    program = disassembler()
    assert program is not None, "the extra 'dev' brings one"
    figures = figures_of(cubins, 90, program)
    found = {name_of(one): facts(one, cubins[one], figures[one]) for one in cubins}
    assert len(found) == len(cubins) > 20
    if pytestconfig.getoption("--update-golden"):
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(found.items()))
        GOLDEN.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    if difference := changed(found, json.loads(GOLDEN.read_text(encoding="utf-8"))):
        pytest.fail(f"{GOLDEN.name} has changed:\n{difference}", pytrace=False)


def test_a_change_is_told_by_kernel_and_fact():
    held = {"a": {"registers": 40, "mma": ["HMMA.16816.F32"]}, "b": {"spills": 0}}
    now = {"a": {"registers": 41, "mma": ["HMMA.16816.F32"]}, "c": {"spills": 8}}
    assert changed(held, held) == ""
    assert changed(now, held) == (
        "a: registers was 40, is 41\nb: spills was 0, is None\nc: spills was None, is 8\n"
        "`make golden` rewrites the file, `git diff` shows"
    )


def test_a_loop_of_a_linear_multiplies_the_weights_of_its_tile(cubins: Compiled, listings: Listings):
    """One iteration covers one block of K: the products counted in the loop give the weights of a tile.

    All stages but one are on their way, in shared memory.
    """
    linears = {one: listing for one, listing in listings.items() if one.kernel == "linear_small"}
    assert len(linears) > 10
    for specialization, listing in linears.items():
        sizes = {name: value for name, value in specialization.constants if isinstance(value, int)}
        tile = sizes["BLOCK_N"] * sizes["BLOCK_K"]
        loop = main_loop(listing)
        assert weights_of(specialization, loop) == tile / (32 * specialization.warps), specialization
        stage = tile * 4 // (sizes["PER_WORD"] or 2) + sizes["BLOCK_M"] * sizes["BLOCK_K"] * 2
        if 0 < sizes["GROUP"] < 16 * sizes["PER_WORD"]:
            narrow = dict(specialization.constants)["FORMAT"] in ("nvfp4", "mxfp4")
            stage += tile // sizes["GROUP"] * (1 if narrow else 2)
        assert (
            thread_bytes_in_flight(loop) * 32 * specialization.warps
            == (specialization.stages - 1) * stage
            <= cubins[specialization].code.shared
        )


def misplaced(image: Image, types: Sequence[str], warps: int) -> list[str]:
    """What of a cubin is other than the runtime launches it."""
    wanted = tuple(Parameter(field.offset, field.size) for field in layout([*types, *SCRATCH]))
    facts = {
        "parameters": (image.parameters, wanted),
        "threads": (image.threads, (32 * warps, 1, 1)),
        "ELF": ((image.osabi, image.abi), (0x41, 8)),
    }
    return [f"{name}: {found}, not {right}" for name, (found, right) in facts.items() if found != right]


def shape(specialization: Specialization) -> tuple[int, ...]:
    """Sizes of its parameters: what their places depend on."""
    return tuple(field.size for field in layout(specialization.types))


def test_parameters_lie_where_the_runtime_puts_them(cubins: Compiled):
    """Of the decode path, and of one case for every other sequence of sizes that a case has."""
    known = {shape(specialization) for specialization in cubins}
    others = {
        shape(specialization): specialization
        for specialization in (specialization_of(case.call) for case in CASES.values())
    }
    more = [specialization for sizes, specialization in others.items() if sizes not in known]
    every = cubins | compile_all(more, 90, progress=NO_PROGRESS)
    wrong = {v: misplaced(image_of(c.data, c.code.entry), c.types, v.warps) for v, c in every.items()}
    assert {specialization: found for specialization, found in wrong.items() if found} == {}
    assert len({shape(specialization) for specialization in every}) > 10


def test_newer_chips_take_the_same_parameters(newer: tuple[Compiled, Listings]):
    for specialization, cubin in newer[0].items():
        assert misplaced(image_of(cubin.data, cubin.code.entry), cubin.types, specialization.warps) == [], (
            specialization
        )


def test_a_parameter_elsewhere_is_found(cubins: Compiled):
    specialization, cubin = next(iter(cubins.items()))
    image = image_of(cubin.data, cubin.code.entry)
    moved = replace(image, parameters=(*image.parameters[:-1], Parameter(image.parameters[-1].offset + 8, 8)))
    assert [one.partition(":")[0] for one in misplaced(moved, cubin.types, specialization.warps)] == ["parameters"]
    assert [one.partition(":")[0] for one in misplaced(image, cubin.types, 2 * specialization.warps)] == ["threads"]
    assert misplaced(replace(image, abi=7), cubin.types, specialization.warps) == ["ELF: (65, 7), not (65, 8)"]
    narrow = ["i32" if kind == "*i32" else kind for kind in specialization.types]
    assert narrow != list(specialization.types) and misplaced(image, narrow, specialization.warps) != []


def test_what_is_no_cubin_of_the_kernel_is_refused(cubins: Compiled):
    cubin = next(iter(cubins.values()))
    with pytest.raises(EngineError, match=r"expected kernel 'k' in a cubin\n  found: not a 64-bit ELF file"):
        image_of(b"MZ", "k")
    with pytest.raises(
        EngineError, match=r"expected kernel 'other_kernel' in a cubin\n  found: KeyError: '.nv.info.other_kernel'"
    ):
        image_of(cubin.data, "other_kernel")
    with pytest.raises(EngineError, match="found: error: unpack_from requires"):
        image_of(cubin.data[:100], cubin.code.entry)


def too_early(instructions: Sequence[Instruction]) -> list[str]:
    """Accesses to global memory before the kernel has let the next one come and has waited for the one before."""
    names = [one.name for one in instructions]
    missing = [name for name in ("PREEXIT", "ACQBULK") if name not in names]
    if missing:
        return [f"no {name}" for name in missing]
    waited = max(names.index("PREEXIT"), names.index("ACQBULK"))
    return [one.opcode for one in instructions[:waited] if one.name in GLOBAL]


def unfenced(instructions: Sequence[Instruction]) -> list[str]:
    """Atomic operations that tell other blocks of stores which no fence for the whole GPU has made visible."""
    found, fenced = [], True
    for one in instructions:
        if one.name == "STG":
            fenced = False
        elif one.name == "MEMBAR" and "GPU" in one.modifiers:
            fenced = True
        elif one.name == "ATOMG" and not fenced:
            found.append(one.opcode)
    return found


def test_kernels_wait_before_they_access_memory(listings: Listings, newer: tuple[Compiled, Listings]):
    every = [*listings.items(), *newer[1].items()]
    assert {str(specialization): found for specialization, one in every if (found := too_early(one.instructions))} == {}


def test_linears_of_few_tokens_ask_for_weights_before_they_wait(listings: Listings):
    ahead = [one for spec, one in listings.items() if dict(spec.constants).get("AHEAD")]
    assert len(ahead) > 15
    for one in ahead:
        names = [instruction.name for instruction in one.instructions]
        assert names.index("UBLKPF") < names.index("ACQBULK") < names.index("LDGSTS")


def test_sums_of_parts_are_visible_before_the_block_counts_itself(listings: Listings, newer: tuple[Compiled, Listings]):
    split = [
        (specialization, one)
        for specialization, one in (*listings.items(), *newer[1].items())
        if is_split(specialization)
    ]
    assert len(split) > 10
    for specialization, one in split:
        names = [instruction.name for instruction in one.instructions]
        assert "ATOMG" in names and "STG" in names[: names.index("ATOMG")], specialization
        assert unfenced(one.instructions) == [], specialization


def test_the_decode_path_has_no_local_memory(listings: Listings, newer: tuple[Compiled, Listings]):
    for specialization, one in (*listings.items(), *newer[1].items()):
        assert [x.opcode for x in one.instructions if x.name in LOCAL] == [], specialization


def test_a_wrong_order_is_found(listings: Listings):
    """The same listings with one instruction taken out, or moved."""
    one = next(one.instructions for specialization, one in listings.items() if is_split(specialization))
    load = next(x for x in one if x.name == "LDGSTS")
    assert too_early([load, *one]) == [load.opcode]
    assert too_early([x for x in one if x.name != "ACQBULK"]) == ["no ACQBULK"]
    wait = next(x for x in one if x.name == "ACQBULK")
    assert "LDGSTS" in too_early([*(x for x in one if x is not wait), wait])[0]
    assert unfenced([x for x in one if x.name != "MEMBAR"])[0].startswith("ATOMG.E.ADD")
    narrow = [replace(x, opcode="MEMBAR.ALL.CTA") if x.name == "MEMBAR" else x for x in one]
    assert len(unfenced(narrow)) == 1


def test_a_disassembler_that_does_not_work_is_named(tmp_path: Path):
    program = tmp_path / "nvdisasm"
    fix = "try: pip install nvidia-cuda-nvdisasm"
    with pytest.raises(ResourceError, match=rf"cannot disassemble with {program}\n  found: .*No such file.*\n  {fix}"):
        disassemble([b"\0" * 16], 90, program)
    program.write_text("#!/bin/sh\necho unknown architecture >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ResourceError, match=f"found: unknown architecture\n  {fix}"):
        disassemble([b"\0" * 16], 90, program)
    program.write_text("#!/bin/sh\necho '/*0000*/ EXIT ;'\n")
    with pytest.raises(ResourceError, match="found: it does not list every instruction"):
        disassemble([b"\0" * 32], 90, program)
