"""Reads config.json and generation_config.json in all their spellings; refuses unknown keys."""
