"""The exceptions of vip-llava: one tree rooted in `VipLlavaError`.

Invalid input (a region, an image, a checkpoint folder) raises a subclass whose message says what was
wrong, where, and what would be right. Programming errors raise `AssertionError`, `TypeError` or
`ValueError` instead. This module imports nothing, so that every other module can use it.
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
    """Base class of all errors that invalid input or a missing part causes."""


class RegionError(VipLlavaError, ValueError):
    """A region with invalid geometry, colour, frame or JSON. Names the region and the rule."""


class PhraseError(VipLlavaError, ValueError):
    """A `<region:ID>` that names no given region, or regions without distinct phrases."""


class ImageError(VipLlavaError, ValueError):
    """An image that can't be decoded: unsupported format or mode, too large, damaged or animated."""


class TemplateError(VipLlavaError, ValueError):
    """An unknown chat template, or a conversation that a template can't represent."""


class RequestError(VipLlavaError, ValueError):
    """An invalid request: sampling parameters out of range, a prompt too long, no question."""


class ServingError(VipLlavaError, RuntimeError):
    """A server that can't start with its settings or can't accept a request, or a refused peer."""


class CheckpointError(VipLlavaError, ValueError):
    """A model that can't be loaded. Names the missing or unexpected file or key."""


class QuantizationError(CheckpointError):
    """A quantization that this model, device or environment does not support."""


class DownloadError(VipLlavaError, OSError):
    """A part of the default model that can't be downloaded or has a wrong checksum."""


class MissingExtraError(VipLlavaError, ImportError):
    """An optional library is missing. Names the extra of the package that installs it."""


class DataError(VipLlavaError, ValueError):
    """A data file or row that can't be used. Names the file, the row's id and the reason."""
