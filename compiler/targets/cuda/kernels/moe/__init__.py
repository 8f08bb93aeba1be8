"""Routing, sorting by expert, grouped linears, combining."""
