"""Figures of a kernel from its instructions: which loop counts, weights of every tensor core, copies, residency."""

from __future__ import annotations

import pytest

from llmc.compiler.targets.cuda.cubins import sass
from llmc.compiler.targets.cuda.cubins.compile import Cubin, Specialization
from llmc.compiler.targets.cuda.cubins.figures import figures, main_loop, thread_bytes_in_flight, weights_of
from llmc.compiler.targets.cuda.cubins.sass import Instruction, Listing
from llmc.runtime.chips import MULTIPROCESSORS
from llmc.runtime.plan.plan import MachineCode


def listing(*lines: str, start: int = 0) -> Listing:
    """Lines "@P0 BRA 0x10", one instruction each; targets count from `start`."""
    text = "\n".join(f"        /*{16 * i:04x}*/                   {line} ;" for i, line in enumerate(lines))
    return Listing(tuple(sass._parsed(text)), start)


def specialization(warps: int = 4, **constants: int) -> Specialization:
    return Specialization("k", "f", "k", tuple(constants.items()), (), warps, 3)


def cubin(registers: int = 55, shared: int = 26624) -> Cubin:
    return Cubin(90, b"", "", (), MachineCode("k", shared, registers, 0, pdl=True))


TILE = {"K": 4096, "BLOCK_N": 64, "BLOCK_M": 16, "BLOCK_K": 128}
LOOP = ("HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24",)
COPY = "LDGSTS.E.BYPASS.128 [R21+0x6000], desc[UR12][R10.64+0x180], !PT"


def test_lines_of_the_disassembler_become_instructions():
    found = listing(
        "@!P0 LDG.E.U16 R3, desc[UR6][R2.64+0x8]", "@UP1 BRA.U 0x0", "NOP", "ISETP.NE.AND P0, PT, R3, RZ, PT"
    )
    assert found.instructions == (
        Instruction(0, "@!P0", "LDG.E.U16", "R3, desc[UR6][R2.64+0x8]"),
        Instruction(16, "@UP1", "BRA.U", "0x0"),
        Instruction(32, "", "NOP", ""),
        Instruction(48, "", "ISETP.NE.AND", "P0, PT, R3, RZ, PT"),
    )
    assert (found.instructions[0].name, found.instructions[0].modifiers) == ("LDG", ("E", "U16"))
    headers = '\t.headerflags\t@"EF_CUDA_SM90"\n.L_x_0:\n        /*0000*/  EXIT ;\n'
    assert list(sass._parsed(headers)) == [Instruction(0, "", "EXIT", "")]


def test_kernels_in_one_text_are_told_apart():
    both = listing("LDG R0, [R1]", "BRA 0x10", "STG [R1], R0", "EXIT", "BRA 0x40").instructions
    first, second = sass._split(both, [32, 48])
    assert [one.opcode for one in first.instructions] == ["LDG", "BRA"]
    assert [(one.address, one.opcode) for one in second.instructions] == [(0, "STG"), (16, "EXIT"), (32, "BRA")]
    assert [len(loop) for loop in first.loops] == [1]
    assert second.start == 32
    assert second.loops == (second.instructions[2:],)


def test_a_loop_is_what_a_branch_leads_back_over():
    inner = listing("MOV", "FADD", "@P0 BRA 0x10", "LDG.E", "@P1 BRA 0x0", "@P2 BRA 0x60", "EXIT", "BRA 0x70")
    assert [[one.opcode for one in loop] for loop in inner.loops] == [
        ["BRA"],
        ["FADD", "BRA"],
        ["MOV", "FADD", "BRA", "LDG.E", "BRA"],
    ]
    assert main_loop(inner) == inner.loops[2]
    shifted = listing("MOV", "FADD", "@P0 BRA 0x110", start=0x100)
    assert [len(loop) for loop in shifted.loops] == [2]
    assert main_loop(shifted) == ()
    rare = listing("HMMA.16816.F32 R0", "@P0 BRA 0x0", "EXIT", "SYNCS", "BRA 0x0")
    assert [len(loop) for loop in rare.loops] == [2]


def test_the_main_loop_has_the_tensor_cores():
    found = listing(
        "LDG.E", "LDG.E", "@P0 BRA 0x0", "HMMA.16816.F32 R0", "@P1 BRA 0x30", "HFMA2.MMA R1", "@P1 BRA 0x50"
    )
    assert main_loop(found) == found.instructions[3:5]


@pytest.mark.parametrize(
    ("line", "warps", "weights"),
    [
        ("HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24", 4, 8),
        ("QGMMA.64x16x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24", 4, 16),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", 4, 4),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", 4, 2),
        ("QMMA.16832.F32.E4M3.E4M3 R4, R8, R12, R4", 4, 8),
        ("UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], !UPT", 4, 8),
        ("UTCQMMA tmem[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], UP0", 8, 8),
        ("HFMA2.MMA R4, -RZ, RZ, 0, 0", 4, 0),
    ],
)
def test_weights_of_an_instruction(line: str, warps: int, weights: int):
    assert weights_of(specialization(warps, **TILE), listing(line).instructions) == weights


def test_a_kernel_without_weights_has_no_figure_for_them():
    found = figures(specialization(PAGE=64), cubin(), listing(*LOOP, "BRA 0x0"))
    assert (found.loop, found.instr_per_weight, found.mma) == (2, None, ("HGMMA.64x16x16.F32.BF16",))


def test_an_unrolled_loop_gives_the_same_figures():
    """Two stages on their way, of 16 bytes a thread each, in 8 blocks: the registers would allow 9."""
    once = (COPY, "LDGDEPBAR", "DEPBAR.LE SB0, 0x1", *LOOP)
    single, double = listing(*once, *once[3:], "BRA 0x0"), listing(*(once + once[3:]) * 2, "NOP", "BRA 0x0")
    found = [figures(specialization(**TILE), cubin(), one) for one in (single, double)]
    assert [one.loop for one in found] == [6, 12]
    assert [one.instr_per_weight for one in found] == [6 / 16, 12 / 32]
    assert [one.in_flight for one in found] == [2 * 16 * 128 * 8] * 2


def test_copies_of_every_width_are_counted_and_bulk_copies_are_not_guessed():
    loop = listing(COPY, COPY.replace("128", "64"), COPY.replace("128", "").replace("BYPASS.", ""), "LDGDEPBAR")
    assert thread_bytes_in_flight(loop.instructions) == 16 + 8 + 4
    assert thread_bytes_in_flight(listing("DEPBAR.LE SB0, 0x2", "LDG.E.128").instructions) == 0
    bulk = figures(specialization(**TILE), cubin(), listing("UBLKCP.S.G [UR8], [UR4], UR6", *LOOP, "BRA 0x0"))
    assert bulk.in_flight is None


@pytest.mark.parametrize(
    ("sm", "threads", "registers", "shared", "blocks"),
    [
        (90, 128, 55, 26624, 8),  # shared memory
        (90, 128, 87, 36864, 5),  # registers
        (90, 1024, 32, 0, 2),  # threads
        (89, 1024, 32, 0, 1),
        (90, 32, 16, 0, 32),  # blocks
        (120, 32, 16, 0, 24),
        (100, 256, 255, 227 << 10, 1),
        (90, 512, 200, 0, 0),
    ],
)
def test_blocks_on_a_multiprocessor(sm: int, threads: int, registers: int, shared: int, blocks: int):
    assert MULTIPROCESSORS[sm].resident(threads, registers, shared) == blocks
