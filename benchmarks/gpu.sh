#!/bin/sh
# All that only a GPU can tell, in few calls, most important first: what there is, and in which order, is in
# gpu_session.py, which this starts with the right paths on a machine that may not have llmc installed.
#
#   benchmarks/gpu.sh correct      groups: correct, decode, rest; or names of parts; all without any
#   benchmarks/gpu.sh --dry-run    arguments and imports only; needs no GPU
#
# PYTHON=python3 OUT=benchmarks/results WORK=/tmp/llmc-gpu PACK=build/gpu-pack
#
# Nothing is installed or fetched but wheels that lie in .whl/ (so that a machine without a network can have them).
# A pack (gpu_pack.py) brings kernels, so that the Triton of this machine compiles none.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
WORK=${WORK:-/tmp/llmc-gpu}
PACK=${PACK:-build/gpu-pack}
mkdir -p "$OUT" "$WORK/path/llmc-0.dist-info" || exit 1
export OUT WORK

# the package `llmc` is this folder, whether or not it is installed; its metadata only says so
ln -sfn "$PWD" "$WORK/path/llmc"
printf 'Metadata-Version: 2.1\nName: llmc\nVersion: 0\n' >"$WORK/path/llmc-0.dist-info/METADATA"
export PYTHONPATH="$WORK/path${PYTHONPATH:+:$PYTHONPATH}"
if ls .whl/*.whl >/dev/null 2>&1; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$WORK/site" .whl/*.whl || exit 1
  export PYTHONPATH="$WORK/site:$PYTHONPATH"
fi
if [ -f "$PACK/kernels/tools.json" ]; then
  LLMC_CACHE=$(cd "$PACK" && pwd)
  export LLMC_CACHE
fi
exec "$PYTHON" benchmarks/gpu_session.py "$@"
