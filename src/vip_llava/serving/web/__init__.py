"""The web page: draw on an image and ask about it. `app.create_page` makes it.

Gradio lays the page out and transports questions and answers; canvas and conversation are the
scripts under `static`. Images use the page's own routes, so that a browser never sends a file path.
The package does not know how answers are made; a `ChatClient` does (`asking`).
"""

from __future__ import annotations
