"""Training data: rows of data files, and the samples and batches made of them."""
