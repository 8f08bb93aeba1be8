"""What guards llmc and its callers: calls of the API, lacks of the machine, limits of processes."""
