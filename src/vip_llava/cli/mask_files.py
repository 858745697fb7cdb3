"""Files named by `--mask` and `--contour`: an image whose bright part is inside, or JSON.

Turns either into the keywords of a Contour or Mask region. A mask image must be as large as the
photo, which is checked from its header, before anything is decoded. Knows no models and draws nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava.cli.parsing import polygons_from
from vip_llava.errors import ImageError, RegionError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["outline_from_file", "outline_from_json", "read_json"]

MASK_FORMATS = ("PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
JSON_BYTES = 64 * 1024 * 1024


def outline_from_file(path: Path, size: tuple[int, int], option: str) -> dict[str, Any]:
    """`{"polygons": ...}` or `{"rle": ...}` from a file; `size` is (width, height) of the photo.

    Raises RegionError or ImageError that name the file and what it should hold.
    """
    where = f"{option} {path}"
    if not path.is_file():
        raise RegionError(
            f"{where}: no such file (coordinates are written x,y,x,y,x,y without letters)"
        )
    if path.suffix.lower() == ".json":
        return outline_from_json(read_json(path, option), where)
    return {"rle": _run_lengths(_inside(path, size, where), where)}


def read_json(path: Path, option: str) -> Any:
    """The content of a JSON file; a RegionError names the file and the line that is wrong."""
    where = f"{option} {path}"
    try:
        if path.stat().st_size > JSON_BYTES:
            raise RegionError(
                f"{where}: larger than {JSON_BYTES // 2**20} MB, so not a regions file"
            )
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RegionError(f"{where}: no such file") from error
    except json.JSONDecodeError as error:
        raise RegionError(f"{where}: not JSON (line {error.lineno}: {error.msg})") from error
    except (RecursionError, UnicodeDecodeError, ValueError, OSError) as error:
        if isinstance(error, RegionError):
            raise
        raise RegionError(f"{where}: can't be read as JSON ({error})") from error


def outline_from_json(found: Any, where: str) -> dict[str, Any]:
    """Keywords of a Contour or Mask from parsed JSON: polygons, COCO RLE or a COCO annotation."""
    if isinstance(found, dict):
        if "counts" in found:
            return {"rle": found}
        for key in ("rle", "polygons", "segmentation"):
            if found.get(key) is not None:
                inner = found[key]
                return {"rle": inner} if isinstance(inner, dict) else _polygons(inner, where)
        raise RegionError(
            f"{where}: expected polygons, COCO RLE with size and counts, or one of the keys "
            "polygons, rle, segmentation"
        )
    return _polygons(found, where)


def _polygons(found: Any, where: str) -> dict[str, Any]:
    return {"polygons": polygons_from(found, where)}


def _inside(path: Path, size: tuple[int, int], where: str) -> np.ndarray[Any, Any]:
    """Bool [height, width]: where the mask image is inside the region."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=MASK_FORMATS) as mask:
            if mask.size != size:
                raise RegionError(
                    f"{where}: the mask is {mask.size[0]}x{mask.size[1]}, the photo {size[0]}x{size[1]}; "
                    "they must be equally large"
                )
            mask.load()
            palette_alpha = mask.mode == "P" and "transparency" in mask.info
            has_alpha = palette_alpha or mask.getbands()[-1] == "A"
            pixels = np.asarray(mask.convert("RGBA") if palette_alpha else mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, RegionError):
            raise
        raise ImageError(
            f"{where}: not a mask image (PNG, non-zero inside) or a .json file: {error}"
        ) from error
    if pixels.ndim == 2:
        return np.asarray(pixels != 0)
    # Cut-out images carry the region in their opacity; an opaque one carries it in its colours.
    if has_alpha and (pixels[..., -1] != pixels[0, 0, -1]).any():
        return np.asarray(pixels[..., -1] != 0)
    colours = pixels[..., :-1] if has_alpha else pixels
    return np.asarray((colours != 0).any(axis=2))


def _run_lengths(inside: np.ndarray[Any, Any], where: str) -> dict[str, Any]:
    """COCO's uncompressed RLE: lengths of alternating runs, columns first, outside first."""
    import numpy as np

    if not inside.any():
        raise RegionError(f"{where}: the mask is empty, no pixel is inside")
    flat = inside.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    borders = np.concatenate(([0], edges, [flat.size]))
    counts = np.diff(borders).tolist()
    return {"size": list(inside.shape), "counts": [0, *counts] if flat[0] else counts}
