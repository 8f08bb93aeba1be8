"""The functions that lower operators around attention, norms and ranks."""
