"""Continuous batching, written once for every executor: blocks, requests, the loop's thread."""
