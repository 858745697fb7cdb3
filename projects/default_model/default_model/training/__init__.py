"""Trains the default model on scenes that are made during training."""
