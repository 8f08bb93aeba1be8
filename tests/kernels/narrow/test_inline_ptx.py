"""Inline PTX, which the interpreter cannot run, computes the numbers that it stands for: it is evaluated here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from llmc.compiler.targets.cuda.kernels import fp8
from llmc.compiler.targets.cuda.kernels.assembly import CODES, PTX
from llmc.compiler.targets.cuda.kernels.linear import dequantize

MASK = 0xFFFFFFFF
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
UNIT = {("e2m1", "bf16"): 2.0**-126, ("e2m1", "f16"): 2.0**-14, ("fp8", "f16"): 2.0**-8}
"""What a decoded 1 is where it is not 1: the bits of a code are those of a smaller number."""
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def number(bits: int, kind: torch.dtype) -> float:
    return float(torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(kind)[0])


def bits_of(value: float, kind: torch.dtype) -> int:
    return int(torch.tensor([value], dtype=torch.float64).to(kind).view(torch.int16)[0]) & 0xFFFF


def halves(word: int) -> tuple[int, int]:
    return word & 0xFFFF, word >> 16


def fused(a: int, b: int, c: int, kind: torch.dtype) -> int:
    found = [
        bits_of(number(x, kind) * number(y, kind) + number(z, kind), kind)
        for x, y, z in zip(halves(a), halves(b), halves(c), strict=True)
    ]
    return found[0] | found[1] << 16


def permuted(a: int, b: int, selector: int) -> int:
    data = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    return int.from_bytes(bytes(data[selector >> (4 * i) & 7] for i in range(4)), "little")


def widened(codes: int) -> int:
    low, high = (
        float(torch.tensor([code], dtype=torch.uint8).view(torch.float8_e4m3fn)[0])
        for code in (codes & 255, codes >> 8)
    )
    return bits_of(low, torch.float16) | bits_of(high, torch.float16) << 16


OPERATIONS: dict[str, Callable[..., int]] = {
    "shl.b32": lambda a, n: a << n & MASK,
    "shr.u32": lambda a, n: a >> n,
    "and.b32": lambda a, b: a & b,
    "mul.lo.u32": lambda a, b: a * b & MASK,
    "prmt.b32": permuted,
    "fma.rn.bf16x2": lambda a, b, c: fused(a, b, c, torch.bfloat16),
    "fma.rn.f16x2": lambda a, b, c: fused(a, b, c, torch.float16),
    "cvt.rn.f16x2.e4m3x2": widened,
}


def lop3(a: int, b: int, c: int, table: int) -> int:
    """The table is the function of 0xF0, 0xCC and 0xAA (PTX ISA, lop3)."""
    found = 0
    for bit in range(32):
        index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1
        found |= (table >> index & 1) << bit
    return found


def evaluate(text: str, given: Sequence[int], results: int) -> list[int]:
    """The results $0 ... of a block of inline PTX, whose inputs follow them."""
    known = {f"${results + i}": value for i, value in enumerate(given)}

    def read(name: str) -> int:
        return known[name] if name in known else int(name, 0)

    for statement in filter(None, map(str.strip, text.strip().strip("{}").split(";"))):
        name, _, rest = statement.partition(" ")
        if name == ".reg":
            continue
        pair = re.fullmatch(r"mov\.b32 \{(\S+), (\S+)\}, (\S+)", statement)
        if pair:
            known[pair[1]], known[pair[2]] = halves(read(pair[3]))
            continue
        target, *operands = (part.strip() for part in rest.split(","))
        values = [read(one) for one in operands]
        known[target] = (
            values[0] if name == "mov.b32" else lop3(*values) if name == "lop3.b32" else OPERATIONS[name](*values)
        )
    return [known[f"${i}"] for i in range(results)]


def weight(codes: str, word: int, at: int) -> float:
    """Weight `at` of a word."""
    if codes in ("fp8", "int8"):
        code = word >> (8 * at) & 255
        return (
            float(torch.tensor([code], dtype=torch.uint8).view(torch.float8_e4m3fn)[0])
            if codes == "fp8"
            else code - 128.0
        )
    code = word >> (4 * at) & 15
    return code - 8.0 if codes == "int4" else E2M1[code & 7] * (-1.0 if code & 8 else 1.0)


def words(codes: str) -> list[int]:
    source = torch.Generator().manual_seed(3)
    found = [0, MASK, 0x80000000, 0x01234567, 0x89ABCDEF, *map(int, torch.randint(0, 1 << 32, (60,), generator=source))]
    if codes == "fp8":  # without NaN, which no weight is
        found = [word & 0x7E7E7E7E | word & 0x80808080 for word in found]
    return found


@pytest.mark.parametrize(("format", "act", "scaled"), sorted(PTX))
def test_a_word_of_weights(format: str, act: str, scaled: bool):
    text, operands = PTX[format, act, scaled]
    count, kind, codes = operands.count("=h"), DTYPES[act], CODES[format]
    unit = UNIT.get((codes, act), 1.0)
    scale = {"bf16": 2.0**116 * 1.375, "f16": 1.375}[act] if codes == "e2m1" else 0.75
    pair = bits_of(scale, kind) * 0x10001
    for word in words(codes):
        found = evaluate(text, [word, pair] if scaled else [word], count)
        for register in range(count // 2):
            for half in range(2):
                value = weight(codes, word, register + half * count // 2) * unit
                expected = bits_of(number(bits_of(value, kind), kind) * scale if scaled else value, kind)
                got = found[2 * register + half]
                assert number(got, kind) == number(expected, kind), (hex(word), register, half)


def test_two_scales_of_nvfp4():
    """Each of all codes, at each of the four places of a word."""
    text = dequantize._TWO_NVFP4
    for first in range(0x7F):
        word = int.from_bytes(bytes((first, (first * 5 + 1) % 0x7F, 0x7E - first, (first + 64) % 0x7F)), "little")
        for selector, places in ((0x4140, (0, 1)), (0x4342, (2, 3))):
            for place, pair in zip(places, evaluate(text, [word, selector], 2), strict=True):
                code = torch.tensor([word >> (8 * place) & 255], dtype=torch.uint8)
                value = float(code.view(torch.float8_e4m3fn)[0]) * 2.0**116
                assert halves(pair) == (bits_of(value, torch.bfloat16),) * 2, (hex(word), place)


def test_pairs_of_a_cache_of_e4m3():
    """Two 16-bit words at a time: the low codes of both, then the high codes; NaN stays NaN."""
    text = re.search(r'"(\{ \.reg \.b32 w;.*?)"\s*"(.*?)"', Path(fp8.__file__).read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    for code in range(256):
        given = [code, (code * 7 + 3) & 255, 255 - code, (code + 128) & 255]
        low, high = evaluate(text[1] + text[2], [int.from_bytes(bytes(given), "little")], 2)
        for half, place in ((0, 0), (1, 2)):
            for found, at in ((low, place), (high, place + 1)):
                expected = torch.tensor([given[at]], dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float16)
                got = torch.tensor([number(halves(found)[half], torch.float16)], dtype=torch.float16)
                assert torch.equal(got, expected) or (bool(got.isnan()) and bool(expected.isnan())), (code, half, at)
