"""Recipes: their schema and files, the dry-run plan, and the model that a run starts from."""
