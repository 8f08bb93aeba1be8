"""Configs of images and text: the text model's family, sizes and defaults, what is ignored, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.samples.families import CONFIG

from llmc.compiler.families import FAMILIES
from llmc.compiler.families.config import Config, parse_config
from llmc.compiler.vision.table import KINDS, ROWS, WHY_IGNORED, Row
from llmc.runtime.errors import CheckpointError, LlmcError, RecipeError, Unsupported

TEXT = {**CONFIG, "tie_word_embeddings": False}
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {**TEXT, "model_type": "llama"},
    "vision_config": {"hidden_size": 8},
    "image_token_index": 7,
}
QWEN: dict[str, Any] = {
    **TEXT,
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "vision_config": {"depth": 1},
    "vision_start_token_id": 3,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}
OF_TRANSFORMERS = [row for row in ROWS.values() if row.config == "text_config"]


def read(config: dict[str, Any], accept: tuple[str, ...] = (), **changes: Any) -> Config:
    """What a config says; `...` leaves a key out."""
    values = {key: value for key, value in (config | changes).items() if value is not ...}
    return parse_config(json.dumps(values), accept=accept)


def inside(**changes: Any) -> dict[str, Any]:
    text = LLAVA["text_config"] | changes
    return LLAVA | {"text_config": {key: value for key, value in text.items() if value is not ...}}


@pytest.mark.parametrize("row", OF_TRANSFORMERS, ids=lambda row: row.architecture)
def test_a_config_that_says_nothing_is_that_of_the_config_class(row: Row):
    """Published configs leave out what equals the class's default; Gemma 3's leave out most."""
    from transformers import AutoConfig

    text = {"model_type": row.kind}
    theirs = AutoConfig.for_model(row.model_type, text_config=dict(text))
    their = theirs.get_text_config()
    ours = read({"architectures": [row.architecture], "model_type": row.model_type, "text_config": text}).decoder
    first = ours.layers[0]
    assert (ours.hidden_size, len(ours.layers)) == (their.hidden_size, their.num_hidden_layers)
    assert (first.mixer.heads, first.mixer.kv_heads) == (their.num_attention_heads, their.num_key_value_heads)
    assert (ours.vocab_size, ours.positions) == (their.vocab_size, their.max_position_embeddings)
    assert (first.mlp.down.columns, ours.norm.epsilon) == (their.intermediate_size, their.rms_norm_eps)
    assert ours.tied == theirs.tie_word_embeddings
    kinds = getattr(their, "layer_types", None) or ["full_attention"] * len(ours.layers)
    for kind, layer in zip(kinds, ours.layers, strict=True):
        given = their.rope_parameters.get(kind, their.rope_parameters)
        rope = layer.mixer.rope
        if rope is None:
            assert their.no_rope_layers[ours.layers.index(layer)] == 0
            continue
        assert (rope.theta, rope.type) == (given["rope_theta"], given["rope_type"])


@pytest.mark.parametrize("name", KINDS)
def test_text_models_are_of_families_that_llmc_has(name: str):
    kind = KINDS[name]
    assert kind.family in FAMILIES
    assert not kind.defaults.keys() & {"architectures", "model_type", "tie_word_embeddings"}


def test_what_concerns_images_is_ignored_for_that_reason():
    config = read(LLAVA)
    assert {key for key, reason in config.ignored.items() if reason == WHY_IGNORED} == {
        "vision_config",
        "image_token_index",
    }
    assert config.family.architecture == "LlavaForConditionalGeneration" and config.family.name == "llama"
    assert config.parts == {"vision_tower": "vision tower", "multi_modal_projector": "projector of images"}
    flat = read(QWEN)
    assert flat.ignored["vision_start_token_id"] == flat.ignored["vision_config"] == WHY_IGNORED
    assert "positions of text are equal" in flat.ignored["rope_scaling.mrope_section"]


def test_an_old_config_is_flat_and_a_later_one_repeats_itself():
    """transformers 4.55 wrote Qwen's keys at the top and in text_config, also those of images."""
    text = {key: value for key, value in QWEN.items() if key not in ("vision_config", "model_type")}
    both = read(QWEN, text_config=text | {"model_type": "qwen2_vl_text"})
    assert both.decoder == read(QWEN).decoder
    assert both.ignored["hidden_size"] == "text_config alone says it of the text model"
    rope = both.decoder.layers[0].mixer.rope
    assert rope and (rope.type, rope.theta) == ("default", 1e6)


def test_an_architecture_that_only_model_type_names():
    assert read(QWEN, architectures=...).decoder == read(QWEN).decoder


@pytest.mark.parametrize(
    ("config", "changes", "tied"),
    [
        (LLAVA, {}, False),
        (LLAVA, {"tie_word_embeddings": True}, True),
        (LLAVA, {"text_config": LLAVA["text_config"] | {"tie_word_embeddings": True}}, True),
        (QWEN, {}, False),
        (QWEN, {"tie_word_embeddings": True}, True),
        (LLAVA, {"text_config": TEXT | {"model_type": "gemma", "tie_word_embeddings": None}}, True),
    ],
)
def test_where_tying_is_said(config: dict[str, Any], changes: dict[str, Any], tied: bool):
    found = read(config, **changes)
    assert found.decoder.tied == tied and not found.stored_head_counts


def test_ids_and_dtype_of_the_whole_count():
    config = read(inside(bos_token_id=1, eos_token_id=2, dtype="float32"), eos_token_id=[3, 4], torch_dtype="bfloat16")
    assert (config.bos_id, config.eos_ids, config.dtype) == (1, (3, 4), "float32")
    assert read(inside(dtype="float32"), dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (
            LLAVA | {"text_config": ...},
            CheckpointError,
            r'expected "text_config" as the config of the text model in config',
        ),
        (
            inside(model_type="internlm2"),
            Unsupported,
            r'expected a text model of .* in "text_config" of config.json\n  found: model_type "internlm2"',
        ),
        (inside(zz=1), CheckpointError, r'expected only known keys in "text_config" of config.json\n  found: "zz": 1'),
        (LLAVA | {"zz": 1}, CheckpointError, r'expected only known keys in config.json\n  found: "zz": 1'),
        (inside(is_encoder_decoder=True), Unsupported, r'expected "is_encoder_decoder" off'),
        (
            LLAVA | {"vocab_size": 7},
            CheckpointError,
            r'one value of "vocab_size" in config.json\n  found: 7 at the top, 200 in text_config',
        ),
        (LLAVA | {"model_type": "qwen2_vl"}, CheckpointError, r'found: LlavaForConditionalGeneration and "qwen2_vl"'),
        (LLAVA | {"tie_word_embeddings": 1}, CheckpointError, r'"tie_word_embeddings" as true or false in config.json'),
        (
            inside(hidden_size="a"),
            CheckpointError,
            r'expected "hidden_size" as an integer .* in "text_config" of config.json',
        ),
        (
            LLAVA | {"quantization_config": {"quant_method": "awq"}},
            Unsupported,
            r'expected a checkpoint that is not quantized yet .*\n  found: quant_method "awq"',
        ),
    ],
)
def test_refused(config: dict[str, Any], kind: type[LlmcError], message: str):
    with pytest.raises(kind) as caught:
        read(config)
    assert re.search(message, str(caught.value))


def test_keys_that_are_accepted_may_be_at_either_place():
    config = read(inside(zz=1), ("zz", "yy"), yy=2)
    assert sorted(config.accepted) == ["yy", "zz"]
    with pytest.raises(RecipeError, match=r"cannot apply --accept-config xx\n  found: no such key in config\.json"):
        read(LLAVA, ("xx",))
