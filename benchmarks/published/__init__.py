"""What others have published of LLM engines, and what the planner predicts of the same deployments."""
