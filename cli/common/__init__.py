"""Streams, flags, progress bars, missing extras, exit codes, huge pages."""
