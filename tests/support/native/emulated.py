"""Runs a kernel in CUDA C++ on the CPU: its source compiled with instructions that are plain C++, on fibers.

What a GPU does at the same time happens in a random order here (`machine.h`): copies and products run late, warps fall
behind, and activations come only when the launch before ends. So indices, descriptors, swizzles, fragments and the
protocol of barriers are the source's own; the memory model and the instructions' meaning are those of this folder.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from llmc.compiler.targets.cuda import kernels
from llmc.compiler.targets.cuda.call import KernelCall, Operand
from llmc.compiler.targets.cuda.cubins.compile import specialization_of
from llmc.compiler.targets.cuda.cubins.native import CALL, header
from llmc.compiler.targets.simulate.call import blank
from llmc.runtime.cuda.tensor_maps import tile_of
from llmc.runtime.plan.formula import value

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
_CONSTANTS = ("w", "w_scale", "scale", "bias", "norm_weight")
"""Parameters that hold weights, which no launch writes."""
_GLUE = """
#include "instructions.cuh"
#include "{source}"
#include <fstream>
#include <string>
alignas(1024) u8 memory[232448];
static std::vector<u8> file(const std::string& path) {{
    std::ifstream stream(path, std::ios::binary);
    return {{std::istreambuf_iterator<char>(stream), {{}}}};
}}
int main(int count, char** words) {{
    std::string folder = words[1];
    machine::source.seed(std::stoi(words[2]));
    if (SHARED_BYTES > sizeof memory) return 4;
    {tensors}
    // Until the launch before has ended, what it may write is garbage.
    std::vector<std::vector<u8>*> earlier{{{earlier}}}, results{{{results}}};
    std::vector<std::vector<u8>> contents, blank;
    for (auto* one : earlier) contents.push_back(*one), std::fill(one->begin(), one->end(), 0xFF);
    for (auto* one : results) blank.push_back(*one);
    machine::release = [&] {{
        for (size_t i = 0; i < results.size(); ++i)
            if (*results[i] != blank[i]) machine::fail("a result is written before the launch before has ended");
        for (size_t i = 0; i < earlier.size(); ++i)
            std::copy(contents[i].begin(), contents[i].end(), earlier[i]->begin());
    }};
    for (int bx = 0; bx < {grid[0]}; ++bx)
        for (int by = 0; by < {grid[1]}; ++by) {{
            std::memset(memory, 0xFF, sizeof memory);
            machine::block[0] = bx, machine::block[1] = by, machine::block[2] = 0;
            machine::run_block({threads}, [&] {{ {call} }});
        }}
    {stores}
}}
"""


def run(
    call: KernelCall,
    inputs: Mapping[str, torch.Tensor],
    sizes: Mapping[str, int],
    folder: Path,
    seed: int = 0,
    changed: tuple[str, str, str] | None = None,
) -> dict[str, torch.Tensor]:
    """The results of a call by parameter; `folder` is one of its own. changed: a file, a text of it, and another.

    The program is compiled once a folder.

    Raises:
        RuntimeError: the kernel does what no kernel may do; says what.
    """
    assert COMPILER is not None and call.kernel.native is not None
    request = specialization_of(call).request(90)
    source = Path(kernels.__file__).parent / request["file"]
    for path in (*source.parent.glob("*.cu*"), *HERE.glob("*.cuh"), *HERE.glob("*.h")):
        shutil.copyfile(path, folder / path.name)
    if changed is not None:
        file, right, wrong = changed
        text = (folder / file).read_text()
        assert text.count(right) == 1, f"{right!r} is {text.count(right)} times in {file}"
        (folder / file).write_text(text.replace(right, wrong))
    (folder / CALL).write_text(header(request))
    tensors, given = [], []
    for (name, argument), kind in zip(call.ordered, request["types"], strict=True):
        if not isinstance(argument, Operand):
            given.append(str(sizes[str(argument)]))
            continue
        array = inputs.get(argument.name, blank(argument, sizes)).contiguous()
        array.view(-1).view(torch.uint8).numpy().tofile(folder / f"{name}.bin")
        tensors.append(f'auto {name} = file(folder + "/{name}.bin");')
        if tile := tile_of(kind):
            rows, columns = (value(str(size), sizes) for size in argument.shape)
            tensors.append(
                f"Tensor2d map_{name}{{{name}.data(), {rows}, {columns}, {tile.rows}, {tile.columns}}}; "
                f"Matrix matrix_{name}; std::memcpy(&matrix_{name}, &map_{name}, sizeof map_{name});"
            )
            given.append(f"matrix_{name}")
        else:
            given.append(f"reinterpret_cast<{name}_element*>({name}.data())")
    earlier = [name for name in call.operands if name not in (*_CONSTANTS, *call.writes)]
    stores = [
        f'std::ofstream(folder + "/{name}.out", std::ios::binary)'
        f".write(reinterpret_cast<char*>({name}.data()), {name}.size());"
        for name in call.writes
    ]
    entry = f"linear_{source.stem}_kernel"
    text = _GLUE.format(
        source=source.name,
        tensors="\n    ".join(tensors),
        earlier=", ".join(f"&{name}" for name in earlier),
        results=", ".join(f"&{name}" for name in call.writes),
        stores="\n    ".join(stores),
        grid=[value(str(size), sizes) for size in (*call.grid, 1, 1)],
        threads=32 * call.warps,
        call=f"{entry}({', '.join([*given, 'nullptr', 'nullptr'])});",
    )
    (folder / "glue.cpp").write_text(text)
    program = folder / "program"
    if not program.exists():
        command = [COMPILER, "-std=c++20", "-O1", "-w", "-o", program, folder / "glue.cpp"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise RuntimeError(f"g++: {built.stderr[:2000]}")
    done = subprocess.run([program, folder, str(seed)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {done.stderr[:500]}")
    return {name: _result(folder / f"{name}.out", call.operands[name], sizes) for name in call.writes}


def _result(path: Path, operand: Operand, sizes: Mapping[str, int]) -> torch.Tensor:
    raw = torch.from_numpy(np.fromfile(path, np.uint8))
    return raw.view(blank(operand, sizes).dtype).view(*(value(str(size), sizes) for size in operand.shape))
