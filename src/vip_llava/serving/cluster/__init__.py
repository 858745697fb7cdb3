"""Several models and machines: workers that join a controller, and the same workers on Ray."""
