"""RMSNorm of the first columns of a merged linear's result: latents of queries, beside which lie those of keys."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ...call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, next_power, product, total
from ..attention.reference import ORDER as IN_ORDER
from ..attention.reference import in_order
from ..linear.dequantize import stored_column


@triton.jit
def first_norm_kernel(
    x,
    weight,
    y,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    EPSILON: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first WIDTH columns of x [tokens, STRIDE], weight [WIDTH] -> y [tokens, WIDTH], their RMSNorm * weight, in
    the order of `stored_column`. Grid: tokens."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    number = tl.load(x + token * STRIDE + column, inside, 0.0).to(tl.float32)
    number = number * tl.rsqrt(tl.sum(number * number, axis=0) / WIDTH + EPSILON)
    number = number * tl.load(weight + column, inside, 0.0).to(tl.float32)
    tl.store(y + token * WIDTH + stored_column(column, ORDER), number.to(y.dtype.element_ty), inside)


KERNEL = Kernel("first_norm", first_norm_kernel)


def first_norm(x: Operand, weight: Operand, y: Operand, *, epsilon: float, order: int = 0) -> KernelCall:
    """x [tokens, W], of which the first H columns are normed -> y [tokens, H]; order: see `linear/parts/fused.py`."""
    tokens, width = y.shape
    stride = x.shape[1]
    assert isinstance(width, int) and isinstance(stride, int)
    block = next_power(width)
    return KernelCall(
        KERNEL,
        {"x": x, "weight": weight, "y": y},
        {"STRIDE": stride, "WIDTH": width, "EPSILON": epsilon, "ORDER": order, "BLOCK": block},
        (tokens,),
        writes=("y",),
        bytes=total(y.bytes, y.bytes, weight.bytes),
        operations=product(tokens, 5 * width),
        warps=min(max(block // 512, 1), 16),
    )


def _cases() -> Iterator[Case]:
    random = torch.Generator().manual_seed(8)
    for tokens, width, stride, act, weights, order in (
        (3, 96, 160, "bf16", "bf16", 0),
        (1, 1536, 2112, "bf16", "bf16", 0),
        (2, 20, 21, "f16", "f32", 0),
        (5, 256, 300, "bf16", "f32", IN_ORDER),
    ):
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
        x = torch.randn(tokens, stride, generator=random).to(dtype[act])
        weight = torch.randn(width, generator=random).to(dtype[weights])
        call = first_norm(
            Operand("x", act, ("tokens", stride)),
            Operand("weight", weights, (width,)),
            Operand("y", act, ("tokens", width)),
            epsilon=1e-5,
            order=order,
        )
        y = torch.nn.functional.rms_norm(x[:, :width].float(), (width,), weight.float(), 1e-5)
        name, inputs = f"{tokens}x{width}-of-{stride}-{act}-{weights}", {"x": x, "weight": weight}
        expected = {"y": in_order(y) if order else y}
        yield Case(f"{name}{'-ordered' * bool(order)}", call, inputs, {"tokens": tokens}, expected, ROUNDING[act])


def _calls(sm: int) -> Iterator[KernelCall]:
    x, y = Operand("x", "bf16", ("tokens", 2112)), Operand("y", "bf16", ("tokens", 1536))
    yield first_norm(x, Operand("weight", "bf16", (1536,)), y, epsilon=1e-6)


SUITE = Suite((KERNEL,), _cases, _calls)
