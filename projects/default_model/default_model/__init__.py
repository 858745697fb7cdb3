"""How the default model is trained and validated; see the README beside this package."""
