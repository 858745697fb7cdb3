"""What to ask about a scene: one small file per kind of question.

Each task is a function of a scene and a generator that returns a question and its answer, or None
where the scene has nothing to ask. Questions name regions as `<region:ID>`.
"""
