"""Facts of this machine that are made up, so that what they predict can be computed by hand."""

from __future__ import annotations

from importlib.metadata import version

from llmc.runtime.costs.facts import BuildFacts, CpuFacts, FormatFacts, ProductFacts
from llmc.runtime.machine import cpu_count, cpu_name

MIB = 1 << 20
FACTS = CpuFacts(
    llmc=version("llmc-engine"),
    cpu=cpu_name(),
    threads=cpu_count(),
    date="2026-11-29",
    read_bytes_per_s=2e10,
    products=(ProductFacts(8, 32, (1e-10,) * 5),),
    product_s=0.0,
    attention_head_s=0.0,
    attention_byte_s=0.0,
    attention_operation_s=0.0,
    element_s={"norm": 0.0, "activation": 0.0, "other": 0.0},
    node_s=0.0,
    step_s=0.0,
    logit_s=0.0,
    build=BuildFacts(
        *(1.0, 0.25, 0.5, 0.125, 0.25, 0.0, 0.0, 0.0),
        200 * MIB,
        (FormatFacts("none", 0.0, 0.0), FormatFacts("int8", 1e-6, 0.0)),
    ),
)
WEIGHTS = 8 * (512 * 256 + 256 * 256 + 3 * 768 * 256) + 4096 * 256
"""Those that a step of PICO reads: of its linears, and of the head."""
