"""Checkpoints: atomic folders, named tensors, generator states; saving and exact resuming."""
