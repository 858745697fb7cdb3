"""A run as a file: its schema, how files build on one another, what it would do, what it starts from."""
