"""`vip-llava models`: lists the default model and published models, or describes model folders.

It reads names, sizes and config files. It opens no weights, imports no torch and uses no network.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.model_options import DebugFlag
from vip_llava.errors import CheckpointError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["EPILOG", "PUBLISHED", "ModelRow", "describe_folder", "models"]

EPILOG = """Examples

  vip-llava models

  vip-llava models ./checkpoints/vip-llava-7b --json

  vip-llava ask photo.jpg "What is this?" --model llava-hf/vip-llava-7b-hf
"""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of the table; `megabytes` is the size on disk, or of the default's download."""

    name: str
    layout: str
    backbone: str
    state: str
    megabytes: int | None = None


PUBLISHED = (
    ("llava-hf/vip-llava-7b-hf", "Hugging Face", "Vicuna v1.5 7B"),
    ("llava-hf/vip-llava-13b-hf", "Hugging Face", "Vicuna v1.5 13B"),
    ("mucai/vip-llava-7b", "original", "Vicuna v1.5 7B"),
    ("mucai/vip-llava-13b", "original", "Vicuna v1.5 13B"),
    ("mucai/vip-llava-llama-3-8b", "original", "Llama-3 8B"),
    ("mucai/vip-llava-phi-3-mini-3.8B", "original", "Phi-3-mini 3.8B"),
    ("llava-hf/llava-1.5-7b-hf", "Hugging Face", "Vicuna v1.5 7B (plain LLaVA)"),
    ("llava-hf/llava-1.5-13b-hf", "Hugging Face", "Vicuna v1.5 13B (plain LLaVA)"),
)
"""Published checkpoints: hub id, layout, language model."""


def models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Model folders to describe."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    debug: DebugFlag = False,
) -> None:
    """List models that can be loaded, or describe model folders.

    --model takes any name in the list, any other hub id of these layouts, and any folder. This
    command downloads nothing.
    """
    if folders:
        rows = [describe_folder(folder) for folder in folders]
    else:
        rows = [_default_row(), *(_published_row(*known) for known in PUBLISHED)]
    if as_json:
        content = [dataclasses.asdict(row) for row in rows]
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    from rich.console import Console

    Console().print(_table(rows))


def _table(rows: list[ModelRow]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Model", no_wrap=True)
    for title in ("Layout", "Language model", "State"):
        table.add_column(title, overflow="fold")
    table.add_column("MB", justify="right")
    for row in rows:
        size = "" if row.megabytes is None else f"{row.megabytes:,}"
        cells = (row.name, row.layout, row.backbone, row.state, size)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _default_row() -> ModelRow:
    from vip_llava.models.default.fetch import cache_folder
    from vip_llava.models.default.language_model import FOLDER_NAME, WHEEL

    folder = cache_folder() / FOLDER_NAME
    ready = (folder / "complete.json").is_file()
    state = f"ready in {folder}" if ready else "downloaded on first use"
    size = _folder_bytes(folder) if ready else WHEEL.size
    return ModelRow("default", "embedded", "SmolLM2 135M", state, round(size / 1e6))


def _published_row(name: str, layout: str, backbone: str) -> ModelRow:
    folder = _hub_cache() / f"models--{name.replace('/', '--')}"
    if not any(folder.glob("snapshots/*/config.json")):
        return ModelRow(name, layout, backbone, "not downloaded")
    size = round(_folder_bytes(folder / "blobs") / 1e6)
    return ModelRow(name, layout, backbone, "in the hub cache", size)


def _hub_cache() -> Path:
    """The hub client's cache folder, from its variables, because importing the client is slow."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    return Path(home).expanduser() / "hub"


def describe_folder(folder: Path) -> ModelRow:
    """Describe a model folder by its config and file names.

    Raises:
        CheckpointError: not a folder, or without any known file of a model.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    config = _config(folder)
    layout = _layout(folder, config)
    if layout is None:
        raise CheckpointError(
            f"{folder} is not a model folder: it has neither config.json, adapter_config.json nor "
            "mm_projector.bin"
        )
    text = config.get("text_config") or config
    backbone = " ".join(
        str(item)
        for item in (
            text.get("model_type", config.get("model_type", "")),
            f"{text['num_hidden_layers']} layers" if "num_hidden_layers" in text else "",
            f"width {text['hidden_size']}" if "hidden_size" in text else "",
        )
        if item
    )
    return ModelRow(str(folder), layout, backbone, "folder", round(_folder_bytes(folder) / 1e6))


def _layout(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / "adapter_config.json").is_file():
        return "LoRA (needs --base)"
    weights = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if any(folder.glob("mm_projector.*")) and not weights:
        return "projector (needs --base)"
    if not config:
        return None
    model_type = str(config.get("model_type", ""))
    if model_type in ("vipllava", "llava"):
        return "Hugging Face" if "text_config" in config else "original"
    if any(key.startswith("mm_") for key in config):
        return "original"
    return f"other ({model_type or 'unknown'})"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return found


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
