"""`llmc inspect` shows the facts of any safetensors checkpoint, and says of one that cannot be built why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import Outcome, edit
from support.paths import PICO
from support.samples.families import write
from support.samples.mixtures import SAMPLES
from transformers import CONFIG_MAPPING

Call = Callable[..., Outcome]
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint."""
    return Path(shutil.copytree(PICO, tmp_path / "c"))


def facts(call: Call, where: object, *flags: str) -> dict[str, Any]:
    """What --json shows; the text has the reason too, and both end with 0."""
    found, text = call("inspect", where, *flags, "--json"), call("inspect", where, *flags)
    assert (found.code, text.code, found.err, text.err) == (0, 0, "", "")
    assert ("cannot be built" in text.out) is not found.json["buildable"]
    if not found.json["buildable"]:
        assert "  cannot be built: " + found.json["reason"].replace("\n", "\n  ") in text.out
    return {**found.json, "text": text.out}


@pytest.mark.usefixtures("checked_here")
def test_one_that_can_be_built(call: Call):
    found = facts(call, PICO)
    assert (found["buildable"], found["reason"], "shapes" in found) == (True, None, False)


def test_a_mixture_of_experts(call: Call, tmp_path: Path):
    """Two of eight experts of 3 * 64 * 32 numbers compute a token, in two of three layers."""
    sample = SAMPLES["qwen2_moe"]
    found = facts(call, write(tmp_path / "c", "qwen2_moe", next(iter(sample.cases.values())), sample=sample))
    assert found["experts"] == {
        **{"layers": 2, "count": 8, "active": 2, "intermediate_size": 32, "shared_intermediate_size": 48}
    }
    assert found["parameters"] - found["active_parameters"] == 2 * 6 * 3 * 64 * 32
    stored = load_file(tmp_path / "c" / "model.safetensors").values()
    assert (found["parameters"], found["intermediate_size"]) == (sum(one.numel() for one in stored), 96)
    said = "2 layers with experts: 2 of 8 for a token, intermediate 32, and a shared one of 48"
    counts = f"{found['parameters']:,} parameters, {found['active_parameters']:,} of them active"
    assert f"  {said}\n  {counts}\n" in found["text"] and "hidden 64, intermediate 96, 4 heads" in found["text"]


def test_experts_in_every_layer(call: Call, tmp_path: Path):
    sample = SAMPLES["mixtral"]
    found = facts(call, write(tmp_path / "c", "mixtral", next(iter(sample.cases.values())), sample=sample))
    assert (found["intermediate_size"], found["experts"]["shared_intermediate_size"]) == (None, None)
    assert "hidden 64, 4 heads" in found["text"] and "3 of 8 for a token, intermediate 48\n" in found["text"]


@pytest.mark.parametrize(
    "model_type", ["mixtral", "qwen3_moe", "gemma3_text", "phi3", "deepseek_v3", "gpt_oss", "olmo2"]
)
def test_a_foreign_architecture(call: Call, tmp_path: Path, model_type: str):
    config = CONFIG_MAPPING[model_type]()
    config.architectures = ["XForCausalLM"]
    config.save_pretrained(tmp_path)
    tensors = {"a.weight": torch.zeros(4, 3, dtype=torch.bfloat16), "b.weight": torch.zeros(2, 8)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = facts(call, tmp_path)
    assert not found["buildable"] and "XForCausalLM" in found["reason"]
    shown = (found["architecture"], found["model_type"], found["hidden_size"], found["layers"], found["heads"])
    assert shown == (
        *("XForCausalLM", model_type),
        *(config.hidden_size, config.num_hidden_layers, config.num_attention_heads),
    )
    assert (found["tensors"], found["bytes"], found["dtypes"]) == (2, 88, {"BF16": 1, "F32": 1})
    assert found["largest"] == {"b.weight": ["F32", 2, 8], "a.weight": ["BF16", 4, 3]}
    assert (
        f"  XForCausalLM ({model_type}): layers {config.num_hidden_layers}, hidden {config.hidden_size}"
        in found["text"]
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "dataset": ["a"]},
            "quant_method gptq, bits 4, group_size 128, sym True",
        ),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "quant_method awq, bits 4, version gemm"),
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "quant_method fp8, fmt e4m3"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {}}},
            "quant_method compressed-tensors, format pack-quantized",
        ),
    ],
)
def test_a_quantized_checkpoint(call: Call, folder: Path, settings: dict[str, Any], said: str):
    edit(folder / "config.json", lambda config: config.update(quantization_config=settings))
    found = facts(call, folder)
    plain = {key: one for key, one in settings.items() if not isinstance(one, list | dict)}
    assert (found["quantization"], found["hidden_size"], found["tensors"]) == (plain, 256, 74)
    assert f"  quantized: {said}\n" in found["text"]
    assert f'quant_method "{settings["quant_method"]}"' in found["reason"]


def test_settings_of_modelopt_and_integer_weights(call: Call, folder: Path):
    settings = {
        "producer": {},
        "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
    }
    (folder / "hf_quant_config.json").write_text(json.dumps(settings))
    for name in (FIRST, "model-00002-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    save_file({"model.norm.weight": torch.zeros(8, dtype=torch.uint8)}, folder / "model.safetensors")
    found = facts(call, folder)
    assert found["quantization"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert found["dtypes"] == {"U8": 1} and "found: U8" in found["reason"]


def test_an_adapter(call: Call, tmp_path: Path):
    settings = {"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base.lora_A.weight": torch.zeros(8, 4)}, tmp_path / "adapter_model.safetensors")
    found = facts(call, tmp_path)
    assert (found["adapter"], found["architecture"], found["tensors"]) == (settings, None, 1)
    assert "  adapter for org/base: peft_type LORA, r 8\n" in found["text"]
    assert "merge it into its base model" in found["reason"]


def test_a_weight_file_alone(call: Call, tmp_path: Path):
    path = shutil.copy(PICO / FIRST, tmp_path / "alone.safetensors")
    found = facts(call, path)
    assert (found["path"], found["tensors"], found["files"]) == (str(path), 33, {"alone.safetensors": 8003064})
    assert "alone.safetensors without config.json" in found["reason"]


def test_config_and_tensors_that_disagree(call: Call, folder: Path):
    """All else of the checkpoint is shown as of one that can be built."""
    edit(folder / "config.json", lambda config: config.update(intermediate_size=512))
    found = facts(call, folder)
    assert (found["intermediate_size"], found["rope"], found["tied"]) == (512, "default", True)
    assert "24 disagreements" in found["reason"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "well-formed JSON"), ('{"architectures": 3}', "a list of one name"), ("[]", "a JSON object")],
)
def test_a_damaged_config(call: Call, folder: Path, content: str, reason: str):
    (folder / "config.json").write_text(content)
    found = facts(call, folder)
    assert found["tensors"] == 74 and reason in found["reason"]


@pytest.mark.usefixtures("checked_here")
def test_a_key_that_llmc_does_not_know_and_its_flag(call: Call, folder: Path):
    edit(folder / "config.json", lambda config: config.update(my_key=1))
    assert "accept them: --accept-config my_key" in facts(call, folder)["reason"]
    assert facts(call, folder, "--accept-config", "my_key")["buildable"]


def test_a_shard_that_is_missing(call: Call, folder: Path):
    (folder / FIRST).unlink()
    found = facts(call, folder)
    assert found["tensors"] == 41 and f"1 missing: {FIRST}" in found["reason"]


@pytest.mark.usefixtures("checked_here")
def test_every_tensor_with_verbose(call: Call, folder: Path):
    edit(folder / "config.json", lambda config: config.update(architectures=["XForCausalLM"]))
    for where in (folder, PICO):
        found = facts(call, where, "--verbose")
        assert len(found["shapes"]) == 74
        assert found["shapes"]["model.norm.weight"] == ["BF16", 256]
        assert "  model.norm.weight BF16 [256]\n" in found["text"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / FIRST).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
        (lambda path: [one.unlink() for one in path.glob("*.safetensors")], "2 missing"),
        (lambda path: [one.unlink() for one in path.iterdir()], "an empty folder"),
    ],
)
def test_without_a_header_there_are_no_facts(call: Call, folder: Path, damage: Callable[[Path], object], said: str):
    damage(folder)
    found = call("inspect", folder)
    assert (found.code, found.out) == (3, "")
    assert said in found.err
