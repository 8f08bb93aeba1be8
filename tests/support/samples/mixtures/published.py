"""GPT-OSS checkpoints as they are published: experts in mxfp4, written from a checkpoint of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmc.quantize import FORMATS

MODULES = ("gate_up_proj", "down_proj")
Tensors = dict[str, torch.Tensor]


def publish(plain: Path, folder: Path, change: Callable[[Tensors], None] = lambda tensors: None) -> Path:
    """A copy of the checkpoint `plain` whose experts [E, in, out] are codes and scales; `change` alters its tensors."""
    shutil.copytree(plain, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(MODULES)]:
        parts = [FORMATS["mxfp4"].quantize(one) for one in tensors.pop(name).transpose(1, 2).contiguous()]
        codes, scales = (np.stack([one[key] for one in parts]) for key in ("weight", "weight_scale"))
        tensors[f"{name}_blocks"] = torch.from_numpy(codes.reshape(*scales.shape, 16))
        tensors[f"{name}_scales"] = torch.from_numpy(scales)
    change(tensors)
    save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    excepted = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": excepted}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def unpacked(folder: Path, plain: Path) -> Path:
    """A copy of a published checkpoint whose experts are bf16 again, as transformers decodes them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    shutil.copytree(folder, plain)
    path = plain / "model.safetensors"
    tensors = load_file(path)
    for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
        blocks, scales = (tensors.pop(f"{name}_{part}") for part in ("blocks", "scales"))
        tensors[name] = convert_moe_packed_tensors(blocks, scales)
    save_file(tensors, path)
    config = json.loads((plain / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    return plain


def stored(folder: Path) -> Mapping[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
