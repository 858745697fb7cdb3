"""From a name to a folder: a local folder as it is, a hub id downloaded at one pinned revision.

Nothing that comes from a hub is ever run: only weights, configurations and tokenizer files are
fetched. It does not know what the files mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vip_llava.errors import CheckpointError, DownloadError

__all__ = ["DEFAULT_NAME", "Progress", "resolve_folder", "wanted_files"]

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`: what is being done in words, and how far it is."""

DEFAULT_NAME = "default"
"""What names the model that comes with this package; no folder and no hub id."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL = (".json", ".model", ".txt")
_BINS = re.compile(
    r"(pytorch_model(-\d+-of-\d+)?|mm_projector|non_lora_trainables|adapter_model)\.bin"
)


def wanted_files(names: list[str]) -> list[str]:
    """The files of a repository that loading needs: top level, safetensors rather than `.bin`."""
    top = [name for name in names if "/" not in name]
    safe = [name for name in top if name.endswith(".safetensors")]
    whole = any(name.startswith("model") for name in safe)
    bins = [
        name
        for name in top
        if _BINS.fullmatch(name) and not (whole and name.startswith("pytorch_model"))
    ]
    small = [name for name in top if name.endswith(_SMALL)]
    return sorted({*safe, *bins, *small})


def resolve_folder(
    name: str | Path, *, revision: str | None = None, progress: Progress | None = None
) -> Path:
    """The local folder that `name` stands for.

    Args:
        name: a folder, or a hub id such as "llava-hf/vip-llava-7b-hf".
        revision: branch, tag or commit of a hub id; all files come from the one commit it is now.
        progress: told before a download starts and after it ended.

    Raises:
        CheckpointError: neither a folder nor a hub id, or a revision of a folder.
        DownloadError: the hub can't be reached or has no such repository.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r}: {name} is a folder; only a hub id has revisions"
            )
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; expected the folder that holds it")
    if not _HUB_ID.fullmatch(str(name)) or ".." in str(name):
        raise CheckpointError(
            f"no such folder: {name}; expected a model folder or a hub id like owner/model"
        )
    return _download(str(name), revision, progress or (lambda stage, done, total: None))


def _download(name: str, revision: str | None, progress: Progress) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # The root of what the hub's client raises without a network; which client, its version decides.
    unreachable: tuple[type[Exception], ...] = (
        *HfHubHTTPError.__bases__,
        OfflineModeIsEnabled,
        LocalEntryNotFoundError,
        OSError,
        ValueError,
    )
    try:
        info = HfApi().model_info(name, revision=revision)
        files = wanted_files([sibling.rfilename for sibling in info.siblings or []])
        progress(f"downloading {name} ({len(files)} files)", 0, 1)
        # The commit, not the branch: a push between two files can't mix two versions.
        place = Path(snapshot_download(name, revision=info.sha, allow_patterns=files))
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise DownloadError(
                f"the hub has no model {name!r} (revision {revision or 'main'}) that you may read; "
                "check the spelling, or log in if it is private"
            ) from error
        place = _cached(name, revision, error)
    except unreachable as error:
        place = _cached(name, revision, error)
    progress(f"downloading {name}", 1, 1)
    return place


def _cached(name: str, revision: str | None, error: Exception) -> Path:
    """What an earlier download left, when the hub can't be reached now.

    Downloads are kept by commit, so without a wanted revision the newest one counts.
    """
    from huggingface_hub import constants

    kept = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    commits = sorted(kept.glob(revision or "*"), key=lambda path: path.stat().st_mtime)
    if not commits:
        raise DownloadError(
            f"{name!r} is no folder here, and the hub can't be reached ({type(error).__name__}); "
            "connect, or give the path of a downloaded folder"
        ) from error
    return commits[-1]
