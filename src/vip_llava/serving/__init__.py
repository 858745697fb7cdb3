"""HTTP serving: an OpenAI-style API with regions, workers behind a controller, and a web page.

The package does not know how an answer is computed; `assistant` does. It needs the extra `serve`,
and `import vip_llava` imports nothing of it.
"""

from __future__ import annotations
