#!/usr/bin/env bash
# aiconfigurator-core 0.12.0: in NVIDIA's own measurements of TensorRT-LLM on B200, an FP8 product of one row is slower than
# a bf16 one for weights of the size that an 8B model has.
#
# Guess: a product of one row reads its weight once and does little else, so with half the bytes it takes nearly half the
#   time, and never more than bf16 of the same shape.
# Seen (weights of at least 4096 x 4096, per-tensor FP8, the table of 1.3.0rc20 and later): so it is from 512 million weights
#   on, 1.8 to 1.9 times as fast. Below 128 million it is 1.3 times on H100, 1.2 on H200 and 0.9 on B200, where 35 of 56
#   shapes are slower than bf16: the median there reaches 29 % of the bandwidth, bf16 63 %.
# Why it matters: planners, llmc's too, price a decode step of one request by the bytes of its weights. On a B200 that
#   promises twice the speed from FP8 where this stack gave none, and the more so the faster the memory is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet aiconfigurator-core==0.12.0 pyarrow==26.0.1
"$work/venv/bin/python" - <<'EOF'
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pyarrow.parquet as parquet

BANDWIDTH = {"h100_sxm": 3.35e12, "h200_sxm": 4.8e12, "b200_sxm": 7.7e12}
data = Path(next(iter(find_spec("aiconfigurator_core").submodule_search_locations))) / "systems" / "data"
found = {}
for chip, bandwidth in BANDWIDTH.items():
    newest = sorted((data / chip / "gemm" / "trtllm").glob("*/gemm_perf.parquet"))[-1]
    rows = parquet.read_table(newest, columns=["gemm_dtype", "m", "n", "k", "latency"]).to_pylist()
    times = {(one["gemm_dtype"], one["m"], one["n"], one["k"]): one["latency"] / 1e3 for one in rows}
    shapes = [(n, k) for kind, m, n, k in times if (kind, m) == ("fp8", 1) and min(n, k) >= 4096]
    for name, least, most in (("small", 1 << 24, 1 << 27), ("large", 1 << 29, 1 << 40)):
        some = [(n, k) for n, k in shapes if least <= n * k < most]
        gains = [times["bfloat16", 1, n, k] / times["fp8", 1, n, k] for n, k in some]
        reached = median(n * k / times["fp8", 1, n, k] / bandwidth for n, k in some)
        slower = sum(gain < 1 for gain in gains)
        found[chip, name] = median(gains), slower, len(gains)
        print(f"{chip} {newest.parent.name}, {name} weights: FP8 {median(gains):.2f} times as fast as bf16, slower in {slower} of "
              f"{len(gains)} shapes, {100 * reached:.0f} % of the bandwidth")
assert all(found[chip, "large"][0] > 1.75 for chip in BANDWIDTH)
assert found["h100_sxm", "small"][0] > found["h200_sxm", "small"][0] > 1 > found["b200_sxm", "small"][0]
assert found["b200_sxm", "small"][1] > found["b200_sxm", "small"][2] // 2
EOF
echo "still so"
