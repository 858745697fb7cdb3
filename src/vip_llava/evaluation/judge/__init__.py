"""Grades the open answers of ViP-Bench with a judge over HTTP."""
