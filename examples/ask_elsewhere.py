"""Ask any OpenAI-compatible server about a region: draw, word and pad here, send an ordinary image.

    python examples/ask_elsewhere.py http://127.0.0.1:8000/v1 MODEL PHOTO "What is <region:1>?" X1,Y1,X2,Y2

The server need not know regions. The image is padded to a square here, as in the training of the
published models, so that a server that crops the centre of an image cuts nothing off.
"""

from __future__ import annotations

import base64
import io
import os
import sys

import httpx

from vip_llava import Box, draw, open_image
from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.regions import expand, resolve

SIDE = 336  # input side of the published models, in pixels


def ask(base_url: str, model: str, photo: str, question: str, box: str, side: int = SIDE) -> str:
    """The answer to a question about a box (X1,Y1,X2,Y2 in pixels of the photo)."""
    image = open_image(photo)
    regions = resolve([Box(*map(float, box.split(",")))], image.size).regions
    square = ImageGeometry(mode="pad", size=side).fit(draw(image, regions))
    file = io.BytesIO()
    square.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": expand(question, regions)},
    ]
    answer = httpx.post(
        f"{base_url}/chat/completions",
        headers={"authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"},
        json={
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 128,
            "temperature": 0,
        },
        timeout=300,
    )
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


if __name__ == "__main__":
    sys.stdout.write(ask(*sys.argv[1:6]) + "\n")
