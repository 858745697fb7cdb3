"""Models: checkpoint layouts and conversion, vision towers, adapters, quantization, placement."""
