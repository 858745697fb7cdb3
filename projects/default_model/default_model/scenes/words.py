"""The COCO class names, articles and plurals, and common nouns for ImageNet classes."""

from __future__ import annotations

from vip_llava.evaluation.label_names import canonical

COCO80 = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "computer mouse",
    "remote control",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)

# ImageNet classes with one common noun, and those whose name means something else in other data
# sets: ranges of WordNet ids, both ends included.
_FINE_CLASSES = (
    ("n01440764", "n01443537", "fish"),
    ("n01484850", "n01494475", "shark"),
    ("n01496331", "n01498041", "ray"),
    ("n01514668", "n01622779", "bird"),
    ("n01629819", "n01632777", "salamander"),
    ("n01641577", "n01644900", "frog"),
    ("n01664065", "n01669191", "turtle"),
    ("n01675722", "n01695060", "lizard"),
    ("n01697457", "n01698640", "crocodile"),
    ("n01728572", "n01756291", "snake"),
    ("n01773157", "n01776313", "spider"),
    ("n01795545", "n01860187", "bird"),
    ("n01871265", "n01871265", "elephant"),  # "tusker"
    ("n02002556", "n02058221", "bird"),
    ("n02085620", "n02113978", "dog"),
    ("n02123045", "n02124075", "cat"),
    ("n02132136", "n02134418", "bear"),
    ("n02165105", "n02177972", "beetle"),
    ("n02276258", "n02281787", "butterfly"),
    ("n02389026", "n02389026", "horse"),  # "sorrel"
    ("n02412080", "n02415577", "sheep"),
    ("n02480495", "n02497673", "monkey"),
    ("n02504013", "n02504458", "elephant"),
    ("n03673027", "n03673027", "boat"),  # "liner"
    ("n03832673", "n03832673", "laptop"),  # "notebook", the computer
    ("n03895866", "n03895866", "train"),  # "passenger car", of a railway
    ("n03930630", "n03930630", "truck"),  # "pickup"
    ("n09835506", "n10565667", "person"),  # "ballplayer", "groom", "scuba diver"
)

_NO_ARTICLE = frozenset(
    [
        "broccoli",
        "skis",
        "scissors",
        "hair",
        "pants",
        "jeans",
        "shorts",
        "shoes",
        "sandals",
        "boots",
        "sunglasses",
        "glasses",
        "stockings",
        "leggings",
        "socks",
        "tights",
        "sneakers",
        "loafers",
        "gloves",
        "high heels",
        "flat shoes",
        "pump shoes",
        "wedge shoes",
        "rice",
        "flour",
        "sugar",
        "pasta",
        "coffee",
        "tea",
        "milk",
        "honey",
        "jam",
        "oil",
        "vinegar",
        "juice",
        "soda",
        "candy",
        "chocolate",
        "cereal",
        "nuts",
        "beans",
        "spices",
        "cake mix",
        "canned corn",
        "canned fish",
        "tomato sauce",
        "bread",
        "cheese",
        "bacon",
        "salt",
        "ketchup",
        "mayonnaise",
        "spaghetti",
        "binoculars",
        "headphones",
        "stairs",
        "water",
        "grass",
        "sky",
    ]
)
# Exceptions by sound: "unicycle" does not begin with a vowel sound, and "hourglass" does.
_A_BEFORE, _AN_BEFORE = ("eu", "uni", "uku"), ("hour",)
_IRREGULAR = {"person": "people", "knife": "knives", "sheep": "sheep", "skis": "skis"}


def plain_noun(wnid: str, label: str) -> str:
    """The common noun for an ImageNet class ("Labrador retriever" -> "dog")."""
    for first, last, noun in _FINE_CLASSES:
        if first <= wnid <= last:
            return noun
    return canonical(label.split(" (")[0])


def with_article(label: str) -> str:
    """ "a dog", "an apple", "skis"."""
    if label in _NO_ARTICLE or (label.endswith("s") and not label.endswith(("ss", "us", "is"))):
        return label
    vowel = label.startswith(tuple("aeiou")) and not label.startswith(_A_BEFORE)
    return f"{'an' if vowel or label.startswith(_AN_BEFORE) else 'a'} {label}"


def plural(label: str) -> str:
    """ "dogs", "people", "benches"."""
    if label in _IRREGULAR:
        return _IRREGULAR[label]
    if label in _NO_ARTICLE:
        return label
    if label.endswith(("s", "sh", "ch", "x", "z")):
        return label + "es"
    if label.endswith("y") and label[-2:-1] not in "aeiou":
        return label[:-1] + "ies"
    return label + "s"
