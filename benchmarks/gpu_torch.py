"""What torch and its cuBLAS reach on the same GPU, the peer of our large products: medians by the GPU's clock.

python benchmarks/gpu_torch.py --tokens 2048 --shapes 6144x4096 4096x4096     the last line is JSON
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

COLD_BYTES = 256 << 20
"""Of weights that are read before the first are read again, as in `compiler/targets/cuda/tuning/measure.py`."""
MOST_COPIES = 8
ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--shapes", nargs="+", required=True, help="n and k of weights, such as 6144x4096")
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        found = products(options.tokens, n, k, False) | products(options.tokens, n, k, True)
        rows[shape] = {name: 2 * options.tokens * n * k / seconds / 1e12 for name, seconds in found.items()}
    print(json.dumps({"torch": torch.__version__, "tokens": options.tokens, "tflops": rows}))


def products(tokens: int, n: int, k: int, narrow: bool) -> dict[str, float]:
    """Seconds of x [tokens, k] times w [n, k] by name; empty where torch has no GPU, without those that it refuses.

    narrow: in FP8 on both sides, with a scale for all and one a row; otherwise in bf16.
    """
    if not torch.cuda.is_available():
        return {}
    made = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(tokens, k, device="cuda", generator=made).bfloat16()
    weights = [torch.randn(n, k, device="cuda", generator=made).bfloat16() for _ in range(copies(n * k * 2))]
    if not narrow:
        return measured({"matmul bf16": [lambda w=w: torch.matmul(x, w.T) for w in weights]}, _seconds)
    kind, one = torch.float8_e4m3fn, torch.ones((), device="cuda")
    narrow_x, narrow_w = x.to(kind), [w.to(kind) for w in weights]
    scales = {
        "tensor": (one, one),
        "rows": (torch.ones(tokens, 1, device="cuda"), torch.ones(1, n, device="cuda")),
    }

    def product(w: torch.Tensor, of_x: torch.Tensor, of_w: torch.Tensor) -> torch.Tensor:
        scaled: Any = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
        return scaled(narrow_x, w.T, of_x, of_w, out_dtype=torch.bfloat16, use_fast_accum=True)

    calls = {
        f"_scaled_mm fp8, scales of {name}": [lambda w=w, s=pair: product(w, *s) for w in narrow_w]
        for name, pair in scales.items()
    }
    return measured(calls, _seconds)


def measured(
    calls: Mapping[str, Sequence[Callable[[], Any]]], seconds: Callable[[Sequence[Callable[[], Any]]], float]
) -> dict[str, float]:
    """The time of each product; prints the products that torch refuses and continues."""
    found = {}
    for name, each in calls.items():
        try:
            found[name] = seconds(each)
        except RuntimeError as error:
            print(f"{name}: not available: {str(error)[:200]}", flush=True)
    return found


def copies(nbytes: int) -> int:
    """Number of weight copies that exceed every cache."""
    return max(1, min(MOST_COPIES, -(-COLD_BYTES // nbytes)))


def _seconds(calls: Sequence[Callable[[], Any]]) -> float:
    """Seconds of one of several calls, launched as one graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    taken = []
    for _ in range(ROUNDS + 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(stop) / 1e3 / len(calls))
    return median(taken[1:])


if __name__ == "__main__":
    main()
