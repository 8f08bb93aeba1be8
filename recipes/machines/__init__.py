"""Machines that plans are made for: chips of the one chip table, joined by links, with a source for each figure."""
