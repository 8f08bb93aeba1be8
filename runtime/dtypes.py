"""Names that all packages share: number types in one table, weight formats, kinds of routers and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Dtype:
    """A number type that tensors are stored in."""

    name: str
    """In safetensors files."""
    held: str
    """The numpy type that holds it on the host: raw bits where numpy lacks the type."""
    onnx: int = 0
    """TensorProto.DataType of the values passed to ONNX Runtime; 0 for types that are never passed."""
    kernel: str = ""
    """In launch plans; kernels read 8-bit floats and packed codes as u8."""
    pointer: str = ""
    """Triton's pointer to `kernel`."""
    config: str = ""
    """In config.json, for types that weights of a checkpoint may have."""

    @cached_property
    def numpy(self) -> np.dtype:
        return np.dtype(self.held)

    @cached_property
    def bytes(self) -> int:
        return self.numpy.itemsize


_TABLE = (
    Dtype("BF16", "<u2", 16, "bf16", "*bf16", "bfloat16"),
    Dtype("F16", "<f2", 10, "f16", "*fp16", "float16"),
    Dtype("F32", "<f4", 1, "f32", "*fp32", "float32"),
    Dtype("I32", "<i4", 6, "i32", "*i32"),
    Dtype("I64", "<i8", 7, "i64", "*i64"),
    Dtype("U8", "u1", 2, "u8", "*u8"),
    Dtype("F8_E4M3", "u1", 0, "u8", "*u8"),
    Dtype("F8_E8M0", "u1", 0, "u8", "*u8"),
    Dtype("F8_E5M2", "u1"),
    Dtype("BOOL", "?"),
    Dtype("I8", "i1"),
    Dtype("I16", "<i2"),
    Dtype("U16", "<u2"),
    Dtype("U32", "<u4"),
    Dtype("U64", "<u8"),
    Dtype("F64", "<f8"),
)
DTYPES: Mapping[str, Dtype] = {one.name: one for one in _TABLE}
"""By safetensors name."""
KERNEL_DTYPES: Mapping[str, Dtype] = {one.kernel: one for one in DTYPES.values() if one.kernel}
"""By name in launch plans. u8 stands for raw bits."""
CONFIG_DTYPES: Mapping[str, str] = {one.config: one.name for one in DTYPES.values() if one.config}
"""Name in config.json to safetensors name, for the types that weights of a checkpoint may have."""
WEIGHT_FORMATS = ("fp8", "nvfp4", "mxfp4", "int8", "int8-g128", "int4", "int4-g128")
"""Formats that weights can be quantized to; `quantize` implements them. Names are checked here, without torch."""
REDUCED_FORMATS = ("none", "fp8")
"""Formats of the KV cache."""
FP4_FORMATS = ("nvfp4", "mxfp4")
"""Formats that FP4 tensor cores multiply, if both sides of a product have the same."""
ACTIVATION_FORMATS = (*REDUCED_FORMATS, *FP4_FORMATS)
"""Formats of activations in large products."""
SOFTMAX, SIGMOID, CHOSEN, SPARSEMIXER = "softmax", "sigmoid", "chosen", "sparsemixer"
"""Kinds of routers of experts by their scores, in records and graphs. CHOSEN is the softmax of the chosen logits alone
(GPT-OSS). SPARSEMIXER (Phi 3.5 MoE, arXiv 2409.12136) chooses its two experts one after the other."""
LIMITED = "limited"
"""The activation of GPT-OSS: (up + 1) * gate * sigmoid(alpha * gate), with gate at most `limit` and up within it."""
