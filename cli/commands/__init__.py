"""Each file declares its flags and prints its results; `launches.py` is `llmc inspect --launches`."""
