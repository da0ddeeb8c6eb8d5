"""GenEval's rules, each on both sides of its edge."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cotgen_lite import prompts as P
from cotgen_lite.geneval import Detection, Finding, evaluate, judge, relations
from cotgen_lite.lite.world import world
from cotgen_lite.prompts import RELATIONS, TAGS, Prompt, Requirement


def found(name, x=0.0, y=0.0, score=0.95, color="red", size=20.0):
    return Detection(name, score, (x, y, x + size, y + size), color)


class Blind:
    def detect(self, images):
        return []


def kinds(prompt, detections, **options):
    return [reason.kind for reason in evaluate(prompt, detections, **options).reasons]


# --- thresholds and the choice of detections ---


@pytest.mark.parametrize(("value", "correct"), [(0.3, False), (0.3001, True)])
def test_threshold_has_to_be_exceeded(value, correct):
    assert evaluate(P.single_object("cat"), [found("cat", score=value)]).correct is correct


@pytest.mark.parametrize(("value", "correct"), [(0.5, False), (0.9, False), (0.9001, True)])
def test_counting_has_its_own_threshold(value, correct):
    two = [found("cat"), found("cat", 40, score=value)]
    assert evaluate(P.counting("cat", 2), two).correct is correct


@pytest.mark.parametrize(("prompt", "limit"), [(P.single_object("cat"), 0.3), (P.counting("cat", 2), 0.9)])
def test_threshold_and_confidence_are_compared_in_float32(prompt, limit):
    near = float(np.float32(limit))  # .3 is 0.30000001192… there, which is above the double .3
    above = float(np.nextafter(np.float32(limit), np.float32(1)))
    for score, correct in ((near, False), (np.float32(limit), False), (limit, False), (above, True)):
        assert evaluate(prompt, [found("cat", score=score), found("cat", 40, score=score)]).correct is correct


def test_of_equally_likely_detections_the_last_counts():
    red, blue = found("cat", color="red"), found("cat", 40, color="blue")
    assert kinds(P.colored("cat", "red"), [red, blue]) == ["color"]
    assert evaluate(P.colored("cat", "red"), [blue, red]).correct
    three = [replace(blue, score=0.9500000001), red, found("dog")]  # equal in float32, as the original sees them
    assert evaluate(P.colored("cat", "red"), three).correct
    crowd = [*[red] * 4, *[blue] * 2]
    two_blue = Prompt("two blue cats", "colors", (Requirement("cat", 2, "blue"),))
    assert evaluate(two_blue, crowd, max_per_class=2).correct and not evaluate(two_blue, crowd[::-1]).correct


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Detection(3, 0.5, (0, 0, 1, 1)), "class of a detection"),
        (lambda: Detection("cat", math.nan, (0, 0, 1, 1)), "confidence of a cat"),
        (lambda: Detection("cat", 1.5, (0, 0, 1, 1)), "from 0 to 1"),
        (lambda: Detection("cat", "sure", (0, 0, 1, 1)), "confidence of a cat"),
        (lambda: Detection("cat", 0.5, (0, 0, 1)), "x0, y0, x1, y1"),
        (lambda: Detection("cat", 0.5, "0011"), "x0, y0, x1, y1"),
        (lambda: Detection("cat", 0.5, None), "x0, y0, x1, y1"),
        (lambda: Detection("cat", 0.5, (0, 0, math.inf, 1)), "edge of the box of a cat"),
        (lambda: Detection("cat", 0.5, (0, 0, 1, 1), 3), "colour of a cat"),
        (lambda: evaluate("a photo of a cat", []), "must be a Prompt"),
        (lambda: evaluate(P.single_object("cat"), None), "list of one image's Detections"),
        (lambda: evaluate(P.single_object("cat"), [[found("cat")]]), "list of one image's Detections"),
        (lambda: evaluate(P.single_object("cat"), [], max_per_class=0), "max_per_class"),
        (lambda: judge(None, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [P.single_object("cat")]), "a detector"),
        (lambda: judge(Blind(), torch.zeros(1, 3, 8, 8), [P.single_object("cat")]), "uint8"),
        (lambda: judge(Blind(), torch.zeros(3, 8, 8, dtype=torch.uint8), [P.single_object("cat")]), "shape"),
        (lambda: judge(Blind(), None, [P.single_object("cat")]), "uint8 tensor"),
        (lambda: judge(Blind(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "a photo of a cat"), "list of Prompts"),
        (lambda: judge(Blind(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["cat"]), "a Prompt"),
        (
            lambda: judge(Blind(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [P.single_object("cat")]),
            "list of detections for each of 1",
        ),
        (lambda: relations((0, 0, 1), (0, 0, 1, 1)), "A box must have shape"),
        (lambda: relations((0, 0, 1, 1), (0, 0, 1, math.nan)), "A box must be finite"),
        (lambda: relations(None, (0, 0, 1, 1)), "A box must be numbers"),
    ],
)
def test_what_cannot_be_judged_gets_one_sentence(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_counting_ignores_unsure_extras_and_rejects_sure_ones():
    two = [found("cat"), found("cat", 40)]
    assert evaluate(P.counting("cat", 2), [*two, found("cat", 20, score=0.89)]).correct
    verdict = evaluate(P.counting("cat", 2), [*two, found("cat", 20)])
    assert verdict.reasons == (Finding("extra", "cat", 2, 3),)


def test_other_tags_allow_more_objects_than_asked_for():
    assert evaluate(P.single_object("cat"), [found("cat"), found("cat", 40), found("dog")]).correct


def test_overlapping_boxes_of_a_class_all_count():
    assert evaluate(P.counting("cat", 3), [found("cat")] * 3).correct


def test_at_most_sixteen_of_a_class_are_kept():
    crowd = Prompt("a crowd", "single_object", (Requirement("cat", 17),))
    assert evaluate(crowd, [found("cat")] * 17).reasons == (Finding("count", "cat", 17, 16),)
    assert evaluate(crowd, [found("cat")] * 17, max_per_class=17).correct


def test_only_the_likeliest_detections_are_looked_at():
    prompt = P.colored("cat", "red")
    red, blue = found("cat", score=0.6, color="red"), found("cat", score=0.7, color="blue")
    assert kinds(prompt, [red, blue]) == ["color"]
    assert evaluate(prompt, [replace(red, score=0.8), blue]).correct
    assert evaluate(prompt, [red, replace(blue, score=0.5)]).correct


# --- each requirement ---


def test_missing_and_too_few():
    assert evaluate(P.single_object("cat"), [found("dog")]).reasons == (Finding("missing", "cat", 1, 0),)
    assert evaluate(P.counting("cat", 3), [found("cat")] * 2).reasons == (Finding("count", "cat", 3, 2),)


def test_every_chosen_detection_needs_the_color():
    prompt = Prompt("two red cats", "colors", (Requirement("cat", 2, "red"),))
    cats = [found("cat", score=0.9), found("cat", score=0.8, color="blue"), found("cat", score=0.7)]
    assert evaluate(prompt, cats).reasons == (Finding("color", "cat", "red", ("red", "blue")),)
    assert evaluate(prompt, [cats[0], cats[2]]).correct


def test_an_unread_color_is_no_match():
    assert kinds(P.colored("cat", "red"), [found("cat", color=None)]) == ["color"]


def test_all_include_requirements_are_reported():
    assert kinds(P.color_attr("cat", "red", "dog", "blue"), [found("cat", color="blue")]) == [
        "color",
        "missing",
    ]


def test_exclude_is_broken_from_its_count_on():
    prompt = Prompt("no dog", "single_object", (Requirement("cat"),), (Requirement("dog"),))
    assert evaluate(prompt, [found("cat")]).correct
    assert evaluate(prompt, [found("cat"), found("dog")]).reasons == (Finding("extra", "dog", 0, 1),)
    assert evaluate(prompt, [found("cat"), found("dog", score=0.3)]).correct


# --- position ---


def test_four_relations():
    at = {"left of": (-30, 0), "right of": (30, 0), "above": (0, -30), "below": (0, 30)}
    reference = found("cat", 30, 30)
    for told, true in itertools.product(RELATIONS, RELATIONS):
        x, y = at[true]
        verdict = evaluate(P.position("dog", told, "cat"), [reference, found("dog", 30 + x, 30 + y)])
        expected = () if told == true else (Finding("position", "dog", told, (true,), "cat"),)
        assert verdict.reasons == expected


def test_margin_shrinks_the_offset_but_not_its_norm():
    # On one axis, (d − 0.1 · (20 + 40)) / d > 0.5 holds from d = 12 on: divided by the shrunk norm it would
    # from 6 on.
    box = (0.0, 0.0, 20.0, 20.0)

    def reference(dx, dy=0.0):  # 40 px wide and high, its centre (dx, dy) from the box's
        return (10 + dx - 20, 10 + dy - 20, 10 + dx + 20, 10 + dy + 20)

    assert relations(box, reference(12.0)) == ()
    assert relations(box, reference(12.01)) == ("left of",)
    assert relations(box, reference(-12.01)) == ("right of",)
    assert relations(box, reference(0, 12.01)) == ("above",)
    assert relations(box, reference(0, -12.01)) == ("below",)
    assert relations(box, reference(0, -12)) == ()
    # On the diagonal, (d − 6) / (d·√2) > 0.5 holds on both axes from d = 6 / (1 − √½) = 20.49 on.
    edge = 6 / (1 - math.sqrt(0.5))
    assert relations(box, reference(edge - 0.01, edge - 0.01)) == ()
    assert relations(box, reference(edge + 0.01, edge + 0.01)) == ("left of", "above")


def test_margin_uses_each_axis_own_sizes():
    flat, dot = (0.0, 0.0, 100.0, 2.0), (49.0, 10.0, 51.0, 12.0)  # margin down: 0.4 px; sideways: 10.2 px
    assert relations(flat, dot) == ("above",)
    tall, dot = (0.0, 0.0, 2.0, 100.0), (0.0, 60.0, 2.0, 62.0)  # offset down 11 px, margin 10.2
    assert relations(tall, dot) == ()


def test_same_place_has_no_relation():
    assert relations((0, 0, 10, 10), (0, 0, 10, 10)) == ()
    assert relations((0, 0, 10, 10), (1, 1, 11, 11)) == ()


def test_relation_must_hold_between_all_chosen_pairs():
    prompt = Prompt(
        "two dogs left of two cats",
        "position",
        (Requirement("cat", 2), Requirement("dog", 2, None, ("left of", 0))),
    )
    dogs = [found("dog", 0), found("dog", 0, 30)]
    assert evaluate(prompt, [*dogs, found("cat", 100), found("cat", 100, 30)]).correct
    assert kinds(prompt, [*dogs, found("cat", 100), found("cat", -100, 30)]) == ["position"]
    assert kinds(prompt, [dogs[0], found("dog", 200), found("cat", 100), found("cat", 100, 30)]) == ["position"]


def test_position_without_a_valid_reference_fails():
    verdict = evaluate(P.position("dog", "left of", "cat"), [found("dog")])
    assert verdict.reasons == (
        Finding("missing", "cat", 1, 0),
        Finding("position", "dog", "left of", (), "cat"),
    )


def test_position_is_not_looked_at_when_the_color_is_wrong():
    prompt = Prompt(
        "a red dog left of a cat",
        "position",
        (Requirement("cat"), Requirement("dog", 1, "red", ("left of", 0))),
    )
    assert kinds(prompt, [found("cat"), found("dog", 50, color="blue")]) == ["color"]


# --- whole prompts: perfect detections pass, one broken requirement fails ---

PLACES = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}


def perfect(prompt):
    """Detections that show exactly what the prompt asks for."""
    detections = []
    for i, required in enumerate(prompt.include):
        x, y = PLACES[required.position[0]] if required.position else (i * 30, i * 30)
        detections += [found(required.name, x, y, color=required.color or "black") for _ in range(required.count)]
    return detections


def broken(prompt):
    """Every way to break one requirement, each with the kind of finding expected first."""
    right = perfect(prompt)
    for i, detection in enumerate(right):
        others = right[:i] + right[i + 1 :]
        required = next(r for r in prompt.include if r.name == detection.name)
        yield ("count" if required.count > 1 else "missing"), others
        yield ("count" if required.count > 1 else "missing"), [*others, replace(detection, score=0.3)]
        if required.color:
            wrong = next(c for c in world().colors if c != required.color)
            yield "color", [*others, replace(detection, color=wrong)]
        if required.position:
            for relation, (x, y) in PLACES.items():
                if relation != required.position[0]:
                    yield "position", [*others, found(detection.name, x, y)]
            yield "position", [*others, found(detection.name, 1, 1)]
    for excluded in prompt.exclude:
        yield "extra", [*right, *[found(excluded.name)] * (excluded.count - len(right))]


def prompts_of_all_kinds():
    a, b, c = world().objects[0], world().objects[1], world().objects[-1]
    yield from (P.single_object(name) for name in world().objects)
    yield from (P.counting(name, n) for name in (a, c) for n in (2, 3, 4))
    yield from (P.colored(a, color) for color in world().colors)
    for x, y in itertools.permutations((a, b, c), 2):
        yield P.two_object(x, y)
        yield from (P.position(x, relation, y) for relation in RELATIONS)
        yield from (P.color_attr(x, p, y, q) for p, q in itertools.permutations(world().colors[:4], 2))


def test_every_tag_is_among_the_prompts():
    assert {prompt.tag for prompt in prompts_of_all_kinds()} == set(TAGS)


@pytest.mark.parametrize("tag", TAGS)
def test_perfect_detections_pass_and_each_single_break_fails(tag):
    for prompt in prompts_of_all_kinds():
        if prompt.tag == tag:
            assert evaluate(prompt, perfect(prompt)).correct, prompt.text
            breaks = list(broken(prompt))
            assert len(breaks) >= 2
            for kind, detections in breaks:
                verdict = evaluate(prompt, detections)
                assert not verdict.correct and verdict.reasons[0].kind == kind, (prompt.text, kind)


def test_judge_asks_the_detector_once_and_pairs_prompts_with_images():
    class Fixed:
        def detect(self, images):
            return [[found("cat")], [found("dog")]][: len(images)]

    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    cat, dog = P.single_object("cat"), P.single_object("dog")
    assert judge(Fixed(), images, [cat, dog]).tolist() == [True, True]
    assert judge(Fixed(), images, [dog, dog]).tolist() == [False, True]
    with pytest.raises(ValueError, match="one prompt for each image"):
        judge(Fixed(), images, [cat])


# --- scores ---
