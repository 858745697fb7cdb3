"""A page to draw on an image and ask about it: `create_page` gives it as one application.

Gradio lays the page out and carries questions and answers; the canvas and the conversation are
scripts of ours under `static`. Images go over routes of our own, so that no path of a file ever
comes from a browser. The package knows people with browsers; what an answer is it leaves to whom it
asks (`asking`).
"""

from __future__ import annotations
