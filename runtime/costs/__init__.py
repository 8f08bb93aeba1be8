"""What a step costs on this CPU: the nodes of a cpu profile, measured facts, and the price of both together."""
