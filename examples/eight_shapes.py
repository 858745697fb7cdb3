"""Draw the eight shapes, each on a copy of one photo, side by side: docs/images/shapes.jpg.

    python examples/eight_shapes.py examples/photos/coffee.jpg shapes.jpg

Needs no model: drawing uses Pillow and numpy only.
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw, ImageFont

from vip_llava import (
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Scribble,
    Triangle,
    draw,
    open_image,
)

# The outline of the spoon in the demo photo, as fractions of the image.
SPOON = [
    (0.660, 0.170), (0.685, 0.163), (0.705, 0.185), (0.690, 0.285), (0.640, 0.560),
    (0.640, 0.590), (0.675, 0.650), (0.680, 0.720), (0.650, 0.790), (0.600, 0.815),
    (0.555, 0.785), (0.545, 0.720), (0.560, 0.650), (0.610, 0.595), (0.650, 0.420),
    (0.665, 0.290),
]  # fmt: skip
OUTLINE = [[part for point in SPOON for part in point]]
SHAPES: list[Region] = [
    Box(0.535, 0.155, 0.715, 0.825, frame="unit", color="lime"),
    Ellipse(0.525, 0.565, 0.7, 0.835, frame="unit", color="yellow"),
    Triangle([(0.7, 0.12), (0.74, 0.86), (0.5, 0.82)], frame="unit", color="aqua"),
    Point(0.612, 0.7, frame="unit", color="red"),
    Scribble(
        [(0.58, 0.66), (0.65, 0.68), (0.57, 0.71), (0.65, 0.73), (0.58, 0.76)],
        frame="unit",
        color="fuchsia",
    ),
    Arrow(tail=(0.85, 0.9), tip=(0.64, 0.74), frame="unit", color="blue"),
    Contour(polygons=OUTLINE, frame="unit", color="orange", width=3),
    Mask(polygons=OUTLINE, frame="unit", color="gold"),
]
COLUMNS, PANEL, TITLE, GAP = 4, (300, 200), 22, 6


def sheet(photo: str) -> Image.Image:
    """The eight drawn photos with their names, four per row."""
    image = open_image(photo)
    rows = -(-len(SHAPES) // COLUMNS)
    width, height = PANEL[0] + GAP, PANEL[1] + TITLE
    page = Image.new("RGB", (COLUMNS * width - GAP, rows * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for number, region in enumerate(SHAPES):
        corner = (number % COLUMNS * width, number // COLUMNS * height)
        page.paste(draw(image, [region]).resize(PANEL, Image.Resampling.LANCZOS), corner)
        pen.text((corner[0] + 4, corner[1] + PANEL[1] + 2), region.shape, "black", font)
    return page


if __name__ == "__main__":
    photo, target = (
        sys.argv[1:] if len(sys.argv) == 3 else ("examples/photos/coffee.jpg", "shapes.jpg")
    )
    sheet(photo).save(target, quality=90, subsampling=0)
    print(f"written: {target}")
