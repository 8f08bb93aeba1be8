"""The architectures of images (or sound) and text whose text model llmc takes, one row each.

Facts are those of transformers 5.23.0 (`configuration_*.py` and `conversion_mapping.py` of each), but for the two
architectures of remote code, whose rows say what their published config files and tensors have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOWER, PROJECTOR = "vision tower", "projector of images"
SOUND, SOUND_PROJECTOR = "audio tower", "projector of sound"


@dataclass(frozen=True)
class Row:
    """An architecture: where the config of its text model is, and which of its modules are left out."""

    architecture: str
    model_type: str
    kind: str
    """The text model where its config does not name one."""
    parts: Mapping[str, str]
    """Module that is left out, to what it is; also with "model." before its name."""
    config: str = "text_config"
    """The key of the text model's config."""
    flat: bool = False
    """Files of transformers 4 have the text model's keys at the top."""
    tied: bool = False
    """`tie_word_embeddings` where nothing says it. Files of such architectures may hold a head of their own all the
    same, and then transformers takes that."""


@dataclass(frozen=True)
class Kind:
    """A text model by its `model_type`: the architecture that computes the same, and values of absent keys."""

    family: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Where they are not the family's: files of images and text leave out what equals its config class."""
    theta: float | None = None


_VISUAL = {"visual": TOWER}
_TOWER = {"vision_tower": TOWER, "multi_modal_projector": PROJECTOR}
_REMOTE = {"vision_model": TOWER, "mlp1": PROJECTOR}
_LLAMA4 = {"vision_model": TOWER, "multi_modal_projector": PROJECTOR}
_GEMMA4 = {"vision_tower": TOWER, "embed_vision": PROJECTOR, "audio_tower": SOUND, "embed_audio": SOUND_PROJECTOR}

_TABLE = (
    Row("Gemma3ForConditionalGeneration", "gemma3", "gemma3_text", _TOWER, tied=True),
    Row("Gemma4ForConditionalGeneration", "gemma4", "gemma4_text", _GEMMA4, tied=True),
    Row(
        "Gemma4UnifiedForConditionalGeneration",
        "gemma4_unified",
        "gemma4_unified_text",
        {"vision_embedder": PROJECTOR, "embed_vision": PROJECTOR, "embed_audio": SOUND_PROJECTOR},
        tied=True,
    ),
    Row("InternVLForConditionalGeneration", "internvl", "qwen2", _TOWER, tied=True),
    Row("InternVLChatModel", "internvl_chat", "llama", _REMOTE, config="llm_config"),
    Row("Llama4ForConditionalGeneration", "llama4", "llama4_text", _LLAMA4),
    Row("LlavaForConditionalGeneration", "llava", "llama", _TOWER),
    Row("Mistral3ForConditionalGeneration", "mistral3", "mistral", _TOWER, tied=True),
    Row("NVLM_D_Model", "NVLM_D", "qwen2", _REMOTE, config="llm_config"),
    Row("Qwen2VLForConditionalGeneration", "qwen2_vl", "qwen2_vl_text", _VISUAL, flat=True),
    Row("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "qwen2_5_vl_text", _VISUAL, flat=True),
    Row("Qwen3VLForConditionalGeneration", "qwen3_vl", "qwen3_vl_text", _VISUAL),
)
ROWS: dict[str, Row] = {row.architecture: row for row in _TABLE}
"""Row by architecture."""


def _sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int | None, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }


_QWEN2_VL = Kind(
    "Qwen2ForCausalLM",
    {
        **_sizes(8192, 29568, 80, 64, 8, 152064),
        "rms_norm_eps": 1e-5,
        "max_window_layers": 80,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    theta=1e6,
)
_GEMMA3, _GEMMA4_SIZES = _sizes(2304, 9216, 26, 8, 4, 262208), _sizes(2304, 9216, 30, 8, 4, 262144)
KINDS: dict[str, Kind] = {
    "llama": Kind("LlamaForCausalLM", _sizes(4096, 11008, 32, 32, None, 32000)),
    "mistral": Kind("MistralForCausalLM", _sizes(4096, 14336, 32, 32, 8, 32000)),
    "mistral4": Kind("Mistral4ForCausalLM", _sizes(4096, 12288, 36, 32, 32, 131072)),
    "qwen2": Kind("Qwen2ForCausalLM", _sizes(4096, 22016, 32, 32, 32, 151936)),
    "llama4_text": Kind("Llama4ForCausalLM", _sizes(5120, 8192, 48, 40, 8, 202048)),
    "qwen3": Kind("Qwen3ForCausalLM", _sizes(4096, 22016, 32, 32, 32, 151936)),
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": Kind(
        "Qwen3ForCausalLM",
        {**_sizes(4096, 22016, 32, 32, 32, 151936), "max_position_embeddings": 128000},
        theta=500_000.0,
    ),
    "gemma3_text": Kind("Gemma3ForCausalLM", _GEMMA3),
    "gemma4_text": Kind("Gemma4ForCausalLM", _GEMMA4_SIZES),
    # the same layers without a per-layer embedding and experts, whose keys its config does not have
    "gemma4_unified_text": Kind(
        "Gemma4ForCausalLM",
        {
            **_GEMMA4_SIZES,
            "max_position_embeddings": 262144,
            "sliding_window": 1024,
            "hidden_size_per_layer_input": None,
            "use_bidirectional_attention": "vision",
        },
    ),
}
"""Text models by `model_type`, if they differ from the family of that name; another family has no sizes by default."""

_IMAGES = """
    vision_config audio_config image_token_id image_token_index video_token_id video_token_index audio_token_id
    audio_token_index vision_start_token_id vision_end_token_id vision_token_id boi_token_id boi_token_index
    eoi_token_id eoi_token_index boa_token_id boa_token_index eoa_token_id eoa_token_index mm_tokens_per_image
    vision_soft_tokens_per_image image_seq_length image_grid_pinpoints spatial_merge_size projector_hidden_act
    projection_dim multimodal_projector_bias vision_feature_layer vision_feature_select_strategy ignore_index
    processor_class downsample_ratio dynamic_image_size force_image_size min_dynamic_patch max_dynamic_patch pad2square
    ps_version select_layer use_thumbnail use_backbone_lora image_fold template
"""
IMAGES = frozenset(_IMAGES.split())
"""Keys that concern images and sound, wherever a config has them."""
WHY_IGNORED = "it concerns images or sound, which are left out"
