#!/usr/bin/env bash
# gloo's all_reduce adds the ranks' numbers in an order that depends on where an element lies, and on the tensor's size.
#
# Guess, written down first: every element is added in one order, so tensors of equal elements give a tensor of equal
#   elements, and a row's sum is the same whatever rows are beside it.
# Seen, torch 2.13.0, 4 ranks, whose elements are all 1e8, 1, -1e8 and 1 (in the order of ranks that is 1, exactly 2):
#   1 element gives 0. Of 8 elements each quarter has another sum than the one before, 0 and 1 in turns; so element 2 of 8
#   and element 2 of 16 differ. 0.1, 0.2, 0.3 and 0.7 give 1.2999999523 in one half of a tensor and 1.3000000715 in the other.
# Why it matters: tensor parallelism adds up hidden states by rows. With such sums a request's numbers depend on how many
#   others are in its step, and a rounding of activations to int8 turns the last bit into a step of 1/127. A runtime that
#   promises the same answer alone and in company must add in the order of ranks itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat >"$work/sum.py" <<'EOF'
import sys

import torch
import torch.distributed as dist

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=4)
found = {}
for name, values in {"large": [1e8, 1.0, -1e8, 1.0], "small": [0.1, 0.2, 0.3, 0.7]}.items():
    for size in (1, 8, 16, 1000):
        x = torch.full((size,), values[rank])
        dist.all_reduce(x)
        found[name, size] = x.tolist()
if rank == 0:
    for key, sums in found.items():
        print(*key, sorted(set(sums)), "changes at", [i for i in range(1, len(sums)) if sums[i] != sums[i - 1]][:4])
    assert sorted(set(found["large", 8])) == [0.0, 1.0], "the elements of one tensor have two sums"
    assert len(set(found["small", 1000])) == 2
dist.barrier()
dist.destroy_process_group()
EOF
for rank in 1 2 3; do "$work/venv/bin/python" "$work/sum.py" "$rank" "$work/store" & done
"$work/venv/bin/python" "$work/sum.py" 0 "$work/store"
wait
echo "still so"
