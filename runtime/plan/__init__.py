"""Launch plans, and what is computed from them without a device: formulas, a step's inputs, memory, price, executor."""
