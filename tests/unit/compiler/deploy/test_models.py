"""What a plan reads of a model: headers and config.json, and what is refused."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.engines import PicoEngine
from support.fakes.machine_facts import FACTS
from support.paths import PICO

from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.deploy.build_cost import build_cost
from llmc.compiler.deploy.models import model_of, subject_of
from llmc.compiler.planner.build_price import GPU_BYTES, KERNEL_S, KERNELS
from llmc.recipes.recipe import with_flags
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import CheckpointError, Unsupported

CONFIG = PICO / "config.json"


def test_a_checkpoint_and_its_config_are_one_model(tmp_path: Path):
    shutil.copy(CONFIG, tmp_path / "any name.json")
    (tmp_path / "folder").mkdir()
    shutil.copy(CONFIG, tmp_path / "folder")
    whole, shard = model_of(PICO), model_of(str(PICO / "model-00001-of-00002.safetensors"))
    alone, folder = model_of(tmp_path / "any name.json"), model_of(tmp_path / "folder")
    assert [one.has_weights for one in (whole, shard, alone, folder)] == [True, True, False, False]
    assert all(one.subject.config.decoder == whole.subject.config.decoder for one in (shard, alone, folder))
    assert {(one.subject.dtype, one.subject.stored) for one in (whole, shard, alone, folder)} == {("bfloat16", "BF16")}
    assert whole.parameters == alone.parameters == 7_344_384
    assert alone.checkpoint.source.names and subject_of(alone.checkpoint) == alone.subject


@pytest.mark.parametrize("quantize", ["int8", "none"])
def test_the_bytes_of_a_build_are_those_of_the_engine(pico_engine: PicoEngine, quantize: str):
    recipe = with_flags(None, quantize=quantize)
    found = build_cost(open_checkpoint(PICO), recipe, 512, None)
    with EngineFile.open(pico_engine(quantize)) as engine:
        assert found.disk_bytes == max(info.offset + info.nbytes for info in engine.tensors.values())
    assert (found.seconds, found.peak_bytes) == (None, None)
    assert build_cost(open_checkpoint(PICO), recipe, 512, FACTS).disk_bytes == found.disk_bytes


def test_the_build_of_weights_that_are_not_here_is_that_of_cold_ones(tmp_path: Path):
    """A config's build is priced as if its weights lay on the disk; a GPU's has kernels to compile."""
    recipe, build = with_flags(None, quantize="int8", targets=("h100",)), FACTS.build
    assert build is not None
    shutil.copy(CONFIG, tmp_path)
    slow = replace(FACTS, build=replace(build, disk_read_byte_s=1.0))
    whole, alone = (build_cost(model_of(path).checkpoint, recipe, 512, slow) for path in (PICO, tmp_path))
    assert whole.seconds is not None and alone.seconds is not None
    assert whole.seconds == pytest.approx(alone.seconds, rel=0.01)
    assert alone.seconds > 2 * 7_344_384 + KERNELS * KERNEL_S / FACTS.threads
    assert alone.peak_bytes == build.peak_bytes + GPU_BYTES
    assert build_cost(model_of(PICO).checkpoint, with_flags(None, quantize="fp8"), 512, FACTS).seconds is None


def test_what_is_no_model(tmp_path: Path, pico_engine: PicoEngine):
    with pytest.raises(
        CheckpointError, match=r"^expected a checkpoint or a config\.json at .*\n  found: an engine, which"
    ):
        model_of(pico_engine("int8"))
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(Unsupported, match="expected an architecture that `llmc families` lists "):
        model_of(tmp_path / "other.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CheckpointError, match=str(tmp_path / "bad.json")):
        model_of(tmp_path / "bad.json")
    quantized = CONFIG.read_text().replace("{", '{"quantization_config": {"quant_method": "awq"},', 1)
    (tmp_path / "awq.json").write_text(quantized)
    with pytest.raises(Unsupported, match='found: quant_method "awq"'):
        model_of(tmp_path / "awq.json")
    (tmp_path / "keys.json").write_text(CONFIG.read_text().replace("{", '{"new_trick": 3,', 1))
    with pytest.raises(CheckpointError, match="new_trick"):
        model_of(tmp_path / "keys.json")
    assert model_of(tmp_path / "keys.json", ["new_trick"]).subject.config.accepted == ("new_trick",)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(CheckpointError, match="expected a regular file"):
        model_of(tmp_path / "pipe.json")
