"""Linears of 65 to 512 tokens fill an H100: there are blocks for each place that the chip has for them."""

from __future__ import annotations

import math

import pytest

from llmc.compiler.targets.cuda.call import KernelCall
from llmc.compiler.targets.cuda.cubins.compile import compile_all, specialization_of
from llmc.compiler.targets.cuda.kernels.linear import fp8
from llmc.compiler.targets.cuda.kernels.linear.cases import LLAMA_LAYERS, model_call
from llmc.compiler.targets.cuda.kernels.linear.large import linear_large
from llmc.compiler.targets.cuda.kernels.linear.many import tile_for_many
from llmc.compiler.targets.cuda.kernels.linear.tiles import default_tile, wrong_tile
from llmc.runtime.chips import CAPABILITIES, MULTIPROCESSORS, chip
from llmc.runtime.plan.formula import value
from llmc.runtime.progress import NO_PROGRESS

TOKENS = (65, 128, 200, 256, 384, 512)
PROCESSORS = chip("h100").processors
SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (2560, 2560), (8192, 28672))


@pytest.mark.parametrize(
    ("kind", "format"), [("fp8", "fp8"), ("large", "dense"), ("large", "nvfp4"), ("large", "int8")]
)
def test_each_multiprocessor_has_a_block(kind: str, format: str):
    for n, k in SHAPES:
        for tokens in TOKENS:
            tile = default_tile(kind, n, k, format, tokens, 90)
            blocks = -(-n // tile.block_n) * -(-tokens // tile.block_m) * tile.splits
            assert blocks >= PROCESSORS, (n, k, tokens, tile)
            assert not wrong_tile(kind, n, k, format, tokens, tile, 90)


def test_every_chip_has_tiles_that_fit():
    for sm in CAPABILITIES:
        for kind, format in (("fp8", "fp8"), ("large", "dense"), ("large", "int4-g128"), ("large", "int8")):
            for n, k in (*SHAPES, (64, 96), (40, 160)):
                for tokens in (65, 512, 2304):
                    tile = tile_for_many(kind, n, k, format, tokens, sm)
                    assert not wrong_tile(kind, n, k, format, tokens, tile, sm), (sm, kind, format, n, k, tokens, tile)


def calls(tokens: int) -> list[KernelCall]:
    """o and down, whose blocks are fewest."""
    found = []
    for n, k in (LLAMA_LAYERS[1], LLAMA_LAYERS[3]):
        found.append(model_call(linear_large, n, k, "dense", "bf16", tokens, 90, "large"))
        tile = default_tile("fp8", n, k, "fp8", tokens, 90)
        found.append(fp8.model_call(fp8.linear_fp8, n, k, "rows", tokens, 90, tile))
    return found


def test_blocks_are_a_wave_or_more_of_what_the_compiled_kernels_let_in():
    """A wave is as many as registers, threads and shared memory of the compiled kernel allow on all processors."""
    by_tokens = {tokens: calls(tokens) for tokens in (128, 256)}
    wanted = {specialization_of(call) for some in by_tokens.values() for call in some}
    cubins = compile_all(wanted, 90, progress=NO_PROGRESS)
    for tokens, some in by_tokens.items():
        for call in some:
            cubin = cubins[specialization_of(call)]
            blocks = math.prod(value(str(size), {"tokens": tokens}) for size in call.grid)
            wave = PROCESSORS * MULTIPROCESSORS[90].resident(32 * call.warps, cubin.code.registers, cubin.shared)
            assert blocks >= wave, call
            assert cubin.code.spills == 0


def test_a_block_of_256_tokens_does_not_spill():
    """128 x 256 in FP8, and in 16 bits with a norm behind it: their epilogues go by quarters."""
    some = [model_call(linear_large, 4096, 14336, "dense", "bf16", 8192, 90, "large")]
    tile = default_tile("fp8", 4096, 14336, "fp8", 8192, 90)
    some.append(fp8.model_call(fp8.linear_fp8, 4096, 14336, "rows", 8192, 90, tile))
    assert all(call.constants["BLOCK_M"] == 256 for call in some)
    cubins = compile_all(map(specialization_of, some), 90, progress=NO_PROGRESS)
    assert [cubin.code.spills for cubin in cubins.values()] == [0, 0]
