"""From a request to what a model reads: turns, drawn images, chat templates, token ids, pixels.

It knows regions and images, and neither weights nor generation.
"""
