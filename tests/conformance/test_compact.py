"""The compact part of the comparison with the original, which needs no recorded results.

The references here are written in the plainest way from what the original is known to do: CLIP's own
image processor on an image that was padded by hand, a transparent layer as large as the image for
every drawing, prompts in full. The recorded results say the same with far more cases.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessorPil

from vip_llava.prompting.geometry import ImageGeometry
from vip_llava.prompting.templates import get_template
from vip_llava.prompting.turns import MarkedImage, Turn
from vip_llava.regions import Box, Contour, Ellipse, Mask, Region, draw

BLANK = (MarkedImage(Image.new("RGB", (1, 1))),)
pytestmark = pytest.mark.conformance

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(64, 48), (48, 64), (50, 50), (400, 90), (31, 337)]
PENTAGON = [40.0, 20.0, 90.0, 35.0, 80.0, 70.0, 45.0, 80.0, 20.0, 50.0]


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(image: Image.Image) -> npt.NDArray[np.float32]:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_mean=list(MEAN),
        image_std=list(STD), resample=3,
    )  # fmt: skip
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def padded(image: Image.Image) -> Image.Image:
    """In the middle of a square of CLIP's mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * part) for part in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "prepare"), [("pad", padded), ("crop", lambda it: it)])
def test_pixels_are_those_of_clips_own_processor(
    mode: str, prepare: Callable[[Image.Image], Image.Image], size: tuple[int, int]
) -> None:
    image = noise(size)
    geometry = ImageGeometry(mode=mode, size=56, mean=MEAN, std=STD)  # type: ignore[arg-type]
    np.testing.assert_allclose(geometry.pixels(image), clip(prepare(image)), atol=2e-6, rtol=0)


def overlay(image: Image.Image, paint: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    paint(ImageDraw.Draw(layer))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def outlines(pen: ImageDraw.ImageDraw, ink: tuple[int, ...], reach: int) -> None:
    """An outline as the original thickens it: drawn again at every shift up to the width."""
    for dx, dy in itertools.product(range(-reach, reach + 1), repeat=2):
        shifted = [number + (dx, dy)[place % 2] for place, number in enumerate(PENTAGON)]
        pen.polygon(shifted, outline=ink)


@pytest.mark.parametrize("alpha", [96, 180, 255])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    ("region", "paint"),
    [
        (Box(20, 15, 90, 70), lambda pen, ink, w: pen.rectangle((20, 15, 90, 70), None, ink, w)),
        (Ellipse(20, 15, 90, 70), lambda pen, ink, w: pen.ellipse((20, 15, 90, 70), None, ink, w)),
        (Contour([PENTAGON]), outlines),
        (Mask([PENTAGON]), lambda pen, ink, w: pen.polygon(PENTAGON, fill=ink)),
    ],
    ids=["rectangle", "ellipse", "contour", "mask"],
)
def test_drawings_are_those_of_a_layer_over_the_image(
    region: Region,
    paint: Callable[[ImageDraw.ImageDraw, tuple[int, ...], int], None],
    width: int,
    alpha: int,
) -> None:
    image = noise((120, 96))
    looks = {"color": (255, 165, 0), "alpha": alpha}
    ours = draw(image, [region.changed(width=width, **looks)])
    theirs = overlay(image, lambda pen: paint(pen, (255, 165, 0, alpha), width))
    apart = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
    assert apart.max() <= 1  # two ways to round the same mixture


HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)
START, END = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("llava_v1", f"{HUMAN} USER: <image>\nWhat is it? ASSISTANT: A dog.</s>USER: Why? ASSISTANT:"),
        ("v0", f"{HUMAN}###Human: <image>\nWhat is it?###Assistant: A dog.###Human: Why?###Assistant:"),
        (
            "llava_llama_3",
            f"<|begin_of_text|>{START.format('system')}{VISION}{END}{START.format('user')}<image>\nWhat is it?"
            f"{END}{START.format('assistant')}A dog.{END}{START.format('user')}Why?{END}"
            f"{START.format('assistant')}",
        ),
        (
            "llava_phi_3",
            f"<|system|>\n{VISION}<|end|>\n<|user|>\n<image>\nWhat is it?<|end|>\n<|assistant|>\nA dog."
            "<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\n",
        ),
        (
            "mpt",
            "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant "
            "gives helpful and honest answers.<|im_end|><|im_start|>user\n<image>\nWhat is it?<|im_end|>"
            "<|im_start|>assistant\nA dog.<|im_end|><|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\n",
        ),
    ],
)  # fmt: skip
def test_prompts_in_full(name: str, prompt: str) -> None:
    turns = (
        Turn("user", "What is it?", BLANK),
        Turn("assistant", "A dog."),
        Turn("user", "Why?"),
        Turn("assistant", None),
    )
    assert get_template(name).prompt(turns) == prompt
