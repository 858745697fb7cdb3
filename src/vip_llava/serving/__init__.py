"""Answering over a network: an API with regions, workers and a controller, a page to draw on.

The package knows HTTP, people and machines that are not trusted, and limits. What an answer is and
how it is made it leaves to the parts below. It needs the extra `serve`; nothing of it is imported
by `import vip_llava`.
"""

from __future__ import annotations
