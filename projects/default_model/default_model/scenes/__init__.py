"""The default model's own training data: labelled photos, marked at random, and questions about them."""
