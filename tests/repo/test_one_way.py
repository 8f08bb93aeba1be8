"""A build takes one way: three classes for (name, dtype, shape), no CUDA in what is common to targets, one picture."""

from __future__ import annotations

import ast

import pytest
from repo.imports import package_sources
from support.paths import ROOT

from llmc.passes.graph.graph import Canonical
from llmc.runtime.engine_file.bind import Stored

COMMON = (
    "compiler/build.py",
    "compiler/pipeline.py",
    "compiler/targets/target.py",
    *(str(path.relative_to(ROOT)) for room in ("engine", "oracle") for path in (ROOT / "compiler" / room).glob("*.py")),
)


def test_three_classes_name_a_tensor_with_its_dtype_and_shape():
    found = set()
    for file, source in package_sources().items():
        for one in ast.walk(ast.parse(source)):
            if isinstance(one, ast.ClassDef):
                typed = [item.target for item in one.body if isinstance(item, ast.AnnAssign)]
                named = {target.id for target in typed if isinstance(target, ast.Name)}
                if {"dtype", "shape"} <= named and {"name", "suffix"} & named:
                    found.add(("/".join(file), one.name))
    found -= {("compiler/targets/cuda/call", "Operand")}  # its shape holds formulas: another subject
    assert found == {("runtime/files/safetensors", "TensorInfo"), ("runtime/engine_file/bind", "Stored")}
    assert issubclass(Canonical, Stored)


@pytest.mark.parametrize("path", COMMON)
def test_what_is_common_to_targets_names_no_cuda_file(path: str):
    assert "cuda" not in (ROOT / path).read_text(encoding="utf-8")


def test_the_table_of_targets_names_cuda_where_it_registers_it():
    text = (ROOT / "compiler/targets/__init__.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "cuda" in line]
    assert len(lines) == 2 and lines[0].startswith("from . import ") and "*cuda.TARGETS" in lines[1]


def test_the_build_is_a_picture():
    assert len((ROOT / "compiler/build.py").read_text(encoding="utf-8").splitlines()) <= 120
