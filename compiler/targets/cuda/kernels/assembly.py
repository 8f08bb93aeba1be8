"""PTX that decodes a 32-bit word of weights to pairs of bf16 or f16, with one to two instructions per weight.

Register p<r> gets the weights (r, r + P/2) of a word's P weights: the same masks then decode both halves of a word.
With `scaled`, weights are multiplied by the pair of scales s. Weights are too small by `FACTOR`.
"""

from __future__ import annotations

FACTOR = {
    ("fp8", "f16"): 2.0**8,
    ("nvfp4", "bf16"): 2.0**10,
    ("nvfp4", "f16"): 2.0**8,
    ("mxfp4", "bf16"): 2.0**16,
    ("mxfp4", "f16"): 2.0**4,
}
"""The factor that a sum over K still lacks: a power of two, cheaper to apply to the sum than to each weight."""
_ONE = {"bf16": "0x3F803F80", "f16": "0x3C003C00"}
_MINUS_ONE = {"bf16": "0xBF80BF80", "f16": "0xBC00BC00"}
_MINUS_ZERO = "0x80008000"


def _fma(act: str, register: str, a: str, b: str, c: str) -> str:
    """register = a * b + c, in pairs; constants are first moved to registers, which the instruction needs."""
    text = ""
    for free, operand in (("c", b), ("d", c)):
        text += f"mov.b32 {free}, {operand}; " if operand.startswith("0x") else ""
    b, c = ("c" if b.startswith("0x") else b), ("d" if c.startswith("0x") else c)
    return text + f"{'fma.rn.bf16x2' if act == 'bf16' else 'fma.rn.f16x2'} {register}, {a}, {b}, {c}; "


def _e2m1(act: str) -> str:
    if act == "f16":
        # E2M1 fills only the high byte of an f16, so four weights are placed at once and then spread.
        lines = (
            "shl.b32 a, w, 4; shl.b32 b, w, 1; and.b32 b, b, 0x0E0E0E0E; lop3.b32 a, a, 0x80808080, b, 0xEA; "
            "prmt.b32 p0, a, 0, 0x2404; prmt.b32 p2, a, 0, 0x3414; "
            "shr.u32 b, w, 3; and.b32 b, b, 0x0E0E0E0E; lop3.b32 a, w, 0x80808080, b, 0xEA; "
            "prmt.b32 p1, a, 0, 0x2404; prmt.b32 p3, a, 0, 0x3414; "
        )
    else:
        # A product places two copies of a code, one for its sign and one for its magnitude.
        lines = (
            "and.b32 a, w, 0x000F000F; mul.lo.u32 a, a, 0x1040; and.b32 p0, a, 0x81C081C0; "
            "and.b32 a, w, 0x00F000F0; mul.lo.u32 a, a, 0x104; and.b32 p1, a, 0x81C081C0; "
            "shr.u32 b, w, 6; and.b32 a, b, 0x003C003C; mul.lo.u32 a, a, 0x410; and.b32 p2, a, 0x81C081C0; "
            "and.b32 b, b, 0x01C001C0; lop3.b32 p3, w, 0x80008000, b, 0xEA; "
        )
    return lines


def _shifted(register: str, shift: str) -> str:
    if not shift:
        return f"mov.b32 {register}, w; "
    direction, count = shift.split()
    return f"{'shl.b32' if direction == 'shl' else 'shr.u32'} {register}, w, {count}; "


def _int4(act: str) -> str:
    # OR-ing a code into the mantissa of 128 (bf16) or 1024 (f16) adds it; then 136 or 1032 is subtracted.
    base, minus = {"bf16": ("0x43004300", "0xC308C308"), "f16": ("0x64006400", "0xE408E408")}[act]
    lines = ""
    for r in range(4):
        lines += _shifted("a", f"shr {4 * r}" if r else "")
        lines += f"lop3.b32 p{r}, a, 0x000F000F, {base}, 0xEA; " + _fma(act, f"p{r}", f"p{r}", _ONE[act], minus)
    return lines


def _int8(act: str) -> str:
    lines = ""
    for r in range(2):
        lines += _shifted("a", "shr 8" if r else "")
        if act == "f16":
            lines += f"lop3.b32 p{r}, a, 0x00FF00FF, 0x64006400, 0xEA; "
            lines += _fma(act, f"p{r}", f"p{r}", _ONE[act], "0xE480E480")
        else:
            # 128 + (code & 127), minus 128 if the code's first bit is set, else minus 256.
            lines += f"lop3.b32 p{r}, a, 0x007F007F, 0x43004300, 0xEA; "
            lines += "lop3.b32 b, a, 0x00800080, 0x43004300, 0xAE; "
            lines += _fma(act, f"p{r}", "b", _MINUS_ONE[act], f"p{r}")
    return lines


def _fp8(act: str) -> str:
    lines = ""
    mask = "0x3F803F80" if act == "f16" else "0x07F007F0"
    shifts = (("shl 8", "shl 7"), ("", "shr 1")) if act == "f16" else (("shl 8", "shl 4"), ("", "shr 4"))
    for r, (sign, magnitude) in enumerate(shifts):
        lines += _shifted("a", sign) + _shifted("b", magnitude)
        lines += f"and.b32 b, b, {mask}; lop3.b32 p{r}, a, 0x80008000, b, 0xEA; "
        if act == "bf16":
            lines += _fma(act, f"p{r}", f"p{r}", "0x7B807B80", _MINUS_ZERO)
    return lines


def _whole(format: str, act: str, scaled: bool) -> tuple[str, str]:
    pairs = 2 if format in ("fp8", "int8") else 4
    lines = {"fp8": _fp8, "int8": _int8, "int4": _int4, "e2m1": _e2m1}[format](act)
    names = ", ".join(f"p{r}" for r in range(pairs))
    text = f"{{ .reg .b32 w, s, a, b, c, d, {names}; mov.b32 w, ${2 * pairs}; "
    if scaled:
        text += f"mov.b32 s, ${2 * pairs + 1}; "
        lines += "".join(_fma(act, f"p{r}", f"p{r}", "s", _MINUS_ZERO) for r in range(pairs))
    text += lines + "".join(f"mov.b32 {{${2 * r}, ${2 * r + 1}}}, p{r}; " for r in range(pairs)) + "}"
    return text, ",".join(["=h"] * (2 * pairs) + ["r"] + ["r"] * scaled)


CODES = {
    "fp8": "fp8",
    "int8": "int8",
    "int8-g128": "int8",
    "int4": "int4",
    "int4-g128": "int4",
    "nvfp4": "e2m1",
    "mxfp4": "e2m1",
}
"""How each format stores a weight: the one line that the kernels need of a format whose codes they know."""
PTX = {
    (format, act, scaled): _whole(codes, act, scaled)
    for format, codes in CODES.items()
    for act in ("bf16", "f16")
    for scaled in (False, True)
}
"""Inline PTX and its constraints by format, dtype of the result, and `scaled`.

Outputs: p0 low, p0 high, p1 low, ... (16 bits each). Inputs: the word, and the pair of scales if scaled.
"""
