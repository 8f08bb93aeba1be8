"""int8: half of bf16 at an accuracy that is hard to tell from it; one code to a byte."""

from __future__ import annotations

from .integer import integer_format

INT8 = integer_format("int8", bits=8, block=32)
INT8_G128 = integer_format("int8-g128", bits=8, block=128)
