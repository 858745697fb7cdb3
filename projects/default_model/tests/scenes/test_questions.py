"""Every task gives true answers about made scenes, for all random choices."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from default_model.scenes.questions import choosing, marks, naming, relations, whole
from default_model.scenes.scene import Exchange, Scene, Task
from vip_llava.prompting.focal_views import view_remarks
from vip_llava.regions import Arrow, Box, Ellipse, Point
from vip_llava.regions.phrases import placeholders

MakeScene = Callable[..., Scene]
LEFT, RIGHT = (10.0, 60.0, 50.0, 100.0), (150.0, 62.0, 190.0, 102.0)
TOP, BOTTOM = (80.0, 5.0, 110.0, 35.0), (82.0, 120.0, 112.0, 150.0)
WORDS = ("cat", "dog", "cup", "bus", "car", "bed")


def exchanges(task: Task, scene: Scene, times: int = 60) -> list[Exchange]:
    """The exchanges of a task for many seeds."""
    drawn = (task(scene, np.random.default_rng(seed)) for seed in range(times))
    return [exchange for exchange in drawn if exchange is not None]


def words_of(scene: Scene) -> dict[str, str]:
    return {str(r.id): t.label for r, t in zip(scene.regions, scene.marked, strict=True)}


def test_naming_gives_the_label(make_scene: MakeScene) -> None:
    scene = make_scene([("cat", LEFT), ("dog", RIGHT)], 1)
    for question, answer in exchanges(naming.name_region, scene):
        assert "cat" in answer and "dog" not in answer
        sentence = "sentence" in question
        assert sentence == (answer != "cat") and sentence == answer.endswith(".")
        assert all(id_ == "1" for id_ in re.findall(r"<region:(\w+)>", question + answer))


def test_naming_one_of_several_goes_by_the_mark(make_scene: MakeScene) -> None:
    scene = make_scene([("cat", LEFT), ("dog", RIGHT), ("cup", TOP)], 3)
    seen = set()
    for question, answer in exchanges(naming.name_one_of_many, scene):
        [id_] = re.findall(r"<region:(\w+)>", question)
        assert answer == words_of(scene)[id_]
        seen.add(answer)
    assert seen == {"cat", "dog", "cup"}


def test_is_it(make_scene: MakeScene) -> None:
    scene = make_scene([("cat", LEFT), ("dog", (11.0, 61.0, 50.0, 100.0))], 1)
    said = exchanges(partial(naming.is_it, others=WORDS), scene, 200)
    for question, answer in said:
        asked = next(word for word in WORDS if f" {word}?" in question)
        assert answer == ("yes" if asked == "cat" else "no")
        assert asked != "dog"  # at the same place, so "no" might be wrong
    assert {answer for _, answer in said} == {"yes", "no"}


def options(question: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-D])\. (.+)$", question, re.MULTILINE))


def test_the_letter_points_to_the_right_word(make_scene: MakeScene) -> None:
    scene = make_scene([("cat", LEFT), ("dog", (11.0, 61.0, 50.0, 100.0))], 1)
    letters = set()
    for question, answer in exchanges(partial(choosing.choose_word, others=WORDS), scene):
        found = options(question)
        assert len(set(found.values())) == 4 and found[answer] == "cat"
        assert "dog" not in found.values()  # at the same place, so it might be right, too
        letters.add(answer)
    assert letters == set("ABCD")
    few = partial(choosing.choose_word, others=("cat", "cup", "bus"))
    assert exchanges(few, scene) == []


def test_the_letter_points_to_the_right_mark(make_scene: MakeScene) -> None:
    things = [("cat", LEFT), ("dog", RIGHT), ("cup", TOP), ("cup", BOTTOM)]
    scene = make_scene(things, 4)
    by_letter = by_wording = 0
    for question, answer in exchanges(choosing.choose_region, scene, 100):
        [asked] = re.findall(r"is an? (\w+)\?", question)
        assert asked != "cup"  # two marks would be right
        mark = answer if answer.startswith("<") else options(question)[answer]
        assert words_of(scene)[mark.removeprefix("<region:").removesuffix(">")] == asked
        by_letter += mark != answer
        by_wording += mark == answer
    assert by_letter > by_wording > 0
    assert exchanges(choosing.choose_region, make_scene(things[2:], 2)) == []


SIDES = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}


@pytest.mark.parametrize("boxes", [(LEFT, RIGHT), (RIGHT, LEFT), (TOP, BOTTOM), (BOTTOM, TOP)])
def test_sides_are_those_of_the_image(make_scene: MakeScene, boxes: tuple[Any, Any]) -> None:
    scene = make_scene([("cat", boxes[0]), ("dog", boxes[1])], 2)
    places = {str(r.id): t.box for r, t in zip(scene.regions, scene.marked, strict=True)}
    kinds = set()
    for question, answer in exchanges(relations.side, scene):
        first, second = (places[id_] for id_ in re.findall(r"<region:(\w+)>", question))

        def holds(word: str, a: Any = first, b: Any = second) -> bool:
            axis, sign = SIDES[word]
            return bool(np.sign(a[axis] - b[axis]) == sign)

        asked = re.findall("left|right|above|below", question)
        if len(asked) == 2:
            assert answer in asked and holds(answer)
        else:
            assert answer == ("yes" if holds(asked[0]) else "no")
        kinds.add(answer)
    assert len(kinds) == 4  # yes, no and both words


def test_unclear_sides_are_not_asked_about(make_scene: MakeScene) -> None:
    near = (20.0, 65.0, 60.0, 105.0)
    assert exchanges(relations.side, make_scene([("cat", LEFT), ("dog", near)], 2)) == []


def test_sides_are_not_asked_about_if_marks_point_elsewhere(make_scene: MakeScene) -> None:
    things = [("cat", (0.0, 20.0, 90.0, 40.0)), ("dog", (50.0, 20.0, 140.0, 40.0))]
    for first, second, asked in ((30, 100, True), (85, 55, False)):
        points = [Point(first, 30), Point(second, 30)]
        assert bool(exchanges(relations.side, make_scene(things, regions=points))) == asked


def test_where_gives_the_caption_of_the_view(make_scene: MakeScene) -> None:
    scene = make_scene([("cat", LEFT), ("dog", (150.0, 20.0, 190.0, 60.0))], 2)
    told = view_remarks(scene.regions, scene.image.size)
    answers = set()
    for question, answer in exchanges(relations.where, scene):
        [id_] = placeholders(question)
        remark = told[[str(region.id) for region in scene.regions].index(id_)]
        whole = "sentence" in question
        assert answer == remark if whole else f" is {answer}." in remark
        assert whole == answer.endswith(".")
        answers.add(answer)
    assert len(answers) == 4
    assert any(answer.startswith("to the left of and below the object") for answer in answers)
    assert exchanges(relations.where, make_scene([("cat", LEFT)], 1)) == []


def test_the_letter_of_a_mark(make_scene: MakeScene) -> None:
    scene = make_scene([("cat", LEFT), ("dog", RIGHT), ("cup", TOP)], 3)
    letters = set()
    for question, answer in exchanges(choosing.letter_of, scene):
        asked, *lines, _ = question.split("\n")
        [mark] = placeholders(asked)
        assert f"{answer}. <region:{mark}>" in lines and len(lines) == 3
        letters.add(answer)
    assert letters == {"A", "B", "C"}
    assert exchanges(choosing.letter_of, make_scene([("cat", LEFT)], 1)) == []


def test_size(make_scene: MakeScene) -> None:
    big, small = (0.0, 0.0, 100.0, 100.0), (120.0, 20.0, 150.0, 60.0)
    scene = make_scene([("cat", big), ("dog", small)], 2)
    for question, answer in exchanges(relations.size, scene):
        first = re.findall(r"<region:(\w+)>", question)[0]
        larger = words_of(scene)[first] == "cat"
        assert answer == ("yes" if larger == ("smaller" not in question) else "no")
    assert exchanges(relations.size, make_scene([("cat", LEFT), ("dog", RIGHT)], 2)) == []


def chosen(question: str, answer: str, scene: Scene) -> str:
    """The label of the object that an answer means: by its mark, or by the letter of it."""
    if answer.startswith("<"):
        return words_of(scene)[placeholders(answer)[0]]
    line = next(line for line in question.split("\n") if line.startswith(f"{answer}. "))
    return words_of(scene)[placeholders(line)[0]]


def test_the_furthest_of_several(make_scene: MakeScene) -> None:
    things = [("cat", LEFT), ("dog", RIGHT), ("cup", TOP), ("bus", BOTTOM)]
    ends = {"left": "cat", "right": "dog", "high": "cup", "low": "bus"}
    for count in (2, 3, 4):
        scene, said = make_scene(things, count), set()
        for question, answer in exchanges(relations.further, scene, 150):
            asked = question.partition("\n")[0]
            end = next(word for word in ends if word in asked)
            assert chosen(question, answer, scene) == ends[end]
            assert count == 2 or "further" not in asked
            said.add((end, answer[0] == "<"))
        # Of cat and dog neither is clearly higher, of cat, dog and cup none is clearly lowest.
        assert said == {(end, written) for end in list(ends)[:count] for written in (True, False)}
    assert exchanges(relations.further, make_scene(things, 1)) == []


def test_the_furthest_is_not_asked_about_if_marks_point_elsewhere(make_scene: MakeScene) -> None:
    things = [("cat", (0.0, 20.0, 90.0, 40.0)), ("dog", (150.0, 20.0, 190.0, 40.0))]
    for first, second, asked in ((30, 170, True), (170, 30, False)):
        points = [Point(first, 30), Point(second, 30)]
        assert bool(exchanges(relations.further, make_scene(things, regions=points))) == asked


def test_the_larger_of_two(make_scene: MakeScene) -> None:
    big, small = (0.0, 0.0, 100.0, 100.0), (120.0, 20.0, 150.0, 60.0)
    scene, ways = make_scene([("cat", big), ("dog", small)], 2), set()
    for question, answer in exchanges(relations.larger, scene):
        assert chosen(question, answer, scene) == ("dog" if "smaller" in question else "cat")
        ways.add((answer[0] == "<", len(placeholders(question))))
    assert ways == {(True, 0), (True, 2), (False, 2)}
    assert exchanges(relations.larger, make_scene([("cat", LEFT), ("dog", RIGHT)], 2)) == []
    assert exchanges(relations.larger, make_scene([("cat", big)], 1)) == []


def test_same_kind(make_scene: MakeScene) -> None:
    same = make_scene([("cat", LEFT), ("cat", RIGHT)], 2)
    other = make_scene([("cat", LEFT), ("dog", RIGHT)], 2)
    assert {answer for _, answer in exchanges(relations.same_kind, same)} == {"yes"}
    assert {answer for _, answer in exchanges(relations.same_kind, other)} == {"no"}


def test_marks_are_described(make_scene: MakeScene) -> None:
    cases = {
        "rectangle": Box(10, 10, 60, 60, color="blue"),
        "ellipse": Ellipse(10, 10, 60, 60, color=(0, 0, 255)),
        "point": Point(40, 40, color="blue"),
        "arrow": Arrow(tail=(90, 90), tip=(40, 40), color="blue"),
    }
    for shape, region in cases.items():
        scene = make_scene([("cat", (10.0, 10.0, 60.0, 60.0))], 1, regions=[region])
        assert {a for _, a in exchanges(marks.mark_shape, scene, 5)} == {shape}
        assert {a for _, a in exchanges(marks.mark_color, scene, 5)} == {"blue"}
    nameless = Box(10, 10, 60, 60, color="#123456")
    scene = make_scene([("cat", LEFT)], 1, regions=[nameless])
    assert exchanges(marks.mark_color, scene) == []


def test_marks_are_counted(make_scene: MakeScene) -> None:
    things = [("cat", LEFT), ("dog", RIGHT), ("cup", TOP), ("cup", BOTTOM)]
    for count, word in enumerate(("one", "two", "three", "four"), 1):
        scene = make_scene(things, count)
        assert {answer for _, answer in exchanges(marks.count_marks, scene, 5)} == {word}


def test_presence_is_asked_about_complete_classes_only(make_scene: MakeScene) -> None:
    promised = frozenset({"cat", "bus"})
    scene = make_scene([("cat", LEFT), ("dog", RIGHT)], 0, exhaustive_for=promised)
    said = exchanges(whole.presence, scene)
    asked = {(re.findall(r"cat|dog|bus", question)[0], answer) for question, answer in said}
    assert asked == {("cat", "yes"), ("bus", "no")}
    assert exchanges(whole.presence, make_scene([("cat", LEFT)], 0)) == []


def test_counts_are_asked_about_complete_classes_only(make_scene: MakeScene) -> None:
    things = [("cat", LEFT), ("cat", RIGHT), ("dog", TOP), ("person", BOTTOM)]
    promised = frozenset({"cat", "person", "bus"})
    scene = make_scene(things, 0, exhaustive_for=promised)
    asked = {(q.split()[2], a) for q, a in exchanges(whole.how_many, scene)}
    assert asked == {("cats", "two"), ("people", "one")}
    many = [("cat", (float(x), 0.0, x + 10.0, 10.0)) for x in range(0, 100, 20)]
    assert exchanges(whole.how_many, make_scene(many, 0, exhaustive_for=promised)) == []


def test_captions_and_the_main_object(make_scene: MakeScene) -> None:
    scene = make_scene([("cat", LEFT)], 0, captions=("A cat. ", "A cat on a mat."))
    assert {a for _, a in exchanges(whole.caption, scene)} == {"A cat.", "A cat on a mat."}
    assert {a for _, a in exchanges(whole.main_thing, scene)} == {"cat"}
    two = make_scene([("cat", LEFT), ("dog", RIGHT)], 0)
    assert exchanges(whole.caption, two) == exchanges(whole.main_thing, two) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_questions_name_only_marks_of_the_scene(make_scene: MakeScene, count: int) -> None:
    things = [("cat", LEFT), ("dog", RIGHT), ("cup", TOP), ("bus", BOTTOM)]
    scene = make_scene(things, count)
    tasks: list[Task] = [
        naming.name_region,
        naming.name_one_of_many,
        partial(naming.is_it, others=WORDS),
        partial(choosing.choose_word, others=WORDS),
        choosing.choose_region,
        relations.side,
        relations.size,
        relations.same_kind,
    ]
    known = {str(region.id) for region in scene.regions}
    for task in tasks:
        for question, answer in exchanges(task, scene, 20):
            assert set(placeholders(f"{question} {answer}")) <= known
