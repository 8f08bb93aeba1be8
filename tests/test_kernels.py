"""Every case of every kernel, through Triton's interpreter, against its operator's definition in torch or numpy."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import CASES

from llmc.compiler.targets.cuda.kernel import Case, Operand
from llmc.compiler.targets.simulate.launch import blank, launch


def differences(case: Case, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """max|a-b| / max|b| of every expected tensor."""
    found = {}
    for name, expected in case.expected.items():
        a, b = tensors[name].double(), torch.as_tensor(expected).double()
        assert a.shape == b.shape, name
        cared = ~b.isnan()
        a, b = a[cared], b[cared]
        assert bool(a.isfinite().all()), f"{name}: not finite"
        found[name] = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if a.numel() else 0.0
    return found


@pytest.mark.parametrize("name", CASES)
def test_case(name: str):
    case = CASES[name]
    operands = [a for a in case.call.arguments.values() if isinstance(a, Operand)]
    tensors = {o.name: case.inputs[o.name].clone() if o.name in case.inputs else blank(o, case.sizes) for o in operands}
    for operand in operands:
        assert blank(operand, case.sizes).shape == tensors[operand.name].shape, operand.name
    launch(case.call, tensors, case.sizes)
    assert {n: d for n, d in differences(case, tensors).items() if d > case.tolerance} == {}
    written = {case.call.arguments[parameter] for parameter in case.call.writes}
    for operand in operands:
        if operand not in written:
            before, after = (
                t.contiguous().view(-1).view(torch.uint8) for t in (case.inputs[operand.name], tensors[operand.name])
            )
            assert torch.equal(before, after), f"{operand.name} was written"
