"""Gathers rows of the embedding table, in any weight format, and dequantizes them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .....quantize import FORMATS
from .....runtime.dtypes import DTYPES
from ..call import ROUNDING, Case, Kernel, KernelCall, Operand, Suite, product, total
from .linear.dequantize import GROUP, e4m3, e8m0

BLOCK = 1024


@triton.jit
def e2m1(code):
    """E2M1 codes (i32, 0 to 15) as f32."""
    bits = ((code & 8) << 28) | ((code & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37


@triton.jit
def embed_kernel(
    token_ids,
    codes,
    scales,
    global_scale,
    x,
    start,
    count,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """token_ids i32 [tokens], table [VOCAB, WIDTH] in FORMAT -> x [tokens, WIDTH], FACTOR times its rows; ids out of
    range read row 0.

    With start and count the table has the rows of ids start to start + count, VOCAB is None, and other ids give zeros.
    """
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(token_ids + token).to(tl.int64)
    if start is not None:
        row -= start
        held = (row >= 0) & (row < count)
    else:
        held = (row >= 0) & (row < VOCAB)
    row = tl.where(held, row, 0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    if FORMAT == "dense":
        number = tl.load(codes + row * WIDTH + column, inside, 0.0).to(tl.float32)
    elif FORMAT == "fp8":
        number = e4m3(tl.load(codes + row * WIDTH + column, inside, 0)) * tl.load(scales + row)
    elif FORMAT == "int8":
        code = tl.load(codes + row * WIDTH + column, inside, 0).to(tl.float32) - 128.0
        number = code * tl.load(scales + row * (WIDTH // GROUP) + column // GROUP, inside, 0.0).to(tl.float32)
    else:
        pair = tl.load(codes + row * (WIDTH // 2) + column // 2, inside, 0).to(tl.int32)
        code = (pair >> (4 * (column % 2))) & 15
        scale = tl.load(scales + row * (WIDTH // GROUP) + column // GROUP, inside, 0)
        if FORMAT == "int4":
            number = (code.to(tl.float32) - 8.0) * scale.to(tl.float32)
        elif FORMAT == "nvfp4":
            number = e2m1(code) * (e4m3(scale) * tl.load(global_scale))
        else:
            number = e2m1(code) * e8m0(scale)
    if start is not None:
        number = tl.where(held, number, 0.0)
    if FACTOR != 1.0:
        number *= FACTOR
    tl.store(x + token * WIDTH + column, number.to(x.dtype.element_ty), inside)


KERNEL = Kernel("embed", embed_kernel)


def embed(
    token_ids: Operand,
    weights: tuple[Operand, ...],
    x: Operand,
    *,
    format: str,
    start: int | None = None,
    factor: float = 1.0,
) -> KernelCall:
    """Rows of the table at token_ids -> x [tokens, H]; weights are the format's components in order (dense: one).

    They are multiplied by `factor` (Gemma). `start`: the table is a part of a vocabulary, from this id on; ids of other
    parts give zeros.
    """
    tokens, width = x.shape
    vocab = weights[0].shape[0]
    assert isinstance(width, int) and isinstance(vocab, int)
    names = ("codes", "scales", "global_scale")
    given = dict(zip(names, weights, strict=False))
    read = sum(FORMATS[format].bits_per_weight(1, width) for _ in "1") if format != "dense" else 0
    row = int(width * read / 8) if read else _row_bytes(weights[0])
    part = {} if start is None else {"start": start, "count": vocab}
    return KernelCall(
        KERNEL,
        {"token_ids": token_ids, **given, "x": x, **part},
        {
            **{name: None for name in names[len(weights) :]},
            **({"start": None, "count": None, "VOCAB": vocab} if start is None else {"VOCAB": None}),
            "WIDTH": width,
            "FORMAT": format.partition("-")[0],
            "GROUP": GROUP.get(format) or 1,
            "FACTOR": factor,
            "BLOCK": BLOCK,
        },
        (tokens, -(-width // BLOCK)),
        writes=("x",),
        bytes=total(token_ids.bytes, product(tokens, row), x.bytes),
        operations=product(tokens, 2 * width),
    )


def _row_bytes(table: Operand) -> int:
    width = table.shape[1]
    assert isinstance(width, int)
    return width * {"bf16": 2, "f16": 2, "f32": 4}[table.dtype]


def _weights(format: str, vocab: int, width: int) -> tuple[dict[str, torch.Tensor], tuple[Operand, ...], torch.Tensor]:
    """(tensors by operand name, operands, the dequantized table f32 [vocab, width])."""
    table = torch.randn(vocab, width, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    if format == "dense":
        return {"weight": table}, (Operand("weight", "bf16", (vocab, width)),), table.float()
    fmt = FORMATS[format]
    parts = fmt.quantize(table)
    tensors, operands = {}, []
    for component in fmt.components(vocab, width):
        raw = torch.from_numpy(parts[component.name].reshape(component.shape).astype(DTYPES[component.dtype].numpy))
        dtype = DTYPES[component.dtype].kernel
        tensors[component.name] = raw.view(torch.bfloat16) if dtype == "bf16" else raw
        operands.append(Operand(component.name, dtype, component.shape))
    return tensors, tuple(operands), torch.from_numpy(fmt.dequantize(parts))


def _cases() -> Iterator[Case]:
    ids = torch.tensor([0, 6, 3, -1, 7, 2], dtype=torch.int32)
    rows = torch.tensor([0, 6, 3, 0, 0, 2])
    for format in ("dense", *FORMATS):
        act = "f16" if format == "fp8" else "bf16"
        tensors, operands, table = _weights(format, 7, 128 if format.endswith("g128") else 96)
        width = table.shape[1]
        x = Operand("x", act, ("tokens", width))
        call = embed(Operand("ids", "i32", ("tokens",)), operands, x, format=format)
        yield Case(format, call, {"ids": ids, **tensors}, {"tokens": 6}, {"x": table[rows]}, ROUNDING[act])
    tensors, operands, table = _weights("int4", 7, 96)
    x = Operand("x", "bf16", ("tokens", 96))
    call = embed(Operand("ids", "i32", ("tokens",)), operands, x, format="int4", factor=9.75)
    given = {"ids": ids, **tensors}
    yield Case("factor", call, given, {"tokens": 6}, {"x": 9.75 * table[rows]}, ROUNDING["bf16"])
    tensors, operands, table = _weights("fp8", 7, 96)
    call = embed(
        Operand("ids", "i32", ("tokens",)), operands, Operand("x", "bf16", ("tokens", 96)), format="fp8", start=3
    )
    expected = torch.zeros(6, 96)
    expected[1], expected[2], expected[4] = table[3], table[0], table[4]
    yield Case("part", call, {"ids": ids, **tensors}, {"tokens": 6}, {"x": expected}, ROUNDING["bf16"])


def _calls(sm: int) -> Iterator[KernelCall]:
    table = Operand("weight", "bf16", (128256, 4096))
    ids, x = Operand("ids", "i32", ("tokens",)), Operand("x", "bf16", ("tokens", 4096))
    yield embed(ids, (table,), x, format="dense")
    yield embed(ids, (Operand("weight", "bf16", (64128, 4096)),), x, format="dense", start=64128)


SUITE = Suite((KERNEL,), _cases, _calls)
