"""What the linears of all kinds share."""
