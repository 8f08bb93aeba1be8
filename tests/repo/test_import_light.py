"""Start-up time is a promise: `import llmc` loads nothing of weight, and a loaded engine nothing of the compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llmc

HEAVY = {"numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "triton", "ml_dtypes"}
HEAVY |= {"tokenizers", "jinja2", "typer", "rich", "yaml", "huggingface_hub", "safetensors"}
COMPILER = HEAVY - {"numpy", "onnxruntime", "tokenizers", "jinja2"}


def modules_after(code: str) -> set[str]:
    """Top-level modules (and llmc's own) that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return {name if name.startswith("llmc") else name.split(".")[0] for name in output.split()}


def test_importing_llmc_imports_nothing_heavy() -> None:
    loaded = modules_after("import llmc; dir(llmc); llmc.build, llmc.load")
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("llmc")} == {"llmc"}


def test_the_price_of_a_build_needs_no_compiler() -> None:
    """The planner prices builds from a configuration, and must not wait for torch."""
    loaded = modules_after("import llmc.compiler.planner.build_price")
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxruntime", "triton"}


def test_errors_do_not_need_numpy() -> None:
    assert not modules_after("import llmc; llmc.EngineError, llmc.RecipeError") & HEAVY


def test_the_runtime_needs_no_compiler_and_no_device_library_before_an_engine_is_opened() -> None:
    loaded = modules_after("import llmc; llmc.Engine, llmc.Result, llmc.Piece")
    assert not loaded & (COMPILER | {"onnxruntime", "tokenizers", "jinja2"})
    assert not {
        name for name in loaded if name.startswith(("llmc.compiler", "llmc.passes", "llmc.quantize", "llmc.cli"))
    }


def test_every_public_name_is_there() -> None:
    for name in llmc.__all__:
        assert getattr(llmc, name) is not None
    assert issubclass(llmc.EngineError, llmc.LlmcError)
    assert llmc.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="module 'llmc' has no attribute 'Engin'"):
        llmc.Engin  # noqa: B018


def test_jinja_is_imported_when_a_template_is_compiled() -> None:
    """It takes 50 ms of CPU, which a prompt without a conversation does not pay."""
    loaded = modules_after("import llmc.runtime.load, llmc.runtime.engine")
    assert "llmc.runtime.text.chat" in loaded and "jinja2" not in loaded


def test_the_table_of_families_needs_no_compiler_of_kernels() -> None:
    """Records say all of it: neither weights nor kernels are touched."""
    loaded = modules_after("from llmc.cli.app import run; run(['families'])")
    assert "llmc.compiler.coverage.rows" in loaded and not loaded & {"torch", "triton", "sympy", "onnxruntime"}
