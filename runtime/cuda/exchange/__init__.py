"""The exchanges of one rank's GPU with those of other ranks."""
