"""The real Python bindings take what `runtime/cuda/driver.py` gives them: called for real, with a libcuda made here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.fakes.libcuda import BINDINGS, compiled, cubin, needs_libcuda, with_bindings

pytestmark = needs_libcuda
SCRIPT = """
import ctypes
import sys
import cuda.bindings
import numpy as np
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.cuda.launches import pack
from llmc.runtime.errors import LlmcError

image = bytes.fromhex(sys.argv[1])
assert sys.argv[2] in ("", cuda.bindings.__version__)
assert gpus.detect() == gpus.DetectedGpus("13.0", (gpus.Gpu(0, "Fake H100", 90, 1 << 30),)), gpus.detect()
driver = Driver.load()
assert (driver.version, driver.sm, driver.shared, driver.processors) == ("13.0", 90, 232448, 132)
driver.use()
assert driver.memory() == (1 << 29, 1 << 30), "half a GiB is the context's"
stream = driver.stream()
device, other, host = driver.allocate(4096, "x"), driver.allocate(4096, "x"), driver.allocate_host(4096, "x")
view = np.ctypeslib.as_array((ctypes.c_ubyte * 4096).from_address(host))
view[:] = np.arange(4096) % 251
sent = view.copy()
driver.copy_in(device, host, 4096, stream)
driver.copy(other, device, 4096, stream)
driver.fill(device, 7, 4096, stream)
view[:] = 0
driver.copy_out(host, other, 4096, stream)
driver.wait(stream)
assert (view == sent).all()
driver.copy_out(host, device, 4096, stream)
assert (view == 7).all()

module = driver.module(image, "a cubin")
function = driver.function(module, "facts", 50000, "a kernel")
facts = view.view(np.int32)[:10]
for pdl in (False, True):
    config = driver.config((3, 2, 1), 4, 50000, stream, pdl=pdl)
    parameters = pack(["*i32", "i32", "*i8", "*i8"], [device, -9, 0, 0], what="x")
    driver.launch(config, function, parameters.address, "a launch")
    driver.copy_out(host, device, 40, stream)
    # attribute 6 is programmatic stream serialization
    assert facts.tolist() == [-9, 3, 2, 1, 128, 50000, 50000, int(pdl), 6 * pdl, int(pdl)], facts
driver.begin_capture(stream)
parameters = pack(["*i32", "i32", "*i8", "*i8"], [device, 77, 0, 0], what="x")
driver.launch(config, function, parameters.address, "a launch")
graph = driver.end_capture(stream)
driver.copy_out(host, device, 40, stream)
assert facts[0] == -9
driver.launch_graph(graph, stream)
driver.copy_out(host, device, 40, stream)
assert facts[0] == 77
driver.drop_graph(graph)

start, stop = driver.event(timing=True), driver.event()
driver.record(start, stream)
driver.launch(config, function, parameters.address, "a launch")
timed = driver.event(timing=True)
driver.record(timed, stream)
driver.wait_event(timed)
assert driver.passed(timed) and int(stream) > 0  # as NCCL takes it
assert abs(driver.elapsed(start, timed) - 2.5e-6) < 1e-9, driver.elapsed(start, timed)
for failing, text in (
    (lambda: driver.module(b"another", "kernels"), "CUDA_ERROR_INVALID_IMAGE: the driver (CUDA 13.0) refuses"),
    (lambda: driver.function(module, "absent", 0, "absent"), "cannot find absent\\n  found: CUDA_ERROR_NOT_FOUND"),
    (lambda: driver.allocate(1 << 30, "weights"), "1024.0 MiB of GPU memory for weights\\n  found: CUDA_ERROR_OUT_OF"),
    (lambda: Driver.load(1), "cannot open GPU 1\\n  found: CUDA_ERROR_INVALID_DEVICE"),
):
    try:
        failing()
    except LlmcError as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(text)
for event in (start, stop, timed):
    driver.drop_event(event)
driver.unload(module)
driver.free(device)
driver.free(other)
driver.free_host(host)
driver.drop_stream(stream)
driver.close()
print("all of it")
"""


@pytest.mark.parametrize("version", BINDINGS, ids=lambda version: version or "installed")
def test_the_bindings_take_every_call_and_launch_what_was_meant(tmp_path: Path, version: str):
    environment = {**with_bindings(compiled(tmp_path), version), "LLMC_FAKE_MEMORY": str(1 << 30)}
    command = [sys.executable, "-c", SCRIPT, cubin("facts").hex(), version]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("all of it\n", 0), done.stderr
