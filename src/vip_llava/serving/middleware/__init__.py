"""What every server of this project begins with: checks, limits, errors, counts; `shell` puts them together.

Knows no models and no workers.
"""
