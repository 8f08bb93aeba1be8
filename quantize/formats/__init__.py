"""One file per weight format, because each is read, tested and compared on its own; the table is in the parent."""
