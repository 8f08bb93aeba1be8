"""The build as a whole: equal input gives equal bytes, every tensor has a source, and the file is what it says."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.engines import SMALL, PicoEngine, build_engine, small_checkpoint
from support.paths import PICO

import llmc
from llmc.cli.app import run as run_command
from llmc.compiler.checkpoint.account import open_source
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.pipeline import lower, start_dump
from llmc.compiler.targets import CompiledProfile, ProfileConfig, target_named
from llmc.passes.graph.graph import Graph
from llmc.passes.graph.verify import LOGICAL
from llmc.recipes.recipe import Recipe, with_flags
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.engine_file.manifest import Manifest
from llmc.runtime.engine_file.split import Split
from llmc.runtime.errors import CheckpointError, LlmcError, RecipeError, Unsupported
from llmc.runtime.files.strict_json import canonical
from llmc.runtime.probe import replay
from llmc.runtime.progress import NO_PROGRESS

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INT8 = with_flags(None, quantize="int8")


def manifest_of(path: Path) -> Manifest:
    with EngineFile.open(path) as engine:
        return engine.manifest


ELSEWHERE = """
import sys
from llmc.cli.app import run
for name in ("none", "nvfp4"):
    code = run(["build", sys.argv[1], "-o", f"other {name}.llmc", "--quantize", name, "--memory-limit", "0.5"])
    assert code == 0
"""


def test_another_folder_time_user_and_number_of_cpus_give_the_same_bytes(pico_engine: PicoEngine, tmp_path: Path):
    """One CPU instead of all, small chunks, another process, copied files of another age."""
    copy = shutil.copytree(PICO, tmp_path / "elsewhere" / "checkpoint")
    for file in copy.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(copy)],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "7", "USER": "somebody", "HOME": str(tmp_path), "TZ": "Asia/Tokyo"},
        preexec_fn=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
    )
    for name in ("none", "nvfp4"):
        assert (tmp_path / f"other {name}.llmc").read_bytes() == pico_engine(name).read_bytes(), name


def test_the_file_says_nothing_of_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "some-host-name")
    monkeypatch.setattr(platform, "node", lambda: "some-host-name")
    monkeypatch.setenv("USER", "some-user-name")
    monkeypatch.setenv("LOGNAME", "some-user-name")
    source = small_checkpoint(tmp_path / "private-folder-name")
    path = llmc.build(source, tmp_path / "secret-engine-name.llmc", quantize="int4")
    data = path.read_bytes()
    for word in (str(tmp_path), "private-folder-name", "secret-engine-name", "some-host-name", "some-user-name"):
        assert word.encode() not in data, word
    text = manifest_of(path).to_json().decode()
    for word in ('"/', "/home", "/tmp", "time", "date"):
        assert word not in text, word


@pytest.mark.parametrize("quantize", ["none", "nvfp4"])
def test_every_tensor_has_a_source(pico_engine: PicoEngine, quantize: str):
    checkpoint = open_checkpoint(PICO)
    with EngineFile.open(pico_engine(quantize)) as engine:
        manifest, tensors = engine.manifest, set(engine.tensors)
    assert manifest.lineage.keys() == tensors
    used = {source for lineage in manifest.lineage.values() for source in lineage.sources}
    assert used | manifest.unused.keys() == set(checkpoint.source.names)
    assert all(lineage.how for lineage in manifest.lineage.values())
    computed = {name for name, lineage in manifest.lineage.items() if not lineage.sources}
    assert all(name.startswith("rope.") for name in computed), computed


def test_the_manifest_names_files_formats_recipe_and_tools(pico_engine: PicoEngine):
    manifest = manifest_of(pico_engine("int4"))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in PICO.iterdir()}
    del files["README.md"]
    assert manifest.checkpoint.files == files
    assert (manifest.checkpoint.name, manifest.recipe_name) == ("pico-python", "cpu-int4")
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(manifest.formats) == 8 * len(linears) + 1
    assert manifest.formats["model.embed_tokens.weight"] == "int8"
    assert manifest.lineage["model.layers.0.mlp.up_proj.weight_scale"].sources[0] == "model.layers.0.mlp.up_proj.weight"
    recipe = with_flags(None, quantize="int4").to_json()
    assert manifest.recipe == recipe
    assert manifest.recipe_digest == hashlib.sha256(canonical(recipe)).hexdigest()
    assert {"llmc", "torch", "onnx"} <= manifest.tools.keys()
    assert manifest.model.parameters == sum(t.numel() for shard in SHARDS for t in load_file(PICO / shard).values())
    assert (manifest.model.bos, manifest.model.eos_ids, manifest.unused) == (0, (1,), {})


def test_the_safetensors_library_reads_the_checkpoints_numbers(pico_engine: PicoEngine):
    expected = {name: tensor for shard in SHARDS for name, tensor in load_file(PICO / shard).items()}
    with safe_open(pico_engine("none"), "pt") as engine:
        for name, tensor in expected.items():
            assert torch.equal(engine.get_tensor(name), tensor), name
    with safe_open(pico_engine("int4"), "pt") as engine:
        norms = [name for name in expected if name.endswith("norm.weight")]
        assert len(norms) == 17
        assert all(torch.equal(engine.get_tensor(name), expected[name]) for name in norms)
        codes = engine.get_tensor("model.layers.7.mlp.down_proj.weight")
    assert (codes.dtype, codes.shape) == (torch.uint8, (256, 384))


def test_float32_and_unused_tensors(tmp_path: Path):
    source = small_checkpoint(tmp_path / "c", torch_dtype="float32")
    tensors = {name: tensor.float() * 1.001 for name, tensor in load_file(source / "model.safetensors").items()}
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    save_file({**tensors, **extra}, source / "model.safetensors")
    report = build_engine(source, tmp_path / "e.llmc", Recipe())
    assert report.unused == manifest_of(report.path).unused
    assert report.unused.keys() == extra.keys()
    assert all(report.unused.values())
    stored = load_file(report.path)
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
    assert replay(report.path).ok


def test_the_report_says_what_was_done(tmp_path: Path):
    report = build_engine(small_checkpoint(tmp_path / "c"), tmp_path / "e.llmc", INT8)
    assert (report.path, report.bytes) == (tmp_path / "e.llmc", (tmp_path / "e.llmc").stat().st_size)
    assert [name for name, _ in report.stages][2:] == [
        "compile profiles",
        "weights",
        "golden probe",
        "digest checkpoint",
        "finish file",
    ]
    assert report.content_digest == manifest_of(report.path).content_digest
    assert {one.name: one.fired for one in report.passes}["QuantizeWeights"] == 2 * 7 + 1
    assert (report.warnings, report.unused) == (("no chat template: `llmc run --chat` will need --chat-template",), {})
    assert report.peak_rss_bytes > 1 << 27


def test_what_the_user_should_know_reaches_library_users(tmp_path: Path):
    source = small_checkpoint(tmp_path / "c")
    with pytest.warns(UserWarning, match="no chat template: `llmc run --chat` will need --chat-template") as caught:
        llmc.build(source, tmp_path / "e.llmc", quantize="int8")
    assert [Path(one.filename) for one in caught] == [Path(__file__)]


def test_a_constant_tensor_is_a_warning_and_nan_is_refused(tmp_path: Path):
    source = small_checkpoint(tmp_path / "c")
    tensors, name = load_file(source / "model.safetensors"), "model.layers.1.self_attn.v_proj.weight"
    tensors[name].zero_()
    save_file(tensors, source / "model.safetensors")
    for quantize in ("none", "int4", "nvfp4"):
        report = build_engine(source, tmp_path / "e.llmc", with_flags(None, quantize=quantize))
        assert report.warnings[1:] == (f"tensor {name} is constant",), quantize
    before = (tmp_path / "e.llmc").read_bytes()
    for value in (float("nan"), float("-inf")):
        tensors[name][-1, -1] = value
        save_file(tensors, source / "model.safetensors")
        for quantize in ("none", "int8", "fp8", "nvfp4"):
            with pytest.raises(CheckpointError, match=re.escape(name)):
                llmc.build(source, tmp_path / "e.llmc", quantize=quantize)
    assert (tmp_path / "e.llmc").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c", "e.llmc"]


def test_random_weights_need_only_a_config_and_repeat(tmp_path: Path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text(json.dumps(SMALL))
    paths = [tmp_path / f"{number}.llmc" for number in range(3)]
    for path, seed in zip(paths, (7, 7, 8), strict=True):
        llmc.build(tmp_path / "c", path, quantize="int8", random_weights=seed)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other
    manifest = manifest_of(paths[0])
    assert manifest.checkpoint.random_seed == 7
    assert list(manifest.checkpoint.files) == ["config.json"]
    assert replay(paths[0]).ok
    with pytest.raises(CheckpointError, match=r"weights in model\.safetensors"):
        llmc.build(tmp_path / "c", paths[0])
    assert paths[0].read_bytes() == first


def test_an_engine_without_a_tokenizer_takes_ids_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = build_engine(small_checkpoint(tmp_path / "c", tokenizer=False), tmp_path / "e.llmc", INT8)
    assert report.warnings == ("no tokenizer.json: the engine will take token ids only",)
    with llmc.load(report.path) as engine:
        result = engine.generate([5, 6], max_tokens=3, ignore_eos=True)
        assert (len(result.token_ids), result.text) == (3, "")
        with pytest.raises(Unsupported, match="no tokenizer in the checkpoint\n  try: token ids"):
            engine.generate("text")
    assert run_command(["run", str(report.path), "text"]) == 3
    assert "no tokenizer in the checkpoint" in capsys.readouterr().err


def with_tokenizer(source: Path, name: str, **changes: Any) -> Path:
    document = json.loads((source / name).read_text())
    (source / name).write_text(json.dumps({**document, **changes}))
    return source


def test_a_tokenizer_that_does_not_fit_stops_the_build(tmp_path: Path):
    def refusal(source: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            llmc.build(source, tmp_path / "e.llmc", quantize="int8")
        assert not list(tmp_path.glob("*.llmc*")) + list(tmp_path.glob(".*"))
        return str(caught.value)

    source = with_tokenizer(small_checkpoint(tmp_path / "eos"), "tokenizer_config.json", eos_token="<nowhere>")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    (source / "generation_config.json").unlink(missing_ok=True)
    assert "eos_token '<nowhere>'" in refusal(source)
    source = small_checkpoint(tmp_path / "rows", vocab_size=4000)
    assert "ids below the 4000 rows of the embedding" in refusal(source)
    source = small_checkpoint(tmp_path / "cut")
    (source / "tokenizer.json").write_bytes((PICO / "tokenizer.json").read_bytes()[:-100])
    assert "tokenizer.json" in refusal(source)


def emit(target: str, legal: Graph) -> CompiledProfile:
    return target_named(target).emit(legal, ProfileConfig(64, 1, "bfloat16"), NO_PROGRESS)


def test_the_null_target_checks_and_compiles_nothing():
    recipe: Any = SimpleNamespace(
        format_of=lambda _: "int4", targets=("null",), splits=(Split(),), rules=(), activations="none", kv="none"
    )
    decoder, legal, reports = lower(open_source(PICO), recipe, 64)
    assert list(legal) == ["null"]
    emitted = emit("null", legal["null"])
    assert (emitted.main, list(emitted.sections)) == ("graph.txt", ["graph.txt"])
    text = onnx.parser.parse_graph(emitted.sections["graph.txt"].decode())
    assert {(node.domain, node.op_type) for node in text.node} <= set(LOGICAL)
    assert {value.name for value in text.input} >= set(emitted.weights)
    assert {one.phase for one in reports} == {"model", "profile"}
    assert "model.layers.0.mlp.gate_proj.weight_scale" in decoder.graph.canonical


def test_two_targets_share_the_weights():
    recipe: Any = SimpleNamespace(
        format_of=lambda _: "int8", targets=("cpu", "null"), splits=(Split(),), rules=(), activations="none", kv="none"
    )
    decoder, legal, _ = lower(open_source(PICO), recipe, 64)
    assert list(legal) == ["cpu", "null"]
    before = set(decoder.graph.canonical)
    alone = lower(open_source(PICO), SimpleNamespace(**{**vars(recipe), "targets": ("cpu",)}), 64)  # type: ignore[arg-type]
    assert before == set(alone[0].graph.canonical)
    assert emit("cpu", legal["cpu"]).sections == emit("cpu", alone[1]["cpu"]).sections


def test_dump_writes_each_pass_that_changed_something(tmp_path: Path):
    reports = lower(open_source(PICO), INT8, 512, start_dump(tmp_path / "dump", INT8))[2]
    *files, _, _ = sorted((tmp_path / "dump").iterdir())
    expected = [(one.phase, one.name) for one in reports if one.fired]
    named = [re.fullmatch(r"(\d\d)-(?:cpu-(?!cpu))?(\w+)-(\w+)\.txt", file.name) for file in files]
    assert [(match[2], match[3]) for match in named if match] == expected
    assert len({match[1] for match in named if match}) == len(files) == len(expected) > 8
    graphs = [onnx.parser.parse_graph(file.read_text()) for file in files]
    assert "MatMulNBits" in {node.op_type for node in graphs[-1].node}
    assert "Linear" in {node.op_type for node in graphs[0].node}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"memory_limit": 0.1},
            4,
            r"cannot build within 102 MiB\n  found: \d+ MiB in use .*\n  try: --memory-limit \d+MiB or more",
        ),
        (
            {"max_context": 513},
            2,
            "cannot build with max_context 513\n  found: a model of 512 positions\n  try: --max-context 512 or less",
        ),
        ({"quantize": "int5"}, 2, "expected a weight format\n  found: 'int5'"),
        ({"targets": ["gpu"]}, 2, "expected a target\n  found: 'gpu'"),
    ],
)
def test_what_cannot_be_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: int, message: str
):
    monkeypatch.setattr("llmc.compiler.build.EngineWriter", lambda *_: pytest.fail("it went on"))
    monkeypatch.setattr("llmc.compiler.checkpoint.digest.Files.digests", lambda _: pytest.fail("it went on"))
    with pytest.raises(LlmcError, match=message) as caught:
        llmc.build(PICO, tmp_path / "e.llmc", **options)
    assert caught.value.exit_code == error
    assert list(tmp_path.iterdir()) == []


def test_a_dynamic_rope_may_be_longer_than_its_training(tmp_path: Path):
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    source = small_checkpoint(tmp_path / "c", rope_scaling=scaling, tokenizer=False)
    path = llmc.build(source, tmp_path / "e.llmc", max_context=100)
    with llmc.load(path) as engine:
        assert np.isfinite(engine.logits(list(range(100)))).all()
    source = small_checkpoint(tmp_path / "d", tokenizer=False)
    with pytest.raises(RecipeError, match="a model of 64 positions"):
        llmc.build(source, tmp_path / "e.llmc", max_context=100)
