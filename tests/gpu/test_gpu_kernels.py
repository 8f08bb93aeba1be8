"""Every case of every kernel on a GPU, twice: right, and the same bits both times."""

from __future__ import annotations

import pytest
import torch
from gpu.on_device import run_case
from support.kernel_cases import CASES

from llmc.compiler.targets.cuda.call import Operand
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization, specialization_of, try_compile
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.errors import LlmcError
from llmc.runtime.progress import NO_PROGRESS

Compiled = dict[Specialization, Cubin | LlmcError]


@pytest.fixture(scope="session")
def compiled(gpu: Driver) -> Compiled:
    """All cases' kernels for this GPU, or why one could not be compiled."""
    return try_compile([specialization_of(case.call) for case in CASES.values()], gpu.sm, progress=NO_PROGRESS)


@pytest.mark.parametrize("name", CASES)
def test_case(gpu: Driver, compiled: Compiled, name: str):
    case = CASES[name]
    if gpu.sm < case.call.kernel.minimum_sm:
        pytest.skip(f"needs compute capability {case.call.kernel.minimum_sm / 10:g}")
    cubin = compiled[specialization_of(case.call)]
    if isinstance(cubin, LlmcError):
        raise cubin
    found = run_case(gpu, case, cubin)
    for tensor, expected in case.expected.items():
        a, b = found[tensor].double(), torch.as_tensor(expected).double()
        cared = ~b.isnan()
        a, b = a[cared], b[cared]
        assert bool(a.isfinite().all()), f"{tensor}: not finite"
        if a.numel():
            error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
            assert error <= case.tolerance + case.device_tolerance, tensor
    again = run_case(gpu, case, cubin)
    written = {case.call.arguments[parameter] for parameter in case.call.writes}
    for operand in case.call.arguments.values():
        if isinstance(operand, Operand):
            before = found[operand.name] if operand in written else case.inputs[operand.name]
            same = torch.equal(before.reshape(-1).view(torch.uint8), again[operand.name].reshape(-1).view(torch.uint8))
            assert same, f"{operand.name} differs between two runs, or was written"
