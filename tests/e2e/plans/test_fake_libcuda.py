"""The fake libcuda refuses and fails as a driver does: what is rehearsed over it would else prove nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.fakes.libcuda import compiled, cubin, needs_libcuda, trace

pytestmark = needs_libcuda
PRELUDE = """
import signal, sys
from cuda.bindings import driver as api

def do(function, *arguments):
    status, *results = getattr(api, function)(*arguments)
    code = int(status)
    said.append(code)
    return results[0] if results else None

said = []
image = bytes.fromhex(sys.argv[1])
ptx = b".version 9.0\\n.target sm_90a\\n.visible .entry slow_kernel(\\n.param .u64 a)\\n{ret;}\\n"
do("cuInit", 0)
do("cuCtxSetCurrent", do("cuDevicePrimaryCtxRetain", do("cuDeviceGet", 0)))
stream = do("cuStreamCreate", 1)
assert said == [0] * 5, said
said.clear()

def launch(function, grid=(1, 1, 1), threads=32, shared=0):
    config = api.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes, config.hStream, config.numAttrs = shared, stream, 0
    do("cuLaunchKernelEx", config, function, 0, 0)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return compiled(tmp_path_factory.mktemp("libcuda"))


def codes(library: dict[str, str], script: str, *, image: bytes | None = None, **settings: str) -> list[int]:
    """The CUresults of a script's calls. Its process gets an image of `slow_kernel` and `facts`."""
    done = process(library, script, image=image, **settings)
    assert done.returncode == 0, done.stderr
    return [int(code) for code in done.stdout.split()]


def process(
    library: dict[str, str], script: str, *, image: bytes | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    environment = {**library, **{f"LLMC_FAKE_{name}": text for name, text in settings.items()}}
    given = image or cubin("slow_kernel", "facts")
    command = [sys.executable, "-c", f"{PRELUDE}\n{script}\nprint(*said)", given.hex()]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


LAUNCH = 'slow = do("cuModuleGetFunction", do("cuModuleLoadData", image), b"slow_kernel")\nlaunch(slow)\n'


def test_launches_that_no_gpu_takes_are_refused(library: dict[str, str]):
    script = (
        LAUNCH
        + """
for change in ({"grid": (0, 1, 1)}, {"grid": (1, 65536, 1)}, {"grid": (1, 1, 65536)}, {"threads": 1056},
               {"shared": 49153}):
    launch(slow, **change)
launch(slow, grid=(2**31 - 1, 65535, 65535), threads=1024, shared=49152)
limit = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
carveout = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
do("cuFuncSetAttribute", slow, limit, 232449)
do("cuFuncSetAttribute", slow, limit, 232448)
launch(slow, shared=232448)
do("cuFuncSetAttribute", slow, carveout, 101)
do("cuFuncSetAttribute", slow, carveout, 100)
do("cuFuncLoad", slow)
assert do("cuFuncGetAttribute", limit, slow) == 232448
assert do("cuOccupancyMaxActiveBlocksPerMultiprocessor", slow, 128, 100000) == 2
do("cuModuleGetFunction", do("cuModuleLoadData", image), b"low_kernel")
"""
    )
    assert codes(library, script) == [0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 500]


@pytest.mark.parametrize("sm, code", [(90, 0), (80, 209), (100, 209), (89, 209)])
def test_a_cubin_of_another_gpu_is_refused(library: dict[str, str], sm: int, code: int):
    assert codes(library, 'do("cuModuleLoadData", image)', image=cubin("k", sm=sm)) == [code]


def test_ptx_loads_with_a_log_where_cubins_are_refused(library: dict[str, str]):
    script = """
do("cuModuleLoadData", image)
kinds = api.CUjit_option
def jit(text):
    logs = bytearray(200), bytearray(200)
    options = [kinds.CU_JIT_INFO_LOG_BUFFER, kinds.CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
               kinds.CU_JIT_ERROR_LOG_BUFFER, kinds.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES]
    module = do("cuModuleLoadDataEx", text, 4, options, [logs[0], 200, logs[1], 200])
    return module, *(log.split(b"\\0")[0] for log in logs)
module, *logs = jit(ptx)
assert logs == [b"ptxas info    : fake", b""], logs
do("cuModuleGetFunction", module, b"slow_kernel")
do("cuModuleGetFunction", module, b"slow")
_, _, log = jit(ptx.replace(b"9.0", b"9.4"))
assert log.startswith(b"ptxas fatal"), log
do("cuModuleLoadData", b"neither of both")
"""
    assert codes(library, script, REFUSE_CUBINS="222") == [222, 0, 0, 500, 222, 200]
    assert codes(library, 'do("cuModuleLoadData", ptx)', REFUSE_PTX="218") == [218]


def test_a_sticky_error_comes_with_the_next_wait_and_stays(library: dict[str, str]):
    script = (
        'memory = do("cuMemAlloc", 100)\n'
        + LAUNCH
        + """
do("cuEventRecord", do("cuEventCreate", 0), stream)
do("cuStreamSynchronize", stream)
do("cuMemFree", memory)
do("cuDevicePrimaryCtxRetain", 0)
do("cuGetErrorName", api.CUresult(700))
do("cuDeviceGetCount")
"""
    )
    assert codes(library, script, STICKY="slow:700") == [0, 0, 0, 0, 0, 0, 700, 700, 700, 0, 0]
    assert codes(library, script, STICKY="other:700") == [0] * 11


def test_a_sticky_error_in_a_graph_comes_when_it_is_replayed(library: dict[str, str]):
    script = (
        LAUNCH.replace("launch(slow)", "")
        + """
do("cuStreamBeginCapture", stream, api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
launch(slow)
launch(slow)
do("cuStreamSynchronize", stream)
graph = do("cuStreamEndCapture", stream)
assert api.cuGraphGetNodes(graph)[2] == 2
ready = do("cuGraphInstantiate", graph, 0)
do("cuStreamSynchronize", stream)
do("cuGraphLaunch", ready, stream)
do("cuStreamSynchronize", stream)
do("cuGraphDestroy", graph)
"""
    )
    assert codes(library, script, STICKY="slow:719") == [0, 0, 0, 0, 0, 900, 0, 0, 0, 0, 719, 719]


def test_calls_fail_by_their_number_and_are_traced(library: dict[str, str], tmp_path: Path):
    script = 'for _ in range(3): do("cuMemAlloc", 512)\nfor _ in range(2): do("cuStreamQuery", stream)'
    path = tmp_path / "trace.txt"
    found = codes(library, script, FAIL="cuMemAlloc:2:2,cuStreamQuery:0:600", TRACE=str(path))
    assert found == [0, 2, 0, 600, 600]
    lines = [line.facts for line in trace(path) if line.name == "cuMemAlloc"]
    assert lines == [{"bytes": "512"}, {"bytes": "512", "code": "2"}, {"bytes": "512"}]


def test_memory_is_counted_and_only_what_is_touched_costs(library: dict[str, str]):
    script = """
before, all_of_it = api.cuMemGetInfo()[1:]
assert all_of_it == 80 << 30
weights = do("cuMemAlloc", 60 << 30)
assert before - api.cuMemGetInfo()[1] == 60 << 30
do("cuMemAlloc", 30 << 30)
do("cuMemsetD8Async", weights, 1, 60 << 30, stream)
do("cuMemsetD8Async", weights, 1, (60 << 30) + 1, stream)
do("cuMemcpyDtoDAsync", int(weights) + (30 << 30), weights, 30 << 30, stream)
do("cuMemFree", weights)
do("cuMemFree", weights)
"""
    assert codes(library, script) == [0, 2, 0, 1, 0, 0, 1]


def test_a_kernel_may_end_or_hang_the_process(library: dict[str, str]):
    assert process(library, LAUNCH, EXIT="slow").returncode == -signal.SIGABRT
    hanging = LAUNCH + 'signal.alarm(1)\ndo("cuStreamSynchronize", stream)'
    assert process(library, hanging, HANG="slow").returncode == -signal.SIGALRM
    assert process(library, hanging, HANG="other").returncode == 0
