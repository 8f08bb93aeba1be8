"""Layer records become the logical graph."""
