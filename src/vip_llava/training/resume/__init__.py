"""Stopping and going on: whole checkpoints, states that come back bit for bit, the order of rows."""
