"""Classifies the keys of config.json, so that llmc never silently ignores a key that changes the numbers.

A key is used, harmless (with the reason), or refused (it changes the numbers in a way llmc does not compute). A key on
none of these lists passes only if its value is null, false or empty, or if the user accepts it by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...runtime.errors import CheckpointError, RecipeError, Unsupported, nearest
from .fields import shown

_COMMON = """
    architectures model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim vocab_size max_position_embeddings rms_norm_eps hidden_act tie_word_embeddings dtype torch_dtype
    bos_token_id eos_token_id pad_token_id initializer_range layer_types text_config rope_parameters rope_scaling
    rope_theta partial_rotary_factor original_max_position_embeddings quantization_config compression_config
    num_nextn_predict_layers num_mtp_layers
"""
COMMON = frozenset(_COMMON.split())
"""Keys that every family reads."""

_REASONS: dict[str, str] = {
    "it says who wrote the file and from what": """_name_or_path name_or_path transformers_version _commit_hash
        unsloth_version unsloth_fixed model_name license is_llama_config peft_version mergekit_version""",
    "remote code is never imported": "auto_map custom_pipelines trust_remote_code",
    "it picks an implementation of the same formula": """_attn_implementation attn_implementation
        _attn_implementation_internal _attn_implementation_autoset _experts_implementation
        _experts_implementation_internal _flash_attn_2_enabled use_flash_attention use_flash_attention_2 use_flash_attn
        use_flashattn flash_attention use_sdpa use_memory_efficient_attention use_xformers
        attention_softmax_in_fp32 scale_attention_softmax_in_fp32""",
    "it slices the same matrix products; the numbers stay": """pretraining_tp tensor_parallel
        chunk_size_feed_forward use_parallel_embedding""",
    "it acts in training only": """attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout
        residual_dropout embedding_dropout
        hidden_dropout_prob attention_probs_dropout_prob classifier_dropout gradient_checkpointing
        neftune_noise_alpha use_gradient_checkpointing label_smoothing z_loss_coefficient use_reentrant tf_legacy_loss
        use_bfloat16 xla_device fused_cross_entropy residual_dropout router_aux_loss_coef
        router_jitter_noise router_z_loss_coef input_jitter_noise aux_loss_alpha seq_aux moe_capacity
        moe_multimodal_dispatch_use_allgather""",
    "it chooses what a transformers call returns": """use_cache return_dict output_attentions output_hidden_states
        output_scores output_past torchscript return_dict_in_generate output_router_logits use_return_dict
        keys_to_ignore_at_inference tie_last_hidden_states cache_implementation is_decoder""",
    "it belongs to heads for other tasks": """id2label label2id num_labels problem_type finetuning_task
        task_specific_params classifier_activation summary_type add_classification_head class_num pool_type""",
    "it counts or names tokens": """dense_list im_start_id im_end_id im_newline_id mask_init_id org_vocab_size pad_id
        text_start_id text_end_id image_token_id""",
    "it says what the file is made of": "is_composition",
    "it concerns layers that draft tokens, which are left out": """num_mtp_modules mtp_transformer_layers use_mtp
        mtp_loss_scaling_factor multi_token_pred_lambda enable_mtp_magic_send""",
    "it says in how many bits a result is rounded; llmc's reference has 32": """enable_lm_head_fp32
        enable_moe_fp32_combine enable_attention_fp32_softmax""",
    "it concerns how experts or ranks were laid out in training": "ep_size",
    "the tokenizer's own files say this": """tokenizer_class tokenizer_model_max_length tokenizer_padding_side prefix
        pad_token bos_token eos_token unk_token sep_token_id cls_token_id mask_token_id unk_token_id
        decoder_start_token_id use_fast_tokenizer padding_side add_bos_token add_eos_token chat_template
        eod_token_id""",
    "generation defaults are read from generation_config.json": """max_length min_length max_new_tokens do_sample
        early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p
        repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size encoder_repetition_penalty
        bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
        exponential_decay_length_penalty suppress_tokens begin_suppress_tokens epsilon_cutoff eta_cutoff
        renormalize_logits num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
        assistant_lookbehind target_lookbehind _from_model_config generation_config""",
    "max_position_embeddings says this": """max_sequence_length max_seq_length max_seq_len model_max_length seq_length
        max_context_length n_ctx""",
    "tie_word_embeddings says this": "use_embedding_sharing",
    "intermediate_size is the result of it": "multiple_of ffn_dim_multiplier",
    "head_dim says this": "attention_head_dim",
    "it matters with use_cla only": "cla_share_factor",
    "transformers reads no such key": "full_attn_mod interpolate_factor",
    "it concerns encoder-decoder models only": "tie_encoder_decoder cross_attention_hidden_size",
    "this family reads no switch of windows, only sliding_window": "max_window_layers use_sliding_window",
    "attention is causal": "is_causal",
    "it is a leftover of a quantized load; the tensors say what they are": """load_in_4bit load_in_8bit
        _load_in_4bit _load_in_8bit pre_quantization_dtype _pre_quantization_dtype bnb_4bit_compute_dtype
        bnb_4bit_quant_type bnb_4bit_use_double_quant bnb_4bit_quant_storage""",
    "it serves another runtime": """transformers.js_config onnx onnx_config coreml_config neuron torch_compile
        kv_cache_dtype ggml_type""",
}

HARMLESS: dict[str, str] = {key: reason for reason, keys in _REASONS.items() for key in keys.split()}
"""Key to the reason why llmc ignores it."""

REFUSED: dict[str, str] = {
    "sliding_window": "attention that sees a window only",
    "attention_chunk_size": "attention in chunks",
    "rope_interleaved": "rotary embedding of neighbouring elements",
    "is_encoder_decoder": "an encoder beside the decoder",
    "add_cross_attention": "cross attention",
    "pruned_heads": "attention heads cut out of the layers",
    "per_layer_config": "layers of different shapes",
    "use_bidirectional_attention": "attention to later tokens",
    "use_cla": "layers that attend to the keys and values of others",
}
"""Key to what it turns on and llmc does not compute."""

REMOTE_CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})


def is_empty(value: Any) -> bool:
    """True for null, false, "", [] and {}, the values of a feature that is off; zero is a number, not empty."""
    return value is None or value is False or value in ("", [], {})


def strange_keys(values: Mapping[str, Any], own: Collection[str]) -> dict[str, str]:
    """The keys that are neither read, harmless nor off, each with what it turns on, or "" if llmc does not know it.

    `own` holds the keys that the family reads beside COMMON.
    """
    known = COMMON.union(own, HARMLESS)
    strange = {key: REFUSED.get(key, "") for key, value in values.items() if key not in known and not is_empty(value)}
    if values.get("use_sliding_window") is False:
        strange.pop("sliding_window", None)
    return strange


def classify_keys(
    values: Mapping[str, Any], accept: Collection[str], what: str, own: Collection[str] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Classify the keys of a config: ({ignored key: reason}, unknown keys that `accept` names).

    `accept` may name an ignored key: the caller says that it need not.

    `own` holds the keys that the family reads beside COMMON; `what` names the file in errors.

    Raises:
        Unsupported: a key turns on something that llmc does not compute.
        CheckpointError: keys are unknown; names all of them and the flags that accept them.
        RecipeError: a key in `accept` is misspelt or is not an unknown key.
    """
    used = COMMON.union(own)
    known = used | HARMLESS.keys() | REFUSED.keys()
    for key in sorted(accept):
        asked = f"cannot apply --accept-config {key}"
        if key not in values:
            raise RecipeError(asked, found=f"no such key in {what}{nearest(key, values)}", fix="leave the flag out")
        if key in used or (key in REFUSED and not is_empty(values[key])):
            raise RecipeError(asked, found="a key that llmc understands", fix="the flag is for unknown keys only")
    if values.get("is_causal", True) is False:  # the one key whose false changes the numbers
        raise Unsupported(f'expected "is_causal" as true in {what}', found="false: attention to later tokens")
    ignored, accepted, unknown = {}, [], []
    for key, value in values.items():
        if key in used:
            continue
        if key in HARMLESS:
            ignored[key] = HARMLESS[key]
        elif is_empty(value):
            ignored[key] = "null, false or empty: the feature is off"
        elif key == "sliding_window" and values.get("use_sliding_window") is False:
            ignored[key] = "use_sliding_window is false"
        elif key in REFUSED:
            found = f"{shown(value)}: {REFUSED[key]}"
            raise Unsupported(f'expected "{key}" off (null, false or empty) in {what}', found=found)
        elif key in accept:
            accepted.append(key)
        else:
            unknown.append(key)
    if unknown:
        found = ", ".join(f'"{key}": {shown(values[key])}{nearest(key, known)}' for key in unknown)
        flags = " ".join(f"--accept-config {key}" for key in unknown)
        raise CheckpointError(
            f"expected only known keys in {what}",
            found=found,
            fix=f"if they do not change the model's numbers, accept them: {flags}",
        )
    return ignored, tuple(sorted(accepted))
