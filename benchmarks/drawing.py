"""How long drawing takes: one prompt of each shape on a 640 x 480 picture, on one core.

Each time is a whole `draw` call - resolving the region, copying the picture, drawing - with a mark of
about 150 x 150 pixels, half transparent (the training's way) and opaque (the default when asking).
Compared with the published 3.6 ms (ellipse) to 14 ms (scribble) of the original on such a picture;
only those two were published, the other shapes are compared with the faster of them.

    python benchmarks/drawing.py [--repeats 400] [--write NAME_OF_HARDWARE]
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from vip_llava.regions import (
    Arrow,
    Box,
    Contour,
    Ellipse,
    Mask,
    Point,
    Region,
    Rle,
    Scribble,
    Triangle,
    draw,
)

RESULTS = Path(__file__).parent / "results"
SIZE = (640, 480)
PUBLISHED_MS = {"ellipse": 3.6, "scribble": 14.0}
LEAST_MS = 3.6


def marks() -> dict[str, Region]:
    """One mark of about 150 x 150 pixels per shape; contour and mask also from a run-length mask."""
    curve = []
    for step in range(33):
        t = step / 32
        a, b, c, d = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t * t, t**3
        curve.append((220 * a + 360 * b + 230 * c + 370 * d, 165 * a + 180 * b + 350 * c + 230 * d))
    outline = []
    for step in range(40):
        angle = 2 * math.pi * step / 40
        radius = 75 * (0.93 + 0.07 * math.sin(5 * angle))
        outline += [295 + radius * math.cos(angle), 235 + radius * math.sin(angle)]
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    disc = Rle.from_mask((columns - 295) ** 2 + (rows - 235) ** 2 < 75**2)
    return {
        "box": Box(220, 160, 370, 310),
        "ellipse": Ellipse(220, 160, 370, 310),
        "triangle": Triangle([(220, 310), (370, 300), (290, 160)]),
        "point": Point(295, 235),
        "scribble": Scribble(curve),
        "arrow": Arrow(tail=(190, 130), tip=(295, 235)),
        "contour": Contour([outline]),
        "mask": Mask([outline]),
        "contour (rle)": Contour(rle=disc),
        "mask (rle)": Mask(rle=disc),
        "box, whole picture": Box(5, 5, 635, 475),
        "ellipse, whole picture": Ellipse(5, 5, 635, 475),
    }


def milliseconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 10 % quantile of a call's time on the processor, so that other work there counts less."""
    for _ in range(10):
        call()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append((time.thread_time() - start) * 1000)
    return statistics.median(times), statistics.quantiles(times, n=10)[0]


def table(repeats: int) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    lines = [
        "| shape | alpha 177: median | 10 % | opaque: median | 10 % | original | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    copying = milliseconds(picture.copy, repeats)
    lines.append(f"| (copying the picture) | | | {copying[0]:.3f} | {copying[1]:.3f} | | |")
    for name, mark in marks().items():
        mixed = mark.changed(alpha=177, color="red")
        opaque = mark.changed(alpha=255, color="red")
        a = milliseconds(lambda region=mixed: draw(picture, [region]), repeats)  # type: ignore[misc]
        b = milliseconds(lambda region=opaque: draw(picture, [region]), repeats)  # type: ignore[misc]
        published = PUBLISHED_MS.get(name)
        shown = f"{published}" if published else f">= {LEAST_MS}"
        ratio = (published or LEAST_MS) / a[0]
        lines.append(
            f"| {name} | {a[0]:.3f} | {a[1]:.3f} | {b[0]:.3f} | {b[1]:.3f} | {shown} | {ratio:.0f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time drawing on a 640 x 480 picture.")
    parser.add_argument("--repeats", type=int, default=400, help="calls a shape (default 400)")
    parser.add_argument(
        "--write",
        metavar="HARDWARE",
        help="also file the table as results/drawing_HARDWARE_DATE.md",
    )
    options = parser.parse_args()
    report = table(options.repeats)
    print(report)
    if options.write:
        today = datetime.date.today().isoformat()
        file = RESULTS / f"drawing_{options.write}_{today}.md"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"# Drawing one prompt on a 640 x 480 picture\n\nMilliseconds of processor time for a whole `draw` call, one core of "
            f"{processor()}; median and 10 % quantile of {options.repeats} calls. Python "
            f"{platform.python_version()}, Pillow {PIL.__version__} (libjpeg-turbo "
            f"{features.check_feature('libjpeg_turbo')}), numpy {np.__version__}.\n\n"
            f"The original's times are the published ones for such a picture on one core: 3.6 ms (ellipse) to 14 ms "
            f"(scribble). Command: `python benchmarks/drawing.py --write {options.write}`.\n\n{report}\n"
        )
        print(f"written to {file}")


if __name__ == "__main__":
    main()
