"""Checks the header of a `.llmc` file before it maps the file; evaluates weight expressions."""
