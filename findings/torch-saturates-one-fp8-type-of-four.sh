#!/usr/bin/env bash
# PyTorch: a conversion to float8_e4m3fn saturates, also infinity; to the other three FP8 types it overflows to NaN or infinity.
#
# Guess, written down first: none saturates. What is too large becomes NaN in e4m3fn and in the two fnuz types, and infinity
#   in e5m2, as in ml_dtypes; a checkpoint's exporter clamps first, because it must.
# Seen (torch 2.13.0, CPU, from float32, bfloat16 and float64 alike): infinity and everything above 464 is 448 in
#   e4m3fn; 248 is NaN in e4m3fnuz; 65280 is NaN in e5m2fnuz and infinity in e5m2. ml_dtypes 0.6.0: as guessed.
# Why it matters: code that finds overflow by looking for NaN after the conversion, right for older exporters and for
#   ml_dtypes, finds nothing in torch: an infinite activation becomes 448. The same code on a ROCm machine, whose type is
#   e4m3fnuz, finds it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 ml_dtypes==0.6.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import ml_dtypes
import numpy as np
import torch

nan, inf = np.nan, np.inf
values = [248, 448, 480, 1024, 65280, inf, -inf]  # all of them are numbers of bfloat16
by_torch = {
    "float8_e4m3fn": [256, 448, 448, 448, 448, 448, -448],
    "float8_e4m3fnuz": [nan] * 7,
    "float8_e5m2": [256, 448, 512, 1024, inf, inf, -inf],
    "float8_e5m2fnuz": [256, 448, 512, 1024, nan, nan, nan],
}
by_ml_dtypes = {**by_torch, "float8_e4m3fn": [256, 448, nan, nan, nan, nan, nan]}
for name, expected in by_torch.items():
    for source in (torch.float32, torch.bfloat16, torch.float64):
        for count in (1, 64):  # one by one and in vectors
            x = torch.tensor(values * count, dtype=source)
            found = x.to(getattr(torch, name)).float().numpy()
            np.testing.assert_array_equal(found, expected * count, err_msg=f"{name} from {source}")
    print("torch    ", name, dict(zip(values, torch.tensor(values).to(getattr(torch, name)).float().tolist())))
for name, expected in by_ml_dtypes.items():
    found = np.array(values, np.float32).astype(getattr(ml_dtypes, name)).astype(np.float32)
    print("ml_dtypes", name, dict(zip(values, found.tolist())))
    np.testing.assert_array_equal(found, expected, err_msg=name)
EOF
echo "still so"
