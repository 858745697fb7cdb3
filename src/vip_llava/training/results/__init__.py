"""What a run writes at its end: exported folders, a model card, a loss curve."""
