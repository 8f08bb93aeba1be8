"""Opens a folder or a hub id; checks headers, index and tokenizer."""
