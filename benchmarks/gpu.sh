#!/bin/sh
# All that only a GPU can tell, in one call, most important first: correctness, then speed. Results as JSON in $OUT
# (default benchmarks/results). Every part has a time limit of its own, so that one that hangs costs only itself.
#
#   benchmarks/gpu.sh              PYTHON=python3 OUT=benchmarks/results WORK=/tmp/llmc-gpu SHAPE=8b
#   benchmarks/gpu.sh --dry-run    arguments and imports only; needs no GPU
#
# Nothing is installed or fetched but wheels that lie in .whl/ (so that a machine without a network can have them).
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
WORK=${WORK:-/tmp/llmc-gpu}
SHAPE=${SHAPE:-8b}
DRY=
[ "${1:-}" = --dry-run ] && DRY=--dry-run
mkdir -p "$OUT" "$WORK/path/llmc-0.dist-info" || exit 1
export OUT

# the package `llmc` is this folder, whether or not it is installed; its metadata only says so
ln -sfn "$PWD" "$WORK/path/llmc"
printf 'Metadata-Version: 2.1\nName: llmc\nVersion: 0\n' >"$WORK/path/llmc-0.dist-info/METADATA"
if ! "$PYTHON" -c 'import llmc' 2>/dev/null; then
  export PYTHONPATH="$WORK/path${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ -z "$DRY" ] && ls .whl/*.whl >/dev/null 2>&1; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$WORK/site" .whl/*.whl || exit 1
  export PYTHONPATH="$WORK/site${PYTHONPATH:+:$PYTHONPATH}"
fi

failed=0
: >"$OUT/gpu.log"
part() { # name, seconds, command: its output in $OUT/gpu.log, its end and outcome here
  name=$1 limit=$2
  shift 2
  began=$(date +%s)
  timeout -k 10 "$limit" "$@" >"$WORK/$name.log" 2>&1
  code=$?
  { echo "== $name: $*"; cat "$WORK/$name.log"; } >>"$OUT/gpu.log"
  tail -n 6 "$WORK/$name.log" | cut -c -400
  echo "== $name: exit $code after $(($(date +%s) - began)) s of at most $limit"
  [ "$code" -eq 0 ] || failed=1
}

PYTEST="-m pytest -q -p no:cacheprovider"
[ -n "$DRY" ] && PYTEST="$PYTEST --collect-only"
BENCH="--shape $SHAPE --work $WORK $DRY"
# shellcheck disable=SC2086  # options are words
{
  part kernels 240 "$PYTHON" $PYTEST tests/gpu/test_gpu_kernels.py
  part engine 300 "$PYTHON" $PYTEST tests/gpu/test_gpu_engine.py
  part decode_fp8 400 "$PYTHON" benchmarks/gpu_decode.py $BENCH --quantize fp8 --batch 1 8 --out "$OUT/gpu_decode_fp8.json"
  part decode_fp8_early 200 "$PYTHON" benchmarks/gpu_decode.py $BENCH --quantize fp8 --early --out "$OUT/gpu_decode_fp8_early.json"
  part load_fp8 200 "$PYTHON" benchmarks/gpu_load.py $BENCH --quantize fp8 --out "$OUT/gpu_load_fp8.json"
  part decode_nvfp4 400 "$PYTHON" benchmarks/gpu_decode.py $BENCH --quantize nvfp4 --batch 1 8 --out "$OUT/gpu_decode_nvfp4.json"
  part decode_int4 400 "$PYTHON" benchmarks/gpu_decode.py $BENCH --quantize int4 --batch 1 8 --out "$OUT/gpu_decode_int4.json"
  part decode_none 400 "$PYTHON" benchmarks/gpu_decode.py $BENCH --quantize none --batch 1 8 --out "$OUT/gpu_decode_none.json"
}
exit $failed
