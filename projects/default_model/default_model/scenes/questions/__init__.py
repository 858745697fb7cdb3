"""The questions about scenes, a file for each topic.

A task is a function of a scene and a generator that returns a question and its answer, or None if
the scene does not allow it. Questions name regions as `<region:ID>`.
"""
