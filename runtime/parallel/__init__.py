"""Transport between the ranks of a job: arrays, messages, start, end and faults."""
