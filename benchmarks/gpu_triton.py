"""A small kernel compiled by this machine's Triton and its assembler, to see whether the driver takes any machine code.

python benchmarks/gpu_triton.py --sm 90 --out kernel.cubin
"""

from __future__ import annotations

import argparse
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def nothing_kernel(x):
    """Does nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sm", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    source = ASTSource(fn=nothing_kernel, signature={"x": "*i32"}, constexprs={})
    compiled = triton.compile(source, target=GPUTarget("cuda", options.sm, 32))
    options.out.write_bytes(compiled.asm["cubin"])


if __name__ == "__main__":
    main()
