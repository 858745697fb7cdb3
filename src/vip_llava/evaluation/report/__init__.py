"""HTML pages of finished runs."""
