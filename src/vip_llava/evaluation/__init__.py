"""Benchmarks of visual prompting, their runs, and reports of the scores."""
