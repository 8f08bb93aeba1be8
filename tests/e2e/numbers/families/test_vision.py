"""Checkpoints of images and text: their text model says what the whole model of transformers says of a text.

Two architectures of remote code cannot be compared with their own code, which is not here; their text model is a plain
one of transformers, under the names that their files have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Outcome
from support.engines import checkpoint_logits
from support.samples import families
from support.samples.families import BOUND, Case, difference
from support.vision import tiny as vision
from support.vision.tiny import KINDS, edit, rename

import llmc
from llmc.compiler.checkpoint.account import check_tensors, open_source
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import CheckpointError, Unsupported

Call = Callable[..., Outcome]
LLAVA = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""}
SOUND: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "output_proj_dims": 16,
    "subsampling_conv_channels": [4, 4],
}
"""The audio tower of the smaller Gemma 4."""
EXPERTS = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
"""The largest Gemma 4."""
QWEN = {"model.language_model.": "model.", "model.": ""}
OLD: dict[str, Mapping[str, str]] = {
    **dict.fromkeys(("gemma3", "internvl", "llava", "mistral3"), LLAVA),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), QWEN),
}
"""Prefixes of files that transformers 4 wrote; later architectures have only one spelling."""


def spell_old(config: dict[str, Any]) -> None:
    """The config as transformers 4 wrote it: Qwen's flat, and of others a text model without what all have."""
    text = config["text_config"]
    rope, _ = text.pop("rope_parameters"), text.pop("layer_types", None)
    if "full_attention" in rope:  # Gemma's thetas are those of its config class
        rope = {}
    config["torch_dtype"] = config.pop("dtype")
    for key in ("dtype", "transformers_version"):
        text.pop(key, None)
    text |= {"rope_theta": rope["rope_theta"]} if rope else {}
    if config["model_type"].startswith("qwen"):
        text |= {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
        del config["text_config"], text["model_type"]
        config |= {key: value for key, value in text.items() if config.get(key) is None}


def check(path: Path, kind: vision.Kind) -> dict[str, str]:
    """The oracle says what transformers says of a text; returns what is not read."""
    written = vision.answers(path, kind)
    assert difference(checkpoint_logits(path, written.ids), written.logits) < BOUND
    return check_tensors(open_checkpoint(path))


@pytest.mark.parametrize("name", KINDS)
def test_a_text_gets_the_logits_of_the_whole_model(tmp_path: Path, name: str):
    kind = KINDS[name]
    unused = check(vision.write(tmp_path / "c", kind), kind)
    assert {module.removeprefix("model.") for module in unused} == {*kind.parts}
    assert all(" left out: " in reason for reason in unused.values())


@pytest.mark.parametrize("name", OLD)
def test_files_of_transformers_4(tmp_path: Path, name: str):
    """Names and configs of both kinds are read by transformers 5, too, which says the numbers."""
    path = vision.write(tmp_path / "c", KINDS[name])
    rename(path, OLD[name])
    edit(path, spell_old)
    assert check(path, KINDS[name]).keys() == {*KINDS[name].parts}


@pytest.mark.parametrize(
    ("name", "text", "whole"),
    [
        ("llava", {"model_type": "mistral", "sliding_window": 8}, {}),
        ("llava", {"model_type": "qwen2"}, {}),
        pytest.param("llava", {"model_type": "qwen3", "head_dim": 16}, {}, marks=pytest.mark.soak),
        pytest.param("llava", {"model_type": "gemma", "head_dim": 16}, {}, marks=pytest.mark.soak),
        pytest.param("internvl", {"model_type": "qwen3", "head_dim": 16}, {}, marks=pytest.mark.soak),
        pytest.param("internvl", {"model_type": "llama"}, {}, marks=pytest.mark.soak),
        ("internvl", {}, {"tie_word_embeddings": True}),
        ("qwen2_vl", {}, {"tie_word_embeddings": True}),
        ("qwen2_5_vl", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, {}),
        pytest.param("gemma4", {}, {"audio_config": SOUND}, marks=pytest.mark.soak),
        pytest.param("gemma4", EXPERTS, {}, marks=pytest.mark.soak),
        pytest.param("qwen3_vl", {"attention_bias": True}, {"tie_word_embeddings": True}, marks=pytest.mark.soak),
        pytest.param(
            "gemma3", {"use_bidirectional_attention": False, "num_hidden_layers": 7}, {}, marks=pytest.mark.soak
        ),
        pytest.param("gemma4_unified", {"attention_k_eq_v": True, "num_hidden_layers": 7}, {}, marks=pytest.mark.soak),
    ],
)
def test_text_models_of_other_kinds(tmp_path: Path, name: str, text: Mapping[str, Any], whole: Mapping[str, Any]):
    check(vision.write(tmp_path / "c", KINDS[name], text=text, whole=whole), KINDS[name])


@pytest.mark.parametrize("said", [None, True], ids=["unsaid", "said to be tied"])
def test_a_stored_head_counts_whatever_the_config_says(tmp_path: Path, said: bool | None):
    """Mistral Small 3.1 says nothing of its head, its config class says that it is tied, and its files hold one."""
    kind = KINDS["mistral3"]
    path = vision.write(tmp_path / "c", kind)
    edit(path, lambda config: config.pop("tie_word_embeddings") and None)
    edit(path, lambda config: config["text_config"].pop("tie_word_embeddings", None))
    if said is not None:
        edit(path, lambda config: config.update(tie_word_embeddings=said))
    assert not open_checkpoint(path).config.decoder.tied
    check(path, kind)


@pytest.mark.parametrize(
    ("architecture", "model_type"), [("InternVLChatModel", "internvl_chat"), ("NVLM_D_Model", "NVLM_D")]
)
def test_architectures_of_remote_code(tmp_path: Path, architecture: str, model_type: str):
    """Their own code is not compared: the numbers are those of the Qwen 2 in it."""
    path = families.write(tmp_path / "c", "qwen2", Case())
    written = families.answers(path)
    rename(path, {"": "language_model."})
    tensors = load_file(path / "model.safetensors")
    tensors |= {"vision_model.encoder.layers.0.norm1.weight": torch.ones(8), "mlp1.0.weight": torch.ones(8)}
    save_file(tensors, path / "model.safetensors")

    def wrap(config: dict[str, Any]) -> None:
        inner = dict(config)
        config.clear()
        config |= {"architectures": [architecture], "model_type": model_type, "llm_config": inner, "vision_config": {}}
        config |= {"auto_map": {"AutoModel": "x.X"}, "use_llm_lora": 0, "ps_version": "v2", "downsample_ratio": 0.5}

    edit(path, wrap)
    assert difference(checkpoint_logits(path, written.ids), written.logits) < BOUND
    assert check_tensors(open_checkpoint(path)) == {
        "vision_model": "vision tower left out: 1 tensor",
        "mlp1": "projector of images left out: 1 tensor",
    }
    edit(path, lambda config: config.update(use_llm_lora=16))
    with pytest.raises(Unsupported, match=r'expected "use_llm_lora" as 0 in .*\n  found: 16'):
        open_checkpoint(path)


def test_an_engine_names_the_files_tensors_and_what_it_lacks(tmp_path: Path, call: Call):
    kind = KINDS["qwen2_5_vl"]
    path = vision.write(tmp_path / "c", kind)
    rename(path, QWEN)
    edit(path, spell_old)
    written = vision.answers(path, kind)
    engine = llmc.build(path, tmp_path / "a.llmc", quantize="none")
    with llmc.load(engine) as loaded:
        assert difference(loaded.logits(written.ids), written.logits) < BOUND
    with EngineFile.open(engine) as file:
        manifest = file.manifest
    stored = load_file(path / "model.safetensors").keys()
    sources = {name for lineage in manifest.lineage.values() for name in lineage.sources}
    assert sources == {name for name in stored if not name.startswith("visual.")}
    count = len(stored - sources)
    assert manifest.unused == {"visual": f"vision tower left out: {count} tensors"}
    assert (manifest.model.architecture, manifest.model.family) == (kind.architecture, "qwen2")
    lacks = f"vision tower left out: {count} tensors of visual"
    assert f"  {lacks}\n" in call("inspect", engine).out
    assert lacks in call("inspect", path).out
    for flags in ((), ("--chat",)):
        outcome = call("run", engine, "a", "--image", "cat.png", *flags)
        assert outcome.code == 3
        assert f"cannot read an image with {engine}\n  found: {lacks}\n  try: text alone" in outcome.err
    outcome = call("run", path, "a", "--image", "cat.png")
    assert outcome.code == 3 and "found: vision tower left out\n" in outcome.err


def test_a_text_model_has_no_image_part(tmp_path: Path, call: Call):
    path = families.write(tmp_path / "c", "llama", Case())
    engine = llmc.build(path, tmp_path / "a.llmc")
    for model in (engine, path):
        outcome = call("run", model, "a", "--image", "cat.png")
        assert outcome.code == 3
        assert "found: a text model, which has no image part" in outcome.err
    with llmc.load(engine) as loaded:
        parts = [{"type": "image_url", "image_url": {"url": "cat.png"}}, {"type": "text", "text": "a"}]
        with pytest.raises(Unsupported, match="cannot read an image with LlamaForCausalLM\n  found: a text model"):
            loaded.encode_chat([{"role": "user", "content": parts}])


def test_what_is_neither_text_nor_a_known_part_is_refused(tmp_path: Path):
    kind = KINDS["llava"]
    path = vision.write(tmp_path / "c", kind)
    tensors = load_file(path / "model.safetensors")
    tensors["model.audio_tower.x"] = torch.ones(2)
    del tensors["model.language_model.norm.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    message = str(caught.value)
    assert "expected the tensors of LlavaForConditionalGeneration\n  found: 2 disagreements" in message
    assert "model.audio_tower.x: expected nothing, found [2]" in message
    assert "model.language_model.norm.weight: expected [64], found nothing" in message
