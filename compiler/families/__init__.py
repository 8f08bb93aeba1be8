"""The table of families by architecture, one file each; other architectures are refused with the list of names."""

from __future__ import annotations

from importlib import import_module

from .reading import Family

__all__ = ["FAMILIES", "REMOTE", "Family"]

_FILES = (
    "biased.dots1",
    "biased.ernie4_5_moe",
    "biased.glm4_moe",
    "biased.hy_v3",
    "biased.minimax_m2",
    "latents.deepseek_v2",
    "latents.deepseek_v3",
    "latents.deepseek_v32",
    "latents.glm4_moe_lite",
    "latents.glm_moe_dsa",
    "latents.mistral4",
    "llamas.ernie4_5",
    "llamas.granite",
    "llamas.granite_swa",
    "llamas.hunyuan_v1_dense",
    "llamas.llama",
    "llamas.ministral3",
    "llamas.mistral",
    "llamas.phi3",
    "llamas.qwen2",
    "llamas.qwen3",
    "llamas.seed_oss",
    "llamas.smollm3",
    "mixtures.gpt_oss",
    "mixtures.granitemoe",
    "mixtures.llama4_text",
    "mixtures.mixtral",
    "mixtures.olmoe",
    "mixtures.phimoe",
    "mixtures.qwen2_moe",
    "mixtures.qwen3_moe",
    "norms.exaone4",
    "norms.gemma",
    "norms.gemma2",
    "norms.gemma3_text",
    "norms.gemma4_text",
    "norms.glm",
    "norms.glm4",
    "norms.olmo2",
    "norms.olmo3",
    "others.apertus",
    "others.arcee",
    "others.cohere2",
    "others.phi",
    "others.stablelm",
    "others.starcoder2",
    # one line a family
)
FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in sorted((import_module(f".{file}", __name__).FAMILY for file in _FILES), key=lambda one: one.name)
}
"""Family by architecture, as `architectures` in config.json names it."""
REMOTE: dict[str, Family] = {family.name: family for family in (import_module(".latents.kimi_k2", __name__).FAMILY,)}
"""Families of code outside of transformers, by `model_type`: they name the architecture of another family."""
