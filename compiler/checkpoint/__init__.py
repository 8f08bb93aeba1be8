"""Opens a folder or hub id, checks headers, index and tokenizer."""
