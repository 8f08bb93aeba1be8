"""Streams weights, sections and the manifest; a crash at any moment leaves the old file or a complete new one."""
