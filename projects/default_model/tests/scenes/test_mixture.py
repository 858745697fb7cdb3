"""Batches depend on (seed, number) alone, have constant shapes, and supervise answers only."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from default_model.scenes.augment import AugmentSettings
from default_model.scenes.mention_labels import IGNORED
from default_model.scenes.mixture import RegionMixture
from default_model.scenes.mixture_config import MARKED, VIEWS, MixtureConfig
from default_model.scenes.photos import Photo, read_regions
from default_model.scenes.questions.selection import exchanges, tasks_of
from default_model.scenes.scene import Exchange, Scene
from vip_llava.errors import DataError
from vip_llava.evaluation.coco_annotations import LabelledObject
from vip_llava.prompting.focal_views import FocalSettings
from vip_llava.prompting.processor import Processor
from vip_llava.regions import Box, resolve
from vip_llava.regions.phrases import phrase, placeholders

KINDS = ("one", "whole", "two", "three", "four")
MakeMix = Callable[..., RegionMixture]


def single(number: int, label: str) -> Photo:
    held = io.BytesIO()
    Image.new("RGB", (40, 30), (40 * number, 90, 200)).save(held, format="JPEG")
    thing = LabelledObject(label, (0.0, 0.0, 40.0, 30.0))
    return Photo(f"single {number}", "made", held.getvalue(), (40, 30), (thing,))


SINGLES = [single(0, "bus"), single(1, "zither"), single(2, "cup")]


@pytest.fixture(scope="module")
def make_mix(labelled_folder: Path, lite_processor: Processor) -> MakeMix:
    photos = list(read_regions(labelled_folder))

    def make(kind: str | None = None, seed: int = 0, **changes: Any) -> RegionMixture:
        settings = MixtureConfig(
            shares={kind: 1.0} if kind else dict.fromkeys(KINDS, 0.2),
            rows=dict.fromkeys(KINDS, 6),
            text_tokens={"one": 150, "whole": 150, "two": 150, "three": 220, "four": 300},
            augment=AugmentSettings(longest=160),
        )
        given = {"photos": photos, "singles": SINGLES, **changes}
        wanted, focal = given.pop("settings", {}), given.pop("focal", FocalSettings())
        return RegionMixture(
            given["photos"],
            given["singles"],
            lite_processor,
            focal,
            replace(settings, **wanted),
            seed,
        )

    return make


def test_a_batch_depends_on_seed_and_number_alone(make_mix: MakeMix) -> None:
    first, second = make_mix(), make_mix()
    second.source.decode_all()
    for _ in range(3):
        second.batch(9)  # earlier batches have no effect
    for number in (0, 5):
        one, other = first.batch(number), second.batch(number)
        assert one["kind"] == other["kind"]
        for key in ("views", "input_ids", "labels", "classes"):
            assert np.array_equal(one[key], other[key])
    different = [make_mix("one", seed=1).batch(0), make_mix("one").batch(1)]
    base = make_mix("one").batch(0)
    assert all(not np.array_equal(base["views"], each["views"]) for each in different)


def questions(text: str) -> list[str]:
    """The questions of a conversation in the ChatML template."""
    return [part.split("assistant")[0] for part in text.split("user")[1:]]


def ask(mix: RegionMixture, kind: str, scene: Scene, rng: np.random.Generator) -> list[Exchange]:
    tasks = tasks_of(kind, scene, mix.source.words, told=mix.focal.told)
    return exchanges(scene, tasks, mix.settings.turns[kind], rng)


def test_kinds_have_their_proportions(make_mix: MakeMix) -> None:
    mix = make_mix(settings={"shares": {"one": 3.0, "two": 1.0}})
    kinds = [mix.kind_of(number) for number in range(400)]
    assert set(kinds) == {"one", "two"} and 0.68 < kinds.count("one") / 400 < 0.82


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_supervision(make_mix: MakeMix, lite_processor: Processor, kind: str) -> None:
    mix = make_mix(kind)
    batch = mix.batch(0)
    rows, length = 6, mix.settings.text_tokens[kind] + VIEWS[kind] * 17
    assert batch["kind"] == kind
    assert batch["views"].shape == (rows, VIEWS[kind], 64, 64, 3)
    assert batch["views"].dtype == np.uint8
    assert batch["input_ids"].shape == batch["labels"].shape == (rows, length)
    assert ((batch["input_ids"] == 3).sum(1) == VIEWS[kind] * 17).all()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = np.flatnonzero(labels != IGNORED)
        assert len(learned) > 1 and (ids[learned] == labels[learned]).all()
        answers = np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1)
        assert 1 <= len(answers) <= mix.settings.turns[kind]
        for answer in answers:  # each in one piece
            before = lite_processor.tokenizer.decode(ids[: answer[0]].tolist())
            assert before.rstrip().endswith("assistant")
            assert labels[answer[-1]] in lite_processor.stop_ids
            assert "assistant" not in lite_processor.decode(labels[answer].tolist())
    assert batch["classes"].shape == (rows, VIEWS[kind] - 1)


@pytest.mark.parametrize("kind", ["two", "three", "four"])
def test_several_questions_are_asked_about_several_marks(make_mix: MakeMix, kind: str) -> None:
    def answers(room: int) -> tuple[Any, list[int]]:
        mix = make_mix(kind, settings={"text_tokens": {kind: room}})
        batch = mix.batch(0)
        starts = (batch["labels"] != IGNORED) & (np.roll(batch["labels"], 1, axis=1) == IGNORED)
        return batch, starts.sum(1).tolist()

    ample, many = answers(500)
    assert max(many) > 1
    # No question is repeated, and exchanges that do not fit are left out completely.
    texts = [make_mix(kind).processor.decode(ids) for ids in ample["input_ids"]]
    assert all(len(set(parts)) == len(parts) for parts in (questions(text) for text in texts))
    few, fewer = answers(160)
    assert 1 <= min(fewer) <= max(fewer) <= max(many) and sum(fewer) < sum(many)
    assert few["input_ids"].shape[1] < ample["input_ids"].shape[1]


def test_the_class_is_that_of_the_marked_object(make_mix: MakeMix) -> None:
    mix = make_mix("one")
    assert mix.classes == sorted({"cat", "couch", "dog", "person", "bus", "zither", "cup"})
    found = set()
    scene = mix.source.scene

    def watched(kind: str, rng: np.random.Generator) -> Any:
        made = scene(kind, rng)
        if made is not None:
            found.add(made.marked[0].label)
        return made

    mix.source.scene = watched  # type: ignore[method-assign]
    batch = mix.batch(0)
    assert {mix.classes[number] for number in batch["classes"][:, 0]} <= found


def test_the_classes_of_several_are_in_the_order_of_their_views(make_mix: MakeMix) -> None:
    mix = make_mix("four")
    row = mix._row("four", np.random.default_rng(5))
    scenes = []
    scene = mix.source.scene
    mix.source.scene = lambda kind, rng: scenes.append(scene(kind, rng)) or scenes[-1]  # type: ignore[method-assign, func-returns-value]
    again = mix._row("four", np.random.default_rng(5))
    assert row[4] == again[4] == [mix.class_of[thing.label] for thing in scenes[-1].marked]
    assert len(set(row[4])) > 1


def test_one_of_several_marks_is_named_after_its_phrase(
    make_mix: MakeMix, lite_processor: Processor
) -> None:
    """A label is at the end of the mark's phrase, after its focal view."""
    mix = make_mix("two", focal=FocalSettings(named=True, told=True))
    scenes = []
    scene = mix.source.scene
    mix.source.scene = lambda kind, rng: scenes.append(scene(kind, rng)) or scenes[-1]  # type: ignore[method-assign, func-returns-value]
    mix.processor = copy.copy(lite_processor)
    mix.processor.focal = mix.focal
    checked = 0
    for seed in range(20):
        _, ids, labels, names, _ = mix._row("two", np.random.default_rng(seed))
        found: dict[int, list[int]] = {0: [], 1: []}
        for at in np.flatnonzero(np.array(names) != IGNORED).tolist():
            assert labels[at] == IGNORED
            said = lite_processor.decode(ids[:at])
            regions = scenes[-1].regions
            index = next(i for i in (0, 1) if said.endswith(phrase(regions[i], regions)))
            word = lite_processor.tokenizer.plain(scenes[-1].marked[index].label, at_start=False)
            assert names[at] == word[0].id
            # A view has 17 tokens; the first view is the whole image.
            assert ids[:at].count(3) >= 17 * (index + 2)
            found[index].append(at)
        assert all(found.values())  # each is mentioned at least after its view
        checked += sum(map(len, found.values()))
    assert checked > 60
    assert set(make_mix("one")._row("one", np.random.default_rng(1))[3]) == {IGNORED}


@pytest.mark.parametrize("kind", ["two", "three", "four"])
def test_no_two_questions_ask_the_same(make_mix: MakeMix, kind: str) -> None:
    mix = make_mix(kind)
    counts = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        made = mix.source.scene(kind, rng)
        if made is None:
            continue
        asked = [question.partition("\n")[0] for question, _ in ask(mix, kind, made, rng)]
        assert sum(question.startswith("How many") for question in asked) <= 1
        words = [
            re.split(" is an? | is ", question)[-1] for question in asked if "Which" in question
        ]
        assert len(set(words)) == len(words)
        named = [placeholders(q)[0] for q in asked if q.startswith(("Identify", "Name", "What is"))]
        assert len(set(named)) == len(named)
        assert len(asked) <= mix.settings.turns[kind]
        counts.append(len(asked))
    assert max(counts) == mix.settings.turns[kind]


def test_marks_are_counted_in_scenes_of_different_counts(make_mix: MakeMix) -> None:
    """With a single count, the answer would be learned without looking."""
    answers = set()
    for kind in ("two", "three", "four"):
        mix = make_mix(kind)
        for seed in range(40):
            rng = np.random.default_rng(seed)
            made = mix.source.scene(kind, rng)
            asked = ask(mix, kind, made, rng) if made is not None else []
            answers |= {a for q, a in asked if q.startswith("How many") and "marked" in q}
    assert answers == {"two", "three", "four"}


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_have_the_marks_of_their_kind(make_mix: MakeMix, kind: str) -> None:
    mix = make_mix(kind)
    made = [mix.source.scene(kind, np.random.default_rng(seed)) for seed in range(40)]
    counts = {len(scene.regions) for scene in made if scene is not None}
    assert counts == ({0, 1} if kind == "whole" else {MARKED[kind]})
    for scene in made:
        assert scene is None or len(scene.regions) == len(scene.marked)
        assert scene is None or set(scene.marked) <= set(scene.objects)


def test_focal_views_show_the_mark(make_mix: MakeMix) -> None:
    """On a grey ground with one red box, the second view holds more red than the first."""
    mix = make_mix("one")
    thing = LabelledObject("cat", (70.0, 40.0, 90.0, 60.0))
    regions = resolve([Box(*thing.box, color="red")], (160, 120)).regions
    grey = Image.new("RGB", (160, 120), (127, 127, 127))
    mix.source.scene = lambda kind, rng: Scene(grey, (thing,), (thing,), regions)  # type: ignore[method-assign]
    views = mix.batch(0)["views"].astype(int)
    red = ((views[..., 0] > 180) & (views[..., 1] < 90)).mean((2, 3))
    assert (red[:, 1] > 1.5 * red[:, 0]).all() and (red[:, 0] > 0).all()


def test_without_single_photos_or_captions(labelled_folder: Path, make_mix: MakeMix) -> None:
    photos = [replace(photo, captions=()) for photo in read_regions(labelled_folder)]
    for kind in KINDS:
        mix = make_mix(kind, photos=photos, singles=[])
        assert mix.batch(0)["kind"] == kind


def test_nothing_to_train_on_is_an_error(make_mix: MakeMix, labelled_folder: Path) -> None:
    bare = [replace(photo, objects=()) for photo in read_regions(labelled_folder)]
    with pytest.raises(DataError, match="no photo with labelled objects"):
        make_mix(photos=bare)


def test_a_kind_that_never_fits_is_an_error(make_mix: MakeMix) -> None:
    mix = make_mix("two", settings={"text_tokens": {"two": 3}})
    with pytest.raises(RuntimeError, match="'two'"):
        mix.batch(0)


def test_rare_labels_are_sampled_more_often_than_they_occur(
    make_mix: MakeMix, labelled_folder: Path
) -> None:
    photos = list(read_regions(labelled_folder))
    crowd = replace(photos[0], objects=(photos[0].objects[3],) * 99 + photos[0].objects[:1])
    mix = make_mix("one", photos=[crowd], settings={"label_power": -1.0})
    drawn = mix.source.chance.searchsorted(np.random.default_rng(0).random(500))
    assert 0.4 < (drawn == 99).mean() < 0.6
