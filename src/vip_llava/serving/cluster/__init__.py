"""Several models and machines: workers that register at a controller, or the same workers on Ray."""
