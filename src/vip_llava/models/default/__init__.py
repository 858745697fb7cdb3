"""The small model that ships with the package: its parts, their download, and their assembly."""
