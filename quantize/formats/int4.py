"""int4: the smallest weights that every CPU kernel reads; two codes a byte along K, low nibble first."""

from __future__ import annotations

from .integer import integer_format

INT4 = integer_format("int4", bits=4, block=32)
INT4_G128 = integer_format("int4-g128", bits=4, block=128)
