"""The kernels of a decode step of Llama-3.1-8B, few enough to be compiled in every run of the tests."""

from __future__ import annotations

from collections.abc import Iterator

from llmc.compiler.targets.cuda.cubins.compile import Specialization, specialization_of
from llmc.compiler.targets.cuda.kernels import suites

WHOLE = ("attention.flash_decode", "attention.rope_cache", "embed", "sampling.counts", "sampling.sample")
WHOLE += ("sampling.tile_stats",)
"""Kernel files of which every call counts."""
SPLIT_FORMATS = ("dense", "fp8", "nvfp4", "int4")
"""Weight formats whose q|k|v, o and down are among them; gate|up is in every format."""


def decode_path(sm: int) -> list[Specialization]:
    """Up to 16 tokens in bf16: the linears of a layer and the head; attention, cache, norms, sampling."""
    return list(dict.fromkeys(_specializations(sm)))


def _specializations(sm: int) -> Iterator[Specialization]:
    files = suites()
    for call in files["linear.small"].calls(sm):
        specialization = specialization_of(call)
        constants = dict(specialization.constants)
        n, format = constants["N"], constants["FORMAT"]
        wanted = n in (28672, 128256) or format in SPLIT_FORMATS
        if wanted and constants["BLOCK_M"] == 16:
            yield specialization
    for call in files["norm"].calls(sm):
        if call.kernel.name != "rms_norm_fp8":  # of large steps only
            yield specialization_of(call)
    for name in WHOLE:
        yield from map(specialization_of, files[name].calls(sm))
