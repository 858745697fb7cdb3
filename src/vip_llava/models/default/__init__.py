"""The small model that ships with the package: its parts, how they are fetched and assembled."""
