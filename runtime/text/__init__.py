"""Tokenizer, chat templates and streamed text, without transformers."""
