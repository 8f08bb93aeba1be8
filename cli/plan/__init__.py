"""`llmc plan`; see README.md."""
