"""A small kernel compiled by this machine's Triton, to see whether its driver takes any machine code at all.

python benchmarks/gpu_triton.py --sm 90 --out kernel.cubin
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmc.compiler.targets.cuda.cubins.cache import KernelCache
from llmc.compiler.targets.cuda.cubins.compile import compile_variants, variant_of
from llmc.compiler.targets.cuda.kernels import suites
from llmc.runtime.progress import NO_PROGRESS

SUITE = "probe"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sm", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    variant = variant_of(next(iter(suites()[SUITE].cases())).call)
    (cubin,) = compile_variants([variant], options.sm, progress=NO_PROGRESS, cache=KernelCache(None)).values()
    options.out.write_bytes(cubin.data)


if __name__ == "__main__":
    main()
