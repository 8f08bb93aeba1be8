"""int8: half the bytes of bf16 at nearly its accuracy; one code a byte."""

from __future__ import annotations

from .integer import integer_format

INT8 = integer_format("int8", bits=8, block=32)
INT8_G128 = integer_format("int8-g128", bits=8, block=128)
