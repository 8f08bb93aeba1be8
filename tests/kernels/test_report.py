"""`llmc kernels`: the chips it knows, what it shows of compiled kernels, what makes it fail, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import Outcome

from llmc.cli.common import extras
from llmc.compiler.targets.cuda.call import Kernel, KernelCall, Operand, Suite
from llmc.compiler.targets.cuda.cubins import report, sass
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization
from llmc.compiler.targets.cuda.cubins.figures import Figures
from llmc.compiler.targets.cuda.kernels import gated
from llmc.runtime.chips import CAPABILITIES, CHIPS, SM, chip, target_for
from llmc.runtime.errors import LlmcError, RecipeError, Unsupported
from llmc.runtime.plan.plan import MachineCode

CUBIN = Cubin(90, b"\x7fELF" * 600, ".version 9.0", ("*bf16",), MachineCode("k", 1024, 40, 0), 16)
FIGURES = Figures(94, 2.9375, ("HGMMA.64x16x16.F32.BF16", "HMMA.16816.F32.BF16"), 122880)


def wide(width: int) -> KernelCall:
    x, y = Operand("x", "bf16", ("tokens", 2 * width)), Operand("y", "bf16", ("tokens", width))
    return gated.gated(x, y, activation="relu")


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[int, Cubin | LlmcError]:
    """Outcomes by WIDTH of a suite whose model uses 64 and whose only case uses 32; others compile well."""
    given: dict[int, Cubin | LlmcError] = {}

    class _Case:
        call = wide(32)

    suite = Suite((gated.KERNEL,), lambda: [_Case()], lambda sm: [wide(64)])  # pyright: ignore[reportArgumentType]

    def try_compile(
        specializations: dict[Specialization, bool], sm: int, **_: object
    ) -> dict[Specialization, Cubin | LlmcError]:
        return {one: given.get(dict(one.constants)["WIDTH"], replace(CUBIN, sm=sm)) for one in specializations}  # type: ignore

    monkeypatch.setattr(report, "suites", lambda files: {"gated": suite})

    def figures(cubins: dict[Specialization, Cubin], sm: int, program: Path) -> dict[Specialization, Figures]:
        return {one: FIGURES if "WIDTH=64" in str(one) else Figures(None, None, (), 0) for one in cubins}

    monkeypatch.setattr(report, "try_compile", try_compile)
    monkeypatch.setattr(report, "figures_of", figures)
    return given


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real compiling of one small case and no model shape."""
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path))
    case = next(iter(gated.SUITE.cases()))
    monkeypatch.setattr(gated, "SUITE", replace(gated.SUITE, cases=lambda: [case], calls=lambda sm: []))


def test_chips_are_consistent():
    assert CAPABILITIES == (80, 86, 87, 89, 90, 100, 120)
    for name, one in CHIPS.items():
        assert one.name == name and target_for(one.sm) in SM
        assert (one.fp8 is None) == (one.sm < 89)
        assert (one.fp4 is None) == (one.sm < 100)
        rates = [rate for rate in (one.bf16, one.fp8, one.fp4) if rate is not None]
        assert rates == sorted(rates)
        assert one.reachable_bandwidth < one.bandwidth
    assert CHIPS["h200"].reachable_bandwidth == 4.3e12
    assert chip(90) is chip("90") is chip("SM_90") == replace(chip("h200"), name="sm_90")


@pytest.mark.parametrize("name", ["h20", "tpu", 75])
def test_unknown_chips_are_refused(name: str | int):
    with pytest.raises(RecipeError, match=f"cannot find chip '{name}'\n  try: one of a100, a10"):
        chip(name)


def test_every_chip_gets_a_table(outcomes: dict[int, object], call: Callable[..., Outcome]):
    found = call("kernels")
    assert found.code == 0
    lines = found.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        f"sm_{sm}: 2 cubins of 4.69 KiB, 0 spill, 0 refused" for sm in CAPABILITIES
    ]
    assert lines[1].split() == [
        *("file", "kernel", "use", "registers", "spills", "shared"),
        *("instr/weight", "in", "flight", "tensor", "cores", "cubin", "constants"),
    ]
    assert lines[2].split() == [
        *("gated", "gated", "model", "40", "0", "1040"),
        *("2.94", "122880", "HGMMA.64x16x16.F32.BF16", "HMMA.16816.F32.BF16", "2400"),
        *("WIDTH=64", "ACTIVATION=relu", "BLOCK=1024", "warps=4", "stages=2"),
    ]
    assert lines[3].split()[:8] == ["gated", "gated", "case", "40", "0", "1040", "0", "2400"]
    assert found.err == ""


def test_without_a_disassembler_its_columns_are_absent(
    outcomes: dict[int, object], call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
):
    for module in (report, sass):
        monkeypatch.setattr(module, "disassembler", lambda: None)
    found = call("kernels", "--sm", "90")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[1].split() == ["file", "kernel", "use", "registers", "spills", "shared", "cubin", "constants"]
    assert lines[2].split()[:7] == ["gated", "gated", "model", "40", "0", "1040", "2400"]
    assert found.err == (
        "llmc: instr/weight, in flight, tensor cores are not shown without a disassembler: "
        "pip install nvidia-cuda-nvdisasm\n"
    )
    rows = call("kernels", "--sm", "90", "--json").json["kernels"]
    assert {rows[0][name] for name in ("loop", "instr_per_weight", "mma", "in_flight")} == {None}


def test_chips_are_chosen_by_any_name(outcomes: dict[int, object], call: Callable[..., Outcome]):
    found = call("kernels", "--sm", "h200", "--sm", "90", "--sm", "sm_80", "--json")
    assert found.code == 0
    assert found.json["ok"] is True
    assert found.json["chips"] == [90, 80]
    assert [(one["sm"], one["decode"]) for one in found.json["kernels"]] == [
        (90, True),
        (90, False),
        (80, True),
        (80, False),
    ]
    assert found.json["kernels"][0] == {
        "sm": 90,
        "file": "gated",
        "kernel": "gated",
        "constants": {"WIDTH": 64, "ACTIVATION": "relu", "BLOCK": 1024},
        "types": ["*bf16", "*bf16"],
        "warps": 4,
        "stages": 2,
        "decode": True,
        "registers": 40,
        "spills": 0,
        "local": 0,
        "shared": 1040,
        "global_scratch": 0,
        "bytes": 2400,
        "loop": 94,
        "instr_per_weight": 2.9375,
        "mma": ["HGMMA.64x16x16.F32.BF16", "HMMA.16816.F32.BF16"],
        "in_flight": 122880,
    }


def test_a_spill_of_a_model_shape_fails(outcomes: dict[int, object], call: Callable[..., Outcome]):
    outcomes[64] = replace(CUBIN, code=replace(CUBIN.code, spills=24))
    found = call("kernels", "--sm", "90")
    assert found.code == 1
    assert "sm_90: 2 cubins of 4.69 KiB, 1 spill, 0 refused" in found.out
    assert found.err == (
        "llmc: expected every kernel to compile, and none of a model's shapes to spill\n"
        "  found: gated WIDTH=64 ACTIVATION=relu BLOCK=1024 warps=4 stages=2 on sm_90\n"
        "  try: smaller tiles, more warps or fewer stages\n"
    )
    found = call("kernels", "--sm", "90", "--json")
    assert found.code == 1
    assert found.json["ok"] is False
    assert found.json["error"]["exit_code"] == 1
    assert found.json["kernels"][0]["spills"] == 24


def test_a_spill_of_a_case_is_only_shown(outcomes: dict[int, object], call: Callable[..., Outcome]):
    outcomes[32] = replace(CUBIN, code=replace(CUBIN.code, spills=24))
    found = call("kernels", "--sm", "90")
    assert (found.code, found.err) == (0, "")
    assert ", 1 spill, 0 refused" in found.out


def test_a_kernel_that_is_not_for_a_chip_is_listed(outcomes: dict[int, object], call: Callable[..., Outcome]):
    outcomes[64] = Unsupported("kernel", found="it needs sm_89 or newer")
    found = call("kernels", "--sm", "80")
    assert found.code == 0
    assert "1 refused" in found.out
    assert found.out.endswith(
        "  refused: gated: gated WIDTH=64 ACTIVATION=relu BLOCK=1024 warps=4 stages=2\n    it needs sm_89 or newer\n"
    )
    rows = call("kernels", "--sm", "80", "--json").json["kernels"]
    assert [row.get("refused") for row in rows] == ["it needs sm_89 or newer", None]


def test_a_kernel_that_does_not_compile_fails(outcomes: dict[int, object], call: Callable[..., Outcome]):
    outcomes[32] = LlmcError("kernel", found="CompilationError: at 3:4")
    found = call("kernels", "--sm", "90", "--sm", "80")
    assert found.code == 1
    assert "CompilationError: at 3:4" in found.out
    assert "WIDTH=32 ACTIVATION=relu BLOCK=1024 warps=4 stages=2 on sm_90; gated WIDTH=32" in found.err


@pytest.mark.usefixtures("compiled")
def test_a_kernel_file_is_compiled_and_kept(call: Callable[..., Outcome], tmp_path: Path):
    found = call("kernels", "--file", "gated", "--sm", "90", "--jobs", "1", "--json")
    assert found.code == 0, found.err
    (row,) = found.json["kernels"]
    assert row["bytes"] > 4000
    assert row["registers"] > 10
    assert (row["instr_per_weight"], row["mma"], row["in_flight"]) == (None, [], 0)
    assert len(list((tmp_path / "kernels").iterdir())) == 1
    again = call("kernels", "--file", "gated", "--sm", "90", "--json")
    assert again.json == found.json


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sm", "h2000"], "cannot find chip 'h2000'\n  try: one of a100, a10, "),
        (["--sm", "V100"], "cannot compile kernels for 'V100' of compute capability 7.0\n  try: a GPU of 8.0, 8.6, "),
        (["--file", "gatd"], "cannot find kernel file 'gatd' (did you mean 'gated'?)\n  try: one of "),
        (["--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_wrong_flags_are_refused(arguments: list[str], message: str, call: Callable[..., Outcome]):
    found = call("kernels", *arguments)
    assert (found.code, found.out) == (2, "")
    assert message in found.err


def test_without_triton_the_pip_line_is_shown(monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "triton" else name)
    found = call("kernels")
    assert (found.code, found.err) == (
        4,
        "llmc: cannot use llmc kernels without the extra 'cuda-build'\n  found: not installed: triton\n"
        "  try: pip install '.[cuda-build]' in a checkout of llmc\n",
    )


def test_a_chip_below_the_minimum_is_refused_without_compiling(
    call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
):
    kernel = Kernel("gated", gated.gated_kernel, minimum_sm=100)
    needs = replace(wide(64), kernel=kernel)
    monkeypatch.setattr(report, "suites", lambda files: {"gated": Suite((kernel,), lambda: [], lambda sm: [needs])})
    found = call("kernels", "--sm", "90")
    assert found.code == 0
    assert found.out.startswith("sm_90: 0 cubins of 0 B, 0 spill, 1 refused\n  refused: gated: gated WIDTH=64 ")
