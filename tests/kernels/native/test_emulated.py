"""Kernels in CUDA C++ run on the CPU, from their own source, and give what their cases expect; wrong ones are found.

See `support/native/machine.h` for what that machine is, and is not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.native import emulated

from llmc.compiler.targets.cuda.call import Case
from llmc.compiler.targets.cuda.kernels.linear.native import gemm, stream

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason="no C++ compiler")
CASES = {case.name: case for suite in (stream.SUITE, gemm.SUITE) for case in suite.cases()}
STREAM, GEMM = "fp8-silu-bf16-3x134x448", "rows-bf16-70x136x528"
SEEDS = range(2)


def error_of(case: Case, found: dict[str, torch.Tensor]) -> float:
    """The largest of a result, over the largest number of that result."""
    assert found.keys() == case.expected.keys()
    errors = [(found[name].double() - one).abs().max() / one.abs().max() for name, one in case.expected.items()]
    return torch.stack(errors).max().item()


@pytest.mark.parametrize("name", CASES)
def test_the_source_computes_what_the_case_expects_in_any_order(name: str, tmp_path: Path):
    """The same bits, too: no sum depends on what comes first."""
    case, found = CASES[name], []
    for seed in SEEDS:
        found.append(emulated.run(case.call, case.inputs, case.sizes, tmp_path, seed))
        assert error_of(case, found[-1]) < case.tolerance
    for first, second in zip(*(one.values() for one in found), strict=True):
        assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))


WAITS = "    wait_for_launch();\n"
FIRST = "    for (int i = 0; i < FIRST; ++i) copies.ask_activations"
FULL, EMPTY = (f"mbarrier_wait({which}(turn.stage), turn.parity);\n" for which in ("full", "empty"))
WRONG = {
    "stage is read before it is there": (STREAM, FULL, ""),
    "stage is overwritten while it is read": (STREAM, EMPTY, ""),
    "activations are asked for too early": (STREAM, WAITS + FIRST, FIRST),
    "fewer bytes are expected": (STREAM, "real * 2));", "real));"),
    "columns of a lane are others": (STREAM, "mma_tf32(sums[r][n], a, tokens[n][2 * j],", "mma_tf32(sums[r][n], a, 0,"),
    "rows of a fragment are others": (STREAM, "load_shared(at + 4 * ROW)", "load_shared(at + 2 * ROW)"),
    "sums of warps are not waited for": (STREAM, "    named_barrier<32 * WARPS>(1);\n", ""),
    "one arrival too few": (GEMM, "mbarrier_init(empty(stage), WARPS)", "mbarrier_init(empty(stage), WARPS + 1)"),
    "rows have another stride": (GEMM, "64ull << 32", "32ull << 32"),
    "columns advance too far": (GEMM, "a + 2 * k, b + 2 * k", "a + 4 * k, b + 4 * k"),
    "stage is released a product too early": (GEMM, "arrive(empty(before))", "arrive(empty(turn.stage))"),
    "last product is not waited for": (GEMM, "    wgmma_wait<0>();\n", ""),
    "rows of sums are others": (GEMM, "warp * 16 + lane / 4", "warp * 16 + lane / 8"),
}
"""Changes of a line, and what they do."""


QUICK = ("stage is overwritten while it is read", "rows have another stride")


@pytest.mark.parametrize("what", [one if one in QUICK else pytest.param(one, marks=pytest.mark.soak) for one in WRONG])
def test_a_wrong_kernel_is_found(what: str, tmp_path: Path):
    """By a wrong result, or because the machine stops it, in one of a few orders."""
    name, right, wrong = WRONG[what]
    case = CASES[name]
    assert case.call.kernel.native is not None
    changed = Path(case.call.kernel.native.file).name, right, wrong
    for seed in range(4):
        try:
            results = emulated.run(case.call, case.inputs, case.sizes, tmp_path, seed, changed)
        except RuntimeError as error:
            assert "g++" not in str(error), error
            return
        if not error_of(case, results) < case.tolerance:
            return
    pytest.fail("nothing was found")
