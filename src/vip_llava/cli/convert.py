"""`vip-llava convert`: write a checkpoint in the other layout (the original's, or Hugging Face's)."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from vip_llava.cli.model_options import DebugFlag, SourceOptions
from vip_llava.cli.terminal import loading, note
from vip_llava.errors import CheckpointError

__all__ = ["EPILOG", "Layout", "convert"]

EPILOG = """Examples

  vip-llava convert ./checkpoints/vip-llava-7b ./vip-llava-7b-hf --to hf

  vip-llava convert ./vip-llava-7b-hf ./vip-llava-7b-original --to original

  vip-llava convert ./projector-folder ./whole --to hf --base ./vicuna-7b-v1.5
"""


class Layout(enum.StrEnum):
    """The layouts of a whole model."""

    HF = "hf"
    ORIGINAL = "original"


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model folder or hub name.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new or empty folder.")],
    to: Annotated[Layout, typer.Option("--to", help="The layout to write.")],
    *,
    parts: SourceOptions,
    debug: DebugFlag = False,
) -> None:
    """Write a checkpoint in the other layout.

    Weights keep their bits and are written as safetensors. A projector folder and a LoRA folder
    need --base, the model that they belong to; a LoRA is merged into it.
    """
    target = target.expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists; give a new or empty folder")
    with loading(f"converting {source}") as progress:
        from vip_llava.models.convert import convert as write

        adapter = Path(source).expanduser()
        if (adapter / "adapter_config.json").is_file():
            if parts.base is None:
                raise CheckpointError(
                    f"{source} contains a LoRA adapter: give the model that it belongs to as --base"
                )
            if parts.revision is not None:
                raise CheckpointError(
                    f"--revision: {source} is a folder; only a hub id has revisions"
                )
            from vip_llava.training.results.export import merge_folder

            tower = parts.vision_tower
            merge_folder(adapter, parts.base, target, layout=to.value, vision_tower=tower)
        else:
            write(source, target, to.value, progress=progress, **parts.keywords())
    note(f"written: {target}")
