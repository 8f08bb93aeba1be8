"""The parts of `make torture`: kills, crowds of requests, damaged input and strange surroundings."""
