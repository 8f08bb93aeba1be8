"""Rules for 4-bit activations: both sides of a product on FP4 tensor cores have the same format and groups."""

from __future__ import annotations

from typing import ClassVar

from .legalize import QuantizeActivations

FP4_SM = 100
"""The first compute capability with FP4 tensor cores."""
_EXACT = "(float[2,3,64] x, uint8[4,64] W, float[4] S) => (float[2,3,4] h) { y = llmc.Linear:fp8(x, W, S) h = Relu(y) }"


class QuantizeToNvfp4(QuantizeActivations):
    """Quantizes the activations of nvfp4 linears to nvfp4, so large steps use FP4 tensor cores."""

    overload: ClassVar[str] = "nvfp4"
    tolerance = 0.5  # of four results of random numbers
    fires = (
        "(float[2,3,64] x, uint8[4,32] W, uint8[4,4] S, float T) => (float[2,3,4] h) "
        "{ y = llmc.Linear:nvfp4(x, W, S, T) h = Relu(y) }",
        "(float[2,3,64] x, uint8[4,32] W, uint8[4,4] S, float T, float[4] B) => (float[2,3,4] h) "
        "{ y = llmc.Linear:nvfp4_bias(x, W, S, T, B) h = Relu(y) }",
    )
    refuses = {"the weight is not nvfp4": _EXACT}


class QuantizeToMxfp4(QuantizeActivations):
    """Quantizes the activations of mxfp4 linears to mxfp4, so large steps use FP4 tensor cores."""

    overload: ClassVar[str] = "mxfp4"
    tolerance = 0.5
    fires = (
        "(float[2,3,64] x, uint8[4,32] W, uint8[4,2] S) => (float[2,3,4] h) "
        "{ y = llmc.Linear:mxfp4(x, W, S) h = Relu(y) }",
    )
    refuses = {"the weight is not mxfp4": _EXACT}


RULES = {"fp8": QuantizeActivations(), "nvfp4": QuantizeToNvfp4(), "mxfp4": QuantizeToMxfp4()}
"""The pass by format of activations."""
