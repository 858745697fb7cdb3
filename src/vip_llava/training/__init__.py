"""Training on rows: recipes, data module, trainer, checkpoints that resume exactly, exports."""
