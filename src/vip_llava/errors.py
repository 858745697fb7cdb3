"""The one tree of errors that a user of vip-llava can meet.

Every mistake of a user (a bad region, an unreadable image, a folder that is no checkpoint)
raises a subclass of `VipLlavaError` whose message says what was wrong, where, and what would be
right. Mistakes of a programmer are asserts or ordinary `TypeError`s and do not belong here.

This module imports nothing, so that every other part may use it.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DataError",
    "DownloadError",
    "ImageError",
    "MissingExtraError",
    "PhraseError",
    "QuantizationError",
    "RegionError",
    "RequestError",
    "ServingError",
    "TemplateError",
    "VipLlavaError",
]


class VipLlavaError(Exception):
    """Root of all errors that vip-llava raises for a user's mistake or a missing part."""


class RegionError(VipLlavaError, ValueError):
    """A region whose geometry, colour, frame or JSON breaks a rule; names the region and the rule."""


class PhraseError(VipLlavaError, ValueError):
    """A `<region:ID>` in a text that names no given region, or a region that can't be worded."""


class ImageError(VipLlavaError, ValueError):
    """An image that can't be opened safely: format, size, truncation, animation, mode."""


class TemplateError(VipLlavaError, ValueError):
    """A conversation that a chat template can't hold, or an unknown template name."""


class RequestError(VipLlavaError, ValueError):
    """An ask that can't be answered: sampling parameters out of range, prompt too long, no question."""


class ServingError(VipLlavaError, RuntimeError):
    """A server that can't start as asked, a peer that is refused, or a request that can't be taken now."""


class CheckpointError(VipLlavaError, ValueError):
    """A model folder or name that can't be loaded; says which file or key is missing or unexpected."""


class QuantizationError(CheckpointError):
    """A quantization that this model, device or environment can't do."""


class DownloadError(VipLlavaError, OSError):
    """A part of the default model that could not be fetched or whose checksum is wrong."""


class MissingExtraError(VipLlavaError, ImportError):
    """An optional library is missing; says which extra of the package brings it."""


class DataError(VipLlavaError, ValueError):
    """A data row or data file that can't be used; names file, row id and reason."""
