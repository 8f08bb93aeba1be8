"""Import directions: what makes the runtime run without torch and keeps the parts apart is checked, not promised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from repo.imports import Parts, between, circle, edges, imported, package_files, package_sources, parts_of, rooms
from support.paths import ROOT

SOURCES = package_sources()
EDGES = edges(SOURCES)
ORDER: dict[Parts, tuple[tuple[str, ...], ...]] = {
    (): (("runtime",), ("recipes", "quantize"), ("passes",), ("compiler",), ("cli",), ("__init__",), ("__main__",)),
    ("passes",): (
        ("graph",),
        ("rewrite",),
        ("placement",),
        ("sums", "cuts"),
        ("crossings",),
        ("fuse_add_norm", "fuse_gated", "merge_linears", "partition", "quantize_weights", "select_rows", "simplify"),
    ),
    ("compiler",): (
        *(("kernel_imports",), ("config",), ("vision",), ("families",), ("tokens",), ("checkpoint",), ("decoder",)),
        *(("oracle",), ("targets",), ("coverage", "divisible", "page", "as_stored"), ("pipeline", "engine")),
        *(("planner",), ("build", "deploy"), ("cache",)),
    ),
    ("compiler", "families"): (
        *(
            ("records",),
            ("mlps",),
            ("spec",),
            ("reading",),
            ("experts",),
            ("latent",),
            ("llamas", "norms", "others"),
            ("mixtures",),
            ("biased",),
        ),
        *(("latents",), ("kin",), ("config",)),
    ),
    ("compiler", "checkpoint"): (
        *(("folder",), ("card", "digest", "no_checkpoint", "trial"), ("hub", "weights"), ("checkpoint",)),
        ("account", "described", "tokenizer_check"),
    ),
    ("compiler", "targets"): (("target",), ("cpu", "cuda", "null"), ("simulate",)),
    ("compiler", "targets", "cuda"): (
        *(
            ("call",),
            ("kernels",),
            ("cubins",),
            ("evidence", "tuning"),
            ("arena", "fuse_attention", "fuse_latent", "lowering"),
            ("gaps", "legalize"),
            ("fp4", "lower"),
            ("operators", "listing"),
            ("emit",),
        ),
    ),
    ("compiler", "targets", "cuda", "kernels"): (
        *(("assembly", "fp8"), ("fp4",), ("gated", "quantize_activations", "quantize_fp4"), ("linear",)),
        *(("attention", "sampling", "columns", "embed", "head_norm", "norm", "pointwise", "probe"), ("latent", "moe")),
    ),
    ("compiler", "targets", "cuda", "kernels", "linear"): (
        *(("dequantize", "shape"), ("many",), ("tiles",), ("parts",), ("cases",), ("small", "large", "expand_fp8")),
        *(("fp8", "fp4"), ("native",), ("choose",)),
    ),
    ("runtime",): (
        *(("errors", "dtypes"), ("guard",), ("environment", "numbers", "machine", "chips")),
        *(("progress", "files"), ("text", "sampling")),
        *(
            ("engine_file", "scheduling", "parallel"),
            ("plan", "cpu"),
            ("cuda", "costs"),
            ("ranks",),
            ("profiles", "engine", "evaluate"),
            ("load",),
            ("probe",),
        ),
    ),
    ("runtime", "parallel"): (
        *(("data",), ("frames", "processes"), ("faults",), ("control",), ("job",)),
        *(("start", "hello"), ("meet", "worker")),
    ),
    ("runtime", "cuda"): (
        *(
            ("gpus",),
            ("names", "driver"),
            ("tensor_maps",),
            ("launches", "placement"),
            ("exchange", "ring", "upload"),
            ("contents",),
        ),
        *(("modules", "trust"), ("device",)),
    ),
    ("runtime", "text"): (
        ("detokenizer", "steps"),
        ("pieces",),
        ("tokenizer", "turns"),
        ("stream", "template"),
        ("chat", "images"),
    ),
    ("recipes",): (("units", "flags", "judges", "strict_yaml"), ("metrics", "recipe"), ("goal", "machines")),
    ("quantize",): (("chunks",), ("format",), ("formats",), ("activations",)),
    ("cli",): (("common",), ("prompts", "judge", "cache", "facts", "plan"), ("commands",), ("app",)),
}
"""Rooms and files in layers: a layer imports only what is to its left, and nothing beside it.

A room of rooms must name all of its files and rooms here; in a room without rooms any order will do, without circles.
"""
RUNTIME_MAY_IMPORT = {"numpy", "onnxruntime", "tokenizers", "jinja2", "markupsafe"}
GLOO = ROOT / "runtime" / "parallel" / "data" / "gloo.py"
"""The one file of the runtime that imports torch, inside functions: for ranks on several hosts."""


@pytest.mark.parametrize("room", sorted(rooms(SOURCES)), ids=lambda room: "/".join(room) or "llmc")
def test_a_room_is_one_way_inside(room: Parts):
    """Files and folders of one folder import each other in one direction; so there is no circle of files anywhere."""
    arrows = between(room, EDGES)
    found = circle(arrows)
    assert found == [], [arrows[a][b] for a, b in zip(found, [*found[1:], *found[:1]], strict=True)]


@pytest.mark.parametrize("room", sorted(ORDER), ids=lambda room: "/".join(room) or "llmc")
def test_layers_import_only_what_is_below(room: Parts):
    floor = {name: index for index, layer in enumerate(ORDER[room]) for name in layer}
    folders = {file[len(room)] for file in SOURCES if file[: len(room)] == room and len(file) > len(room) + 1}
    files = {file[-1] for file in SOURCES if file[:-1] == room}
    assert {*floor} | {"__init__"} == folders | files | {"__init__"}, "a file or room that has no place yet, or is gone"
    upward = [
        edge
        for importer, targets in between(room, EDGES).items()
        for target, edge in targets.items()
        if importer in floor and target in floor and floor[target] >= floor[importer]
    ]
    assert upward == []


@pytest.mark.parametrize("room", sorted(rooms(SOURCES) - {*ORDER}), ids=lambda room: "/".join(room))
def test_every_room_with_rooms_has_an_order(room: Parts):
    assert {
        file[: len(room) + 1] for file in SOURCES if file[: len(room)] == room and len(file) > len(room) + 1
    } == set()


def test_the_check_finds_circles_and_upward_imports():
    sources = {
        ("runtime", "a"): "def f():\n    from ..passes import b",
        ("passes", "b"): "import llmc.runtime.a\nfrom . import c",
        ("passes", "c"): "from .b import x",
        ("passes", "d", "__init__"): "",
        ("passes", "d", "e"): "from .. import b\nfrom ..d import f",
        ("passes", "d", "f"): "import numpy\nfrom .e import g",
        ("__init__",): "def build():\n    from .compiler import c",
        ("compiler", "c"): "from llmc import build",
        ("cli", "x"): "import llmc\nimport_module('llmc.compiler.c')\n__import__('llmc.passes.b')",
        ("cli", "y"): "from .. import build",
    }
    found = edges(sources)
    assert (("runtime", "a"), ("passes", "b")) in found and (("passes", "b"), ("runtime", "a")) in found
    assert {(("compiler", "c"), ("__init__",)), (("cli", "y"), ("__init__",))} <= found
    assert {file for importer, file in found if importer == ("cli", "x")} == {
        *(("__init__",), ("compiler", "c"), ("passes", "b")),
    }
    assert sorted(circle(between((), {edge for edge in found if edge[0] != ("compiler", "c")}))) == [
        "passes",
        "runtime",
    ]
    assert sorted(circle({"__init__": ["compiler"], "compiler": ["__init__"]})) == ["__init__", "compiler"]
    assert sorted(circle(between(("passes",), found))) == ["b", "c"]
    assert sorted(circle(between(("passes", "d"), found))) == ["e", "f"]
    assert circle(between(("runtime",), found)) == []
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_onnx_runtime_has_one_door():
    """Its telemetry is off only if `runtime/cpu/ort.py` is what imports it."""
    users = {
        "/".join(file) for file, source in SOURCES.items() if "onnxruntime" in {m[0] for m in imported(source, file)}
    }
    assert users == {"runtime/cpu/ort"}


@pytest.mark.parametrize("path", sorted((ROOT / "runtime").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_runtime_imports_only_what_it_may(path: Path):
    names = {module[0] for module in imported(path.read_text(encoding="utf-8"), parts_of(path))}
    more = {"torch"} if path == GLOO else set()
    assert names - set(sys.stdlib_module_names) - {"llmc"} <= RUNTIME_MAY_IMPORT | more


def modules_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "tokenizers", "jinja2", "yaml", "rich"}


@pytest.mark.parametrize("statement", ["import llmc", "import llmc.cli.app"])
def test_starting_imports_nothing_heavy(statement: str):
    assert modules_after(statement) & HEAVY == set()


def test_loading_an_engine_imports_no_compiler_library():
    """Nor does any other file of the runtime."""
    banned = {"torch", "onnx", "onnx_ir", "triton", "transformers", "ml_dtypes"}
    files = [parts_of(path) for path in package_files() if parts_of(path)[0] == "runtime"]
    assert len(files) > 40
    names = "\n".join("import llmc." + ".".join(file).removesuffix(".__init__") for file in files)
    assert modules_after(names) & banned == set()
