"""Converters from the published files of public data sets to rows. One file per data set."""

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
from vip_llava.data.converters.base import ConversionReport, Converter, RawFiles, convert

__all__ = ["CONVERTERS", "ConversionReport", "Converter", "RawFiles", "convert"]

#: Name on the command line -> converter. A new data set adds a file and a line here.
CONVERTERS: dict[str, Converter] = {
    source.name: source
    for source in (
        coco.CONVERTER,
        *refcoco.CONVERTERS,
        visual_genome.CONVERTER,
        flickr30k.CONVERTER,
        vcr.CONVERTER,
        visual7w.CONVERTER,
        pointqa.CONVERTER,
    )
}
