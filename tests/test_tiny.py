"""The whole path on one page: a checkpoint becomes an engine, the engine writes text and proves itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.paths import PICO

import llmc
from llmc.runtime.engine_file.file import EngineFile, verify_engine
from llmc.runtime.probe import replay

PROMPT = "def fibonacci(n):\n    "


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build: config and headers become a graph, passes change it, weights stream through `int4` into one file."""
    return llmc.build(PICO, tmp_path_factory.mktemp("tiny") / "pico.llmc", quantize="int4")


def test_one_file_holds_everything(path: Path):
    """Weights under their Hugging Face names, the cpu profile's graph, the tokenizer and the golden probe."""
    assert [entry.name for entry in path.parent.iterdir()] == ["pico.llmc"]
    with EngineFile.open(path) as engine:
        model = engine.manifest.model
        assert (model.architecture, len(model.caches), model.vocab_size) == ("LlamaForCausalLM", 8, 4096)
        assert list(engine.manifest.profiles) == ["cpu"]
        assert {"profiles/cpu/graph.onnx", "tokenizer/tokenizer.json", "measured.json"} <= set(engine.sections)
        # two 4-bit numbers per byte; the head, which is the embedding too, keeps 8 bits
        assert engine.tensors["model.layers.0.self_attn.q_proj.weight"].shape == (256, 128)
        assert engine.tensors["model.embed_tokens.weight"].shape == (4096, 256)
    assert path.stat().st_size < 0.4 * sum(file.stat().st_size for file in PICO.glob("*.safetensors"))


def test_text_in_text_out(path: Path):
    """Greedy by default, so the same prompt gives the same tokens, in one piece or streamed."""
    with llmc.load(path) as engine:
        result = engine.generate(PROMPT, max_tokens=16)
        assert (len(result.token_ids), result.finish_reason) == (16, "length")
        assert engine.tokenizer.decode(result.token_ids) == result.text
        assert "".join(piece.text for piece in engine.stream(PROMPT, max_tokens=16)) == result.text


def test_a_batch_runs_together_and_changes_nothing(path: Path):
    prompts = [PROMPT, "import os\nimport ", "class Point:\n"]
    with llmc.load(path) as engine:
        alone = [engine.generate(prompt, max_tokens=8).token_ids for prompt in prompts]
        assert [result.token_ids for result in engine.generate(prompts, max_tokens=8)] == alone


def test_logits_show_what_was_computed(path: Path):
    """Row t predicts token t + 1: greedy text is the argmax of the last row."""
    with llmc.load(path) as engine:
        ids = engine.tokenizer.encode(PROMPT)
        logits = engine.logits(ids)
        assert (logits.shape, logits.dtype) == ((len(ids), 4096), np.float32)
        assert engine.generate(ids, max_tokens=1).token_ids == [int(logits[-1].argmax())]


def test_verify_checks_every_byte_and_replays_the_probe(path: Path, tmp_path: Path):
    """The probe: the oracle's logits of the quantized graph, stored at build, come out again on this machine."""
    verify_engine(path).close()
    report = replay(path)
    assert report.ok
    assert report.max_error <= report.tolerance

    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.llmc").write_bytes(damaged)
    with pytest.raises(llmc.VerifyError, match=r"section 'measured.json'"):
        verify_engine(tmp_path / "damaged.llmc")
