"""The benchmark on which the default model is validated."""
