"""Reads the files of `--mask` and `--contour`: a mask image, or JSON with polygons or RLE.

Both become fields of a Contour or Mask region. A mask image must be as large as the photo, which
is checked before its pixels are decoded. This module does not know models and draws nothing.
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
    from vip_llava.regions import Rle

    inside = _inside(path, size, where)
    if not inside.any():
        raise RegionError(f"{where}: the mask is empty, no pixel is inside")
    return {"rle": Rle.from_mask(inside)}


def read_json(path: Path, option: str) -> Any:
    """The content of a JSON file; a RegionError names the file and the line that is wrong."""
    where = f"{option} {path}"
    try:
        if path.stat().st_size > JSON_BYTES:
            raise RegionError(f"{where}: larger than the {JSON_BYTES // 2**20} MiB that are read")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RegionError(f"{where}: no such file") from error
    except json.JSONDecodeError as error:
        raise RegionError(f"{where}: not JSON (line {error.lineno}: {error.msg})") from error
    except RegionError:
        raise
    except (RecursionError, ValueError, OSError) as error:
        raise RegionError(f"{where}: can't be read as JSON ({error})") from error


def outline_from_json(found: Any, where: str) -> dict[str, Any]:
    """Fields of a Contour or Mask from parsed JSON: polygons, COCO RLE or a COCO annotation."""
    if isinstance(found, dict):
        if "counts" in found:
            return {"rle": found}
        for key in ("rle", "polygons", "segmentation"):
            inner = found.get(key)
            if inner is not None:
                if isinstance(inner, dict):
                    return {"rle": inner}
                return {"polygons": polygons_from(inner, where)}
        raise RegionError(
            f"{where}: expected polygons, COCO RLE with size and counts, or one of the keys "
            "polygons, rle, segmentation"
        )
    return {"polygons": polygons_from(found, where)}


def _inside(path: Path, size: tuple[int, int], where: str) -> np.ndarray[Any, Any]:
    """Bool [height, width]: the pixels of a mask image that are inside the region."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=MASK_FORMATS) as mask:
            if mask.size != size:
                raise RegionError(
                    f"{where}: the mask is {mask.size[0]}x{mask.size[1]}, the photo {size[0]}x"
                    f"{size[1]}; they must have the same size"
                )
            mask.load()
            palette_alpha = mask.mode == "P" and "transparency" in mask.info
            has_alpha = palette_alpha or mask.getbands()[-1] == "A"
            pixels = np.asarray(mask.convert("RGBA") if palette_alpha else mask)
    except RegionError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{where}: not a mask image (PNG, non-zero inside) or a .json file: {error}"
        ) from error
    if pixels.ndim == 2:
        return np.asarray(pixels != 0)
    # A cut-out image has the region in its opacity; an opaque image has it in its colours.
    if has_alpha and (pixels[..., -1] != pixels[0, 0, -1]).any():
        return np.asarray(pixels[..., -1] != 0)
    colors = pixels[..., :-1] if has_alpha else pixels
    return np.asarray((colors != 0).any(axis=2))
