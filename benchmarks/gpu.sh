#!/bin/sh
# A call of the GPU bring-up (gpu_first.py) within its seconds, on a machine that may not have llmc installed.
#
#   benchmarks/gpu.sh first        what runs, and the ceilings (140 s); then: speed (290 s), tuned (170 s)
#   benchmarks/gpu.sh --dry-run    all three: what would be done; needs no GPU
#
# PYTHON=python3 OUT=results WORK=/tmp/llmc-gpu PACK=build/gpu-pack
# SINCE=benchmarks/results/gpu-first.json: results of `first`, whose right cases `tuned` does not ask again
#
# Nothing is installed or fetched. What is carried (gpu_pack.py) has all kernels, so that nothing is compiled here.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-results}
WORK=${WORK:-/tmp/llmc-gpu}
PACK=${PACK:-build/gpu-pack}
SINCE=${SINCE:-benchmarks/results/gpu-first.json}
CUDA_MODULE_LOADING=EAGER
export CUDA_MODULE_LOADING OUT WORK

dry= calls=
for word in "$@"; do
  case $word in
    --dry-run) dry=--dry-run ;;
    first | speed | tuned) calls="$calls $word" ;;
    *) echo "usage: gpu.sh [--dry-run] first|speed|tuned, not '$word'" >&2; exit 2 ;;
  esac
done
if [ -z "$calls" ]; then
  [ -n "$dry" ] || { echo "usage: gpu.sh [--dry-run] first|speed|tuned" >&2; exit 2; }
  calls="first speed tuned"
fi

# the package `llmc` is this folder, whether or not it is installed; its metadata only says so
mkdir -p "$OUT" "$WORK/path/llmc-0.dist-info" || exit 1
ln -sfn "$PWD" "$WORK/path/llmc"
printf 'Metadata-Version: 2.1\nName: llmc\nVersion: 0\n' >"$WORK/path/llmc-0.dist-info/METADATA"
export PYTHONPATH="$WORK/path${PYTHONPATH:+:$PYTHONPATH}"

if [ -f "$OUT/first.json" ] || [ ! -f "$SINCE" ]; then since=; else since="--since $SINCE"; fi

ok=0
for call in $calls; do
  case $call in first) seconds=140 ;; speed) seconds=290 ;; *) seconds=170 ;; esac
  "$PYTHON" benchmarks/gpu_first.py "$call" --carry "$PACK" --out "$OUT" --seconds "$seconds" $since $dry || ok=1
done
exit $ok
