"""From logits to the next token without the host: penalties, biases, log-probabilities, draws."""
