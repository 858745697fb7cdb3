"""What a run leaves: exported folders, a model card, a loss curve."""
