"""Runs a profile that is split over ranks: rank 0 schedules and tells all ranks each step."""
