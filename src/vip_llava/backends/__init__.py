"""What answers a prepared conversation: one file a backend.

`native` runs the LLaVA family on the package's own engine.
"""
