"""One file per weight format, because each is read, tested and compared alone; `quantize/__init__.py` is the table."""
