"""Kimi K2: DeepSeek-V3 under another model type, whose code is in its own files and not in transformers."""

from __future__ import annotations

from dataclasses import replace

from ..reading import LOGITS
from .deepseek_v3 import FAMILY as DEEPSEEK_V3

FAMILY = replace(DEEPSEEK_V3, name="kimi_k2", verified=f"{LOGITS}, computed as `deepseek_v3`")
