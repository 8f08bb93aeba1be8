"""The data plane: arrays between ranks, through shared memory or gloo."""
