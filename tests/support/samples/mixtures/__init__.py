"""One table of small models with mixtures of experts: configs that turn on each of a family's features."""

from __future__ import annotations

from support.samples.families import Sample
from support.samples.mixtures import deepseek, gpt_oss, latent, llama4, many, qwen

SAMPLES: dict[str, Sample] = {
    sample.kind: sample for part in (deepseek, gpt_oss, latent, llama4, many, qwen) for sample in part.SAMPLES
}
"""By `model_type`."""
