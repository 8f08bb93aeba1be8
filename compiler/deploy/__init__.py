"""Plans a deployment for a user: what was asked for, the answer as records, and its picture; see README.md."""
