"""Patterns of operators, rules that replace what they match, and phases that run and verify them."""
