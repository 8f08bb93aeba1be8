"""Strict readers: JSON, safetensors headers, records; digests on all cores."""
