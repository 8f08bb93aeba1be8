"""The pattern language, rules that replace what they match, and phases that run passes and verify the graph."""
