"""Rope and the write to the cache, then attention of one new token (`flash_decode.py`) or many (`flash_prefill.py`)."""
