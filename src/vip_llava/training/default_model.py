"""Train the default model: `python -m vip_llava.training.default_model RECIPE --data DIR --out DIR`.

Reads the photos, starts from the published language model and the published tower, and writes the
trained parts. The validation photos (`data.photos.is_validation`) are left out.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vip_llava.data.mix import MixSettings, RegionMix
from vip_llava.data.photos import is_validation, read_labelled_photos, read_pack, read_regions
from vip_llava.model.default import FOCAL, default_processor, new_default
from vip_llava.model.efficientnet import from_published
from vip_llava.model.smollm import ensure_language_model
from vip_llava.training.regions import RegionTrainer
from vip_llava.training.settings import RunSettings, read_recipe


def build(
    settings: RunSettings,
    data: Path,
    tower: Path,
    device: str,
    *,
    compiled: bool,
    most: int | None,
    start: Path | None = None,
) -> RegionTrainer:
    """The trainer with its data; `tower` is a safetensors file of the published tower."""
    torch.manual_seed(settings.seed)
    language_model = ensure_language_model()
    model: Any = new_default(language_model)
    published = from_published(load_file(tower))
    model.model.vision_tower.load_state_dict(
        {k: v.float() for k, v in published.items()}, strict=False
    )
    for part in (
        model.model.multi_modal_projector.linear_1,
        model.model.multi_modal_projector.linear_2,
    ):
        part.reset_parameters()
    model.model.multi_modal_projector.projector_layernorm.reset_parameters()
    photos = [p for p in read_regions(data) if not is_validation(p.id)][:most]
    singles = [
        *read_pack(data / "photos" / "photos.npz"),
        *read_pack(data / "tiny-imagenet" / "tiny-imagenet.npz"),
        *read_labelled_photos(data / "imagenet-samples"),
    ][:most]
    scaled = MixSettings(mosaic_share=settings.mosaic_share, single_share=settings.single_share)
    rows = {k: max(round(v * settings.rows_scale), 1) for k, v in scaled.rows.items()}
    scaled = MixSettings(
        rows=rows, mosaic_share=settings.mosaic_share, single_share=settings.single_share
    )
    mix = RegionMix(
        photos, singles, default_processor(language_model), FOCAL, scaled, settings.seed
    )
    mix.decode_all()
    return RegionTrainer(model, mix, settings, device, compiled=compiled, start=start)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path, help="YAML file, see recipes/")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with regions.jsonl and packs"
    )
    parser.add_argument("--tower", type=Path, required=True, help="published tower, safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained parts")
    parser.add_argument("--start", type=Path, help="go on from these trained parts")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after so many seconds"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--most", type=int, help="use only so many photos of each kind")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="override the recipe"
    )
    given = parser.parse_args()
    changes = dict(pair.split("=", 1) for pair in given.set)
    settings = read_recipe(given.recipe, changes)
    print(json.dumps(settings.model_dump()), flush=True)
    torch.set_float32_matmul_precision("high")
    trainer = build(
        settings,
        given.data,
        given.tower,
        given.device,
        compiled=given.device.startswith("cuda"),
        most=given.most,
        start=given.start,
    )
    trainer.run(given.out, seconds=given.seconds)


if __name__ == "__main__":
    main()
