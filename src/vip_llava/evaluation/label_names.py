"""One name for each object class: the synonyms that data sets use for it, merged.

Data sets name one class in several ways ("sofa", "couch"), so that a comparison of words needs a
canonical one. It is the name in COCO, where COCO has the class. It does not know benchmarks.
"""

from __future__ import annotations

__all__ = ["canonical"]

#: Canonical name -> its synonyms.
_SYNONYMS = {
    "airplane": "aeroplane, airliner, warplane",
    "apple": "granny smith",
    "bear": "brown bear",
    "bed": "four-poster",
    "bench": "park bench",
    "bicycle": "bicycle-built-for-two, bike, mountain bike",
    "bird": "emu, flamingo, ibis, pigeon, rooster",
    "boat": (
        "canoe, catamaran, container ship, ferry, fireboat, gondola, lifeboat, sailboat, "
        "schooner, speedboat, trimaran, yawl"
    ),
    "book": "comic book",
    "bottle": "beer bottle, pill bottle, pop bottle, wine bottle",
    "bowl": "mixing bowl, soup bowl",
    "bus": "double-decker bus, minibus, school bus, trolleybus",
    "camel": "arabian camel",
    "car": (
        "beach wagon, cab, cars, convertible, jeep, limousine, model t, race car, sports "
        "car, station wagon, taxi"
    ),
    "cat": "wild cat",
    "cell phone": "cellphone, cellular telephone, mobile phone",
    "chair": "armchair, barber chair, folding chair, rocking chair",
    "clock": "alarm clock, analog clock, digital clock, wall clock",
    "computer mouse": "mouse",
    "couch": "sofa, studio couch",
    "cow": "ox",
    "cup": "coffee mug, espresso, mug",
    "dining table": "diningtable",
    "dog": "dalmatian",
    "donut": "doughnut",
    "elephant": "african elephant",
    "hair drier": "hair dryer, hand blower",
    "handbag": "bag, purse",
    "hot dog": "hotdog",
    "jug": "water jug",
    "keyboard": "computer keyboard",
    "knife": "cleaver",
    "motorcycle": "moped, motor scooter, motorbike, motorbikes",
    "person": "pedestrian",
    "potted plant": "pottedplant",
    "refrigerator": "refrigerator door",
    "remote control": "remote",
    "sink": "washbasin",
    "skis": "ski",
    "spoon": "wooden spoon",
    "sports ball": (
        "baseball, basketball, croquet ball, golf ball, ping-pong ball, rugby ball, soccer "
        "ball, tennis ball, volleyball"
    ),
    "teddy bear": "teddy",
    "tennis racket": "racket",
    "tie": "bolo tie, bow tie, necktie, windsor tie",
    "train": "bullet train, electric locomotive, freight car, steam locomotive, streetcar, tram",
    "truck": (
        "fire engine, fire truck, garbage truck, moving van, pickup truck, tow truck, trailer truck"
    ),
    "tv": "television, tv monitor, tvmonitor",
    "waste bin": "trash can",
    "wine glass": "goblet",
}
_CANONICAL = {each: name for name, listed in _SYNONYMS.items() for each in listed.split(", ")}


def canonical(label: str) -> str:
    """The canonical name for a label of any data set: lower case, synonyms merged."""
    plain = label.strip().lower()
    return _CANONICAL.get(plain, plain)
