"""The table of what llmc computes, by family, and the page of the documentation made of it."""
