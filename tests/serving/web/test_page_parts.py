"""The page's components without a browser: image store, outlines, mask suggestions, sharing, votes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vip_llava.errors import CheckpointError, RegionError, RequestError
from vip_llava.images import open_image
from vip_llava.regions import Mask, region_from_json
from vip_llava.serving.api.replies import as_png
from vip_llava.serving.web import outlines
from vip_llava.serving.web.asking import Question
from vip_llava.serving.web.image_store import ImageStore
from vip_llava.serving.web.routes import EXAMPLES, STATIC
from vip_llava.serving.web.share import api_request, share_texts
from vip_llava.serving.web.suggest import GrabCut, SegmentAnything
from vip_llava.serving.web.votes import VoteFile

PHOTOS = Path(__file__).parents[3] / "examples" / "photos"


def make_image(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def test_the_image_store_evicts_by_count_bytes_and_age() -> None:
    now = [0.0]
    images = ImageStore(count=3, seconds=10, clock=lambda: now[0])
    held = [images.put(make_image(seed)) for seed in range(3)]
    assert images.get(held[0].id) is not None  # used again, so the second is the oldest now
    held.append(images.put(make_image(3)))
    assert [images.get(each.id) is not None for each in held] == [True, False, True, True]
    now[0] = 11
    assert all(images.get(each.id) is None for each in held)
    small = ImageStore(total_bytes=held[0].bytes * 2)
    names = [small.put(make_image(seed)).id for seed in range(4)]
    assert [small.get(name) is not None for name in names] == [False, False, True, True]
    assert small.get({"path": "x"}) is None
    large = ImageStore(total_bytes=1)
    assert large.get(large.put(make_image()).id) is not None


def test_stored_images_are_lossless_unless_they_are_large() -> None:
    images = ImageStore()
    small, large = images.put(make_image()), images.put(make_image(size=(2000, 1200)))
    assert open_image(small.content).tobytes() == small.image.tobytes()
    assert large.media_type == "image/jpeg"
    assert images.put(large.image, lossless=True).media_type == "image/png"
    assert open_image(as_png(large.image)).tobytes() == large.image.tobytes()


def test_the_example_photos_equal_those_of_the_repository() -> None:
    for name in EXAMPLES.values():
        assert (STATIC / "photos" / name).read_bytes() == (PHOTOS / name).read_bytes()


def test_a_loop_becomes_valid_polygons() -> None:
    star = [
        [50 + 40 * np.sin(4 * np.pi * i / 5), 50 - 40 * np.cos(4 * np.pi * i / 5)] for i in range(5)
    ]
    (polygon,) = outlines.of_loop([list(map(float, each)) for each in star])
    region = Mask(polygons=[tuple(polygon)])
    assert region.bounds((100, 100)) == pytest.approx((12, 10, 88, 82.4), abs=0.1)


def test_masks_become_covering_polygons() -> None:
    down, across = np.mgrid[0:200, 0:300]
    mask = (across - 90) ** 2 + (down - 100) ** 2 < 60**2
    mask |= (across > 200) & (across < 280) & (down > 40) & (down < 160)
    mask[95:105, 85:95] = False  # a hole
    mask[2, 2] = True  # a speck
    polygons = outlines.of_mask(mask)
    assert len(polygons) == 2
    region = region_from_json(
        {"shape": "mask", "frame": "pixel", "polygons": polygons, "alpha": 255}
    )
    from vip_llava.regions import draw

    drawn = np.array(draw(Image.new("RGB", (300, 200)), [region])).any(-1)
    assert (drawn & mask).sum() > 0.98 * mask.sum()
    assert (drawn & ~mask).sum() < 0.05 * mask.sum()
    with pytest.raises(RegionError, match="encloses nothing"):
        outlines.of_mask(np.zeros((20, 20), np.bool_))


@pytest.mark.parametrize("place", [{"point": [150, 100]}, {"box": [80, 40, 220, 160]}])
def test_grabcut_finds_an_object_deterministically(place: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(-12, 12, (200, 300, 3))
    down, across = np.mgrid[0:200, 0:300]
    thing = ((across - 150) / 55) ** 2 + ((down - 100) / 45) ** 2 < 1
    pixels = np.where(thing[..., None], (200, 60, 50), (60, 120, 170)) + noise
    image = Image.fromarray(pixels.astype(np.uint8))
    found = GrabCut().mask(image, **place)
    assert (found & thing).sum() > 0.9 * (found | thing).sum()
    assert np.array_equal(found, GrabCut().mask(image, **place))


@pytest.mark.parametrize(
    "place",
    [{}, {"point": [1]}, {"point": [1, 1], "box": [1, 1, 9, 9]}, {"point": [500, 1]},
     {"point": [float("nan"), 1]}, {"box": [5, 5, 6, 6]}, {"box": [9, 9, 1, 1]},
     {"box": [0, 0, 1, 2, 3]}],
)  # fmt: skip
def test_invalid_points_and_boxes_are_refused(place: dict[str, Any]) -> None:
    with pytest.raises(RegionError):
        GrabCut().mask(make_image(), **place)


def test_a_uniform_image_has_no_objects() -> None:
    flat = Image.new("RGB", (64, 48), (90, 90, 90))
    for place in ({"point": [30, 20]}, {"box": [10, 10, 50, 40]}):
        try:
            found = GrabCut().mask(flat, **place)
        except RegionError as error:
            assert "draw" in str(error)
        else:
            assert found.shape == (48, 64)


def test_a_segment_anything_checkpoint_suggests_masks(tmp_path: Path) -> None:
    import torch
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(0)
    config = SamConfig(
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 64, "patch_size": 16, "mlp_dim": 16, "output_channels": 16,
                       "num_pos_feats": 8, "global_attn_indexes": [0], "window_size": 2},
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16,
                               "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )  # fmt: skip
    SamModel(config).save_pretrained(tmp_path)
    size = {"longest_edge": 64}
    padded = {"height": 64, "width": 64}
    SamProcessor(SamImageProcessor(size=size, pad_size=padded)).save_pretrained(tmp_path)
    suggester = SegmentAnything(tmp_path)
    image = make_image(size=(90, 60))
    found = suggester.mask(image, point=[30, 20])
    assert found.shape == (60, 90)
    assert found.dtype == np.bool_
    assert suggester.mask(image, box=[10, 10, 60, 50]).shape == (60, 90)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a Segment Anything checkpoint"):
        SegmentAnything(tmp_path / "nothing")


def test_a_shared_question_has_history_and_parameters() -> None:
    region = region_from_json({"id": "1", "shape": "box", "frame": "pixel", "box": [1, 2, 3, 4]})
    question = Question(
        "a model", "And?", make_image(), (region,), (("user", "One?"), ("assistant", "Two."),),
        {"max_new_tokens": 5, "temperature": 0.5, "stop": ["x"]},
    )  # fmt: skip
    body = api_request(question, "IMAGE")
    assert body["max_tokens"] == 5
    assert [each["role"] for each in body["messages"]] == ["user", "assistant", "user"]
    image, text = body["messages"][0]["content"]
    assert image["regions"] == [region.to_json()]
    assert text == {"type": "text", "text": "One?"}
    assert json.loads(share_texts(question)["JSON"]) == body
    compile(share_texts(question)["Python"], "shared", "exec")
    assert "regions" not in share_texts(Question("default", "Hello?"))["Python"]
    assert "load()" in share_texts(Question("default", "Hello?"))["Python"]


def test_votes_are_json_lines(tmp_path: Path) -> None:
    votes = VoteFile(tmp_path / "votes.jsonl")
    assert (tmp_path / "votes.jsonl").read_text() == ""
    votes.write("up", {"answer": "a\nb <é>"})
    votes.write("flag", {"answer": "c"})
    with pytest.raises(RequestError, match="up, down, flag"):
        votes.write("sideways", {})
    lines = [
        json.loads(line) for line in (tmp_path / "votes.jsonl").read_text("utf-8").splitlines()
    ]
    assert [(line["vote"], line["answer"]) for line in lines] == [("up", "a\nb <é>"), ("flag", "c")]
    with pytest.raises(OSError):
        VoteFile(tmp_path / "no" / "votes.jsonl")
