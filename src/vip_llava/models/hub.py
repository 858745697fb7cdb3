"""Resolves a name to a folder: a local folder, or a hub id downloaded at one commit.

Only weights, configurations and tokenizer files are downloaded, no code. This module does not
know what the files mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from vip_llava.errors import CheckpointError, DownloadError

__all__ = ["DEFAULT_NAME", "Progress", "files_to_download", "resolve_folder"]

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`: a description of the work, and how much of it is done."""

DEFAULT_NAME = "default"
"""Name of the model that comes with this package."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = (".json", ".model", ".txt")
_BIN_NAMES = re.compile(
    r"(pytorch_model(-\d+-of-\d+)?|mm_projector|non_lora_trainables|adapter_model)\.bin"
)


def files_to_download(names: list[str]) -> list[str]:
    """The files that loading needs: on the top level, safetensors rather than `.bin`."""
    top = [name for name in names if "/" not in name]
    safe = [name for name in top if name.endswith(".safetensors")]
    whole = any(name.startswith("model") for name in safe)
    bins = [
        name
        for name in top
        if _BIN_NAMES.fullmatch(name) and not (whole and name.startswith("pytorch_model"))
    ]
    settings = [name for name in top if name.endswith(_SETTINGS)]
    return sorted({*safe, *bins, *settings})


def resolve_folder(
    name: str | Path, *, revision: str | None = None, progress: Progress | None = None
) -> Path:
    """The local folder of a model.

    Args:
        name: a folder, or a hub id such as "llava-hf/vip-llava-7b-hf".
        revision: branch, tag or commit of a hub id; all files come from that one commit.
        progress: called before and after a download.

    Raises:
        CheckpointError: neither a folder nor a hub id, or a revision of a folder.
        DownloadError: the hub cannot be reached or has no such repository.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r}: {name} is a folder; only a hub id has revisions"
            )
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; expected the folder that contains it")
    if not _HUB_ID.fullmatch(str(name)) or ".." in str(name):
        raise CheckpointError(
            f"no such folder: {name}; expected a model folder or a hub id like owner/model"
        )
    return _download(str(name), revision, progress or (lambda stage, done, total: None))


def _download(name: str, revision: str | None, progress: Progress) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    # The bases are the HTTP client's own errors; which client it is depends on the version.
    unreachable: tuple[type[Exception], ...] = (
        *HfHubHTTPError.__bases__,
        OfflineModeIsEnabled,
        LocalEntryNotFoundError,
        OSError,
        ValueError,
    )
    try:
        info = HfApi().model_info(name, revision=revision)
        files = files_to_download([sibling.rfilename for sibling in info.siblings or []])
        progress(f"downloading {name} ({len(files)} files)", 0, 1)
        # The commit, not the branch, so that a push during the download mixes no versions.
        folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=files))
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403, 404):
            raise DownloadError(
                f"the hub has no model {name!r} (revision {revision or 'main'}) that you may read; "
                "check the name, or log in if it is private"
            ) from error
        folder = _cached(name, revision, error)
    except unreachable as error:
        folder = _cached(name, revision, error)
    progress(f"downloading {name}", 1, 1)
    return folder


def _cached(name: str, revision: str | None, error: Exception) -> Path:
    """The folder of an earlier download, when the hub cannot be reached.

    Downloads are stored by commit; without a revision it is the newest one.

    Raises:
        DownloadError: there is none.
    """
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    commits = sorted(snapshots.glob(revision or "*"), key=lambda path: path.stat().st_mtime)
    if not commits:
        raise DownloadError(
            f"{name!r} is not a local folder, and the hub cannot be reached "
            f"({type(error).__name__}); connect, or give the path of a downloaded folder"
        ) from error
    return commits[-1]
