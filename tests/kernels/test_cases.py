"""Every case of every kernel, through Triton's interpreter, against its operator's definition in torch or numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.kernel_cases import CASES

from llmc.compiler.targets.cuda.call import Case, Operand
from llmc.compiler.targets.simulate import interpreter
from llmc.compiler.targets.simulate.call import blank, launch

tl: Any = interpreter.tl  # Triton asks once, when it is first imported, whether it interprets


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


def test_all_bfloat16_numbers_become_the_float32_that_torch_makes_of_them():
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256).T
    expected = torch.from_numpy(bits.copy().view(np.int16)).view(torch.bfloat16).float().numpy().view(np.uint32)
    assert np.array_equal(interpreter.convert(bits, tl.bfloat16, tl.float32, None), expected)


def test_a_block_type_is_made_once_and_only_of_shapes_that_a_block_can_have():
    one = tl.block_type(tl.float32, [4, 8])
    assert one is tl.block_type(tl.float32, tl.core.tuple([tl.constexpr(4), 8])) is one.with_element_ty(tl.float32)
    assert one != tl.block_type(tl.float32, [8, 4]) != tl.block_type(tl.int32, [8, 4])
    pointers = [tl.block_type(tl.pointer_type(tl.int8, space), [4]) for space in ("global", "shared")]
    assert pointers[0] is not pointers[1]
    for wrong in ([3], [], [4.0]):
        for _ in range(2):
            with pytest.raises((TypeError, ValueError)):
                tl.block_type(tl.float32, wrong)
