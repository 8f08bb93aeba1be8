"""A plan and all that follows from it without a device: formulas, inputs of a step, memory, price, the executor."""
