"""The training data of the default model: labelled photos, random marks, questions about them."""
