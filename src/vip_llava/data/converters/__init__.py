"""Public data sets as they are published -> rows. One small file a data set; see `base`."""

from __future__ import annotations

from vip_llava.data.converters import (
    coco,
    flickr30k,
    pointqa,
    refcoco,
    vcr,
    visual7w,
    visual_genome,
)
from vip_llava.data.converters.base import Account, Raw, Source, convert

__all__ = ["SOURCES", "Account", "Raw", "Source", "convert"]

#: Name on the command line -> source.
SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        coco.SOURCE,
        *refcoco.SOURCES,
        visual_genome.SOURCE,
        flickr30k.SOURCE,
        vcr.SOURCE,
        visual7w.SOURCE,
        pointqa.SOURCE,
    )
}
