"""Tiny checkpoints of images and text, which transformers' own classes write, in the spellings that files have.

transformers is imported where it is used: it takes seconds, and every process that tests imports this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from support.samples.families import CONFIG, Written

VOCABULARY = 200
_IDS = """image_token_id image_token_index video_token_id vision_start_token_id vision_end_token_id boi_token_id
    eoi_token_id boi_token_index eoi_token_index audio_token_id boa_token_id eoa_token_index"""
IMAGE_IDS = {name: VOCABULARY - 1 - index for index, name in enumerate(_IDS.split())}
"""Ids that stand for images; texts of the tests have lower ones."""
TEXT_IDS = VOCABULARY - len(IMAGE_IDS)
LENGTH = 24
TEXT: dict[str, Any] = {**CONFIG, "vocab_size": VOCABULARY}
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN: dict[str, Any] = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 16}
_GEMMA = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
_GEMMA4 = {"head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "hidden_size_per_layer_input": 0}
_MROPE = {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 5e4}


@dataclass(frozen=True)
class Kind:
    """One architecture: its class in transformers, tiny configs, and the modules beside its text model."""

    architecture: str
    model_type: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    parts: tuple[str, ...]
    whole: Mapping[str, Any] = field(default_factory=dict)


_TWO = ("vision_tower", "multi_modal_projector")
KINDS: dict[str, Kind] = {
    "gemma3": Kind(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        {**_GEMMA, "model_type": "gemma3_text", "tie_word_embeddings": True},
        {**_TOWER, "model_type": "siglip_vision_model"},
        _TWO,
        {"mm_tokens_per_image": 4},
    ),
    "gemma4": Kind(
        "Gemma4ForConditionalGeneration",
        "gemma4",
        {
            **_GEMMA4,
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        {**_TOWER, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 8},
        ("vision_tower", "embed_vision"),
    ),
    "gemma4_unified": Kind(
        "Gemma4UnifiedForConditionalGeneration",
        "gemma4_unified",
        {**_GEMMA4, "model_type": "gemma4_unified_text"},
        {"mm_embed_dim": 16, "mm_posemb_size": 8, "patch_size": 4, "pooling_kernel_size": 1, "output_proj_dims": 16},
        ("embed_vision",),
    ),
    "internvl": Kind(
        "InternVLForConditionalGeneration",
        "internvl",
        {"model_type": "qwen2"},
        {**_TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
        _TWO,
        {"tie_word_embeddings": False},
    ),
    "llama4": Kind(
        "Llama4ForConditionalGeneration",
        "llama4",
        {
            **{"model_type": "llama4_text", "head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 96},
            **{"interleave_moe_layer_step": 2, "attention_chunk_size": 8, "no_rope_layer_interval": 2},
        },
        {**_TOWER, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        ("vision_model", "multi_modal_projector"),
    ),
    "llava": Kind(
        "LlavaForConditionalGeneration", "llava", {"model_type": "llama"}, {**_TOWER, "projection_dim": 16}, _TWO
    ),
    "mistral3": Kind(
        "Mistral3ForConditionalGeneration",
        "mistral3",
        {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
        {**_TOWER, "head_dim": 8},
        _TWO,
        {"tie_word_embeddings": False},
    ),
    "qwen2_vl": Kind(
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        {"rope_parameters": _MROPE},
        {"depth": 1, "embed_dim": 16, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 1},
        ("visual",),
    ),
    "qwen2_5_vl": Kind(
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
        {"rope_parameters": _MROPE},
        {**_QWEN, "fullatt_block_indexes": [0]},
        ("visual",),
    ),
    "qwen3_vl": Kind(
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        {"head_dim": 32, "rope_parameters": {**_MROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True}},
        {**_QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        ("visual",),
    ),
}
"""By the short name of the tests."""


def write(folder: Path, kind: Kind, *, text: Mapping[str, Any] = {}, whole: Mapping[str, Any] = {}) -> Path:
    """A checkpoint with random numbers everywhere, as transformers 5 writes it."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind.model_type,
        text_config={**TEXT, **kind.text, **text},
        vision_config={**kind.vision},
        **{**IMAGE_IDS, **kind.whole, **whole},
    )
    model: Any = getattr(transformers, kind.architecture)(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.15)
    model.save_pretrained(folder, save_original_format=False)
    return folder


def answers(path: Path, kind: Kind) -> Written:
    """What the whole model says of a text, in fp32; the continuation is not asked for."""
    import transformers

    model: Any = getattr(transformers, kind.architecture).from_pretrained(path, dtype=torch.float32).eval()
    ids = np.random.default_rng(1).integers(0, TEXT_IDS, LENGTH).tolist()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return Written(path, ids, logits, [])


def rename(folder: Path, prefixes: Mapping[str, str]) -> None:
    """Put other prefixes in place of those that the tensors have; the first that fits counts."""
    path = folder / "model.safetensors"

    def renamed(name: str) -> str:
        old = next((one for one in prefixes if name.startswith(one)), "")
        return prefixes.get(old, "") + name.removeprefix(old)

    tensors = load_file(path)
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def edit(folder: Path, change: Any) -> None:
    """Change config.json in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
