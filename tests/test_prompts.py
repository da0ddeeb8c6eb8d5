"""Prompts: templates, plurals, meaning, the three sets, and GenEval's own records."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cotgen_lite import prompts as p

# One record of each tag as GenEval writes them, its odd plurals and articles included.
RECORDS = [
    {"tag": "single_object", "include": [{"class": "oven", "count": 1}], "prompt": "a photo of an oven"},
    {
        "tag": "two_object",
        "include": [{"class": "toaster", "count": 1}, {"class": "oven", "count": 1}],
        "prompt": "a photo of a toaster and an oven",
    },
    {
        "tag": "counting",
        "include": [{"class": "bench", "count": 4}],
        "exclude": [{"class": "bench", "count": 5}],
        "prompt": "a photo of four benchs",
    },
    {
        "tag": "counting",
        "include": [{"class": "bus", "count": 3}],
        "exclude": [{"class": "bus", "count": 4}],
        "prompt": "a photo of three buses",
    },
    {
        "tag": "colors",
        "include": [{"class": "orange", "count": 1, "color": "orange"}],
        "prompt": "a photo of an orange orange",
    },
    {
        "tag": "position",
        "include": [
            {"class": "skis", "count": 1},
            {"class": "hot dog", "count": 1, "position": ["above", 0]},
        ],
        "prompt": "a photo of a hot dog above a skis",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "wine glass", "count": 1, "color": "purple"},
            {"class": "apple", "count": 1, "color": "black"},
        ],
        "prompt": "a photo of a purple wine glass and a black apple",
    },
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["prompt"])
def test_record_and_sentence_say_the_same(record: dict) -> None:
    prompt = p.from_record(record)
    assert p.to_record(prompt) == record
    assert p.parse_prompt(record["prompt"], p.GENEVAL) == prompt


def test_every_geneval_record_round_trips() -> None:
    path = Path(os.environ.get("GENEVAL_JSONL", "not given"))
    if not path.exists():
        pytest.skip("GENEVAL_JSONL does not name GenEval's evaluation_metadata.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    read = p.read_geneval(path)
    assert len(rows) == 553
    assert [p.to_record(prompt) for prompt in read] == rows
    assert [p.parse_prompt(row["prompt"], p.GENEVAL) for row in rows] == read


def changed(record: dict, item: dict | None = None, **changes: Any) -> dict:
    return record | ({"include": [record["include"][0] | item, *record["include"][1:]]} if item else {}) | changes


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"tag": "colors"}, "'include' is missing"),
        ([1, 2], "JSON object"),
        (None, "JSON object"),
        (changed(RECORDS[4], tag="style"), "tag of a prompt must be one of"),
        (changed(RECORDS[4], tag=["colors"]), "tag of a prompt must be one of"),
        (changed(RECORDS[4], prompt=7), "text of a prompt"),
        (changed(RECORDS[4], include=[]), "requires nothing"),
        (changed(RECORDS[4], include="orange"), "must be a list"),
        (changed(RECORDS[4], include=["orange"]), "JSON object"),
        (changed(RECORDS[4], includes=[]), "no 'includes'"),
        (changed(RECORDS[4], {"class": "unicorn"}), "Unknown object 'unicorn'"),
        (changed(RECORDS[4], {"color": "mauve"}), "Unknown colour 'mauve'"),
        (changed(RECORDS[4], {"colour": "red"}), "no 'colour'"),
        (changed(RECORDS[4], {"count": 0}), "count of 'orange'"),
        (changed(RECORDS[4], {"count": 2.5}), "count of 'orange'"),
        (changed(RECORDS[4], {"count": float("nan")}), "count of 'orange'"),
        (changed(RECORDS[4], {"count": "2"}), "count of 'orange'"),
        (changed(RECORDS[2], {"count": 5}), "count of 'bench' must be a whole number from 1 to 4"),
        (changed(RECORDS[2], exclude=[{"class": "bench", "count": 6}]), "from 1 to 5"),
        (changed(RECORDS[2], exclude=[{"class": "unicorn", "count": 5}]), "Unknown object"),
        (changed(RECORDS[0], {"position": ["above", 0]}), "put the reference object first"),
        (changed(RECORDS[0], {"position": ["near", 0]}), "relation of 'oven'"),
    ],
)
def test_what_is_no_record_is_named_with_file_and_line(record: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps(RECORDS[0])}\n{json.dumps(record)}\n")
    with pytest.raises(ValueError, match=rf"Line 2 of .*prompts\.jsonl is not a GenEval record.*{says}"):
        p.read_geneval(path)


def test_records_of_other_names_are_read_with_them(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(changed(RECORDS[0], {"class": "unicorn"})))
    (prompt,) = p.read_geneval(path, p.Names(("unicorn",), ("red",)))
    assert prompt.include == (p.Requirement("unicorn"),)
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as Windows' editors do
    assert p.read_geneval(path, p.Names(("unicorn",), ("red",))) == [prompt]
    path.write_text("", encoding="utf-8-sig")
    with pytest.raises(ValueError, match="holds no record: give GenEval's jsonl file"):
        p.read_geneval(path)
    path.write_bytes(b"\xff")
    for wrong, says in ((path, "jsonl"), (None, "path of a jsonl file"), ([path], "path of a jsonl file")):
        with pytest.raises(ValueError, match=says):
            p.read_geneval(wrong)  # type: ignore[arg-type]


def test_equal_meanings() -> None:
    assert p.meaning(p.position("cat", "left of", "dog")) == p.meaning(p.position("dog", "right of", "cat"))
    assert p.meaning(p.position("cat", "above", "dog")) == p.meaning(p.position("dog", "below", "cat"))
    assert p.meaning(p.position("cat", "above", "dog")) != p.meaning(p.position("cat", "below", "dog"))
    assert p.meaning(p.two_object("cat", "dog")) == p.meaning(p.two_object("dog", "cat"))
    assert p.meaning(p.color_attr("cat", "red", "dog", "blue")) == p.meaning(p.color_attr("dog", "blue", "cat", "red"))
    assert p.meaning(p.color_attr("cat", "red", "dog", "blue")) != p.meaning(p.color_attr("cat", "blue", "dog", "red"))
    assert p.meaning(p.counting("cat", 2)) != p.meaning(p.counting("cat", 3))
    assert p.meaning_hash(p.single_object("bus")) == "86a15a68285f6a87"  # of the shipped list's form


def test_sets_are_disjoint_by_meaning_and_complete() -> None:
    sets = {split: p.lite_prompts(split) for split in ("train", "dev", "test")}
    meanings = [p.meaning(prompt) for prompts in sets.values() for prompt in prompts]
    assert len(meanings) == len(set(meanings))
    # 16 objects, 48 counts, 128 colours, 120 pairs, 480 relations, 120 pairs x 56 colourings
    assert len(meanings) == 16 + 120 + 48 + 128 + 480 + 6720
    counts = Counter(prompt.tag for prompt in sets["test"])
    assert [counts[tag] for tag in p.TAGS] == [8, 40, 24, 40, 60, 60]
    assert len(sets["dev"]) == 200
    assert all({prompt.tag for prompt in prompts} == set(p.TAGS) for prompts in sets.values())


def test_lite_prompts_parse_back() -> None:
    for prompt in p.lite_prompts("dev") + p.lite_prompts("test"):
        assert p.parse_prompt(prompt.text) == prompt


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a photo of a unicorn", "airplane"),
        ("a photo of a pink cat", "purple"),
        ("a photo of five cats", "four"),
        ("a photo of three unicorns", "cats"),
        ("a photo of a red cat and a dog", "neither"),
        ("a photo of a cat and a cat", "different"),
        ("a cat", "a photo of"),
    ],
)
def test_unknown_words_get_a_sentence_that_lists_what_exists(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        p.parse_prompt(text)


@pytest.mark.parametrize("split", ["validation", ["test"], None, 3])
def test_unknown_set(split: Any) -> None:
    with pytest.raises(ValueError, match="'train', 'dev', 'test'"):
        p.lite_prompts(split)


def test_numpy_values_become_plain_ones() -> None:
    prompt = p.counting(np.str_("cat"), np.int64(2))  # type: ignore[arg-type]
    assert prompt == p.counting("cat", 2) and repr(prompt) == repr(p.counting("cat", 2))
    listed = p.Requirement(np.str_("cat"), np.int64(1), np.str_("red"), [np.str_("above"), np.int64(0)])  # type: ignore[arg-type]
    assert repr(listed) == repr(p.Requirement("cat", 1, "red", ("above", 0)))
    assert repr(p.Prompt(np.str_("a"), "colors", [p.Requirement("cat")])) == repr(  # type: ignore[arg-type]
        p.Prompt("a", "colors", (p.Requirement("cat"),))
    )


HELD_OUT = {tag: next(prompt for prompt in p.lite_prompts("test") if prompt.tag == tag) for tag in p.TAGS}


def own_words(prompt: p.Prompt, **changes: Any) -> p.Prompt:
    return replace(prompt, text="in other words", **changes)


def with_names(prompt: p.Prompt, change: Callable[[str], str]) -> p.Prompt:
    items = tuple(replace(i, name=change(i.name), color=i.color and np.str_(i.color.upper())) for i in prompt.include)
    return own_words(prompt, include=items)


WAYS_PAST_THE_GUARD: dict[str, Callable[[p.Prompt], p.Prompt]] = {
    "as it is": lambda prompt: prompt,
    "other words": own_words,
    "numpy's strings": lambda prompt: with_names(prompt, np.str_),
    "capitals": lambda prompt: with_names(prompt, str.upper),
    "spaces": lambda prompt: with_names(prompt, lambda name: f"  {name}\u00a0"),
    "wide letters": lambda prompt: with_names(prompt, lambda name: chr(ord(name[0]) - ord("a") + 0xFF41) + name[1:]),
    "plurals": lambda prompt: with_names(prompt, p.plural),
    "plain plurals": lambda prompt: with_names(prompt, "{}s".format),
    "numpy's counts": lambda prompt: own_words(
        prompt, include=[replace(item, count=np.int64(item.count)) for item in prompt.include]
    ),
    "everything twice": lambda prompt: own_words(prompt, include=prompt.include * 2),
    "another tag": lambda prompt: own_words(prompt, tag="single_object"),
    "the sentence alone": lambda prompt: replace(prompt, include=(p.Requirement("cat", 9),)),
    "a loud sentence": lambda prompt: p.Prompt(f" {prompt.text.upper()} . ", "counting", (p.Requirement("cat", 9),)),
}


@pytest.mark.parametrize("way", WAYS_PAST_THE_GUARD)
@pytest.mark.parametrize("tag", p.TAGS)
def test_no_way_leads_past_the_held_out_prompts(tag: str, way: str) -> None:
    with pytest.raises(ValueError, match="asks what a dev or test prompt asks"):
        p.refuse_held_out([WAYS_PAST_THE_GUARD[way](HELD_OUT[tag])])


def test_the_guard_does_not_hang_on_the_order_of_requirements() -> None:
    for tag in ("two_object", "color_attr"):
        with pytest.raises(ValueError, match="asks what"):
            p.refuse_held_out([own_words(HELD_OUT[tag], include=HELD_OUT[tag].include[::-1])])


def test_the_guard_lets_training_prompts_pass_and_refuses_what_is_none() -> None:
    p.refuse_held_out(p.lite_prompts("train"))
    p.refuse_held_out([HELD_OUT["colors"]], held_out=set())
    for wrong in (HELD_OUT["colors"], "a photo of a cat", None, 3, ["a photo of a cat"], [None]):
        with pytest.raises(ValueError, match="Prompt"):
            p.refuse_held_out(wrong)  # type: ignore[arg-type]
    for held_out in ("0123456789abcdef", ["0123456789abcdef"], {1}, {"a photo of a cat"}):
        with pytest.raises(ValueError, match="set of hashes"):
            p.refuse_held_out([HELD_OUT["colors"]], held_out)  # type: ignore[arg-type]


CAT = p.Requirement("cat")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: p.Requirement(3), "name of what is required must be a text"),
        (lambda: p.Requirement(" "), "must not be empty"),
        (lambda: p.Requirement("cat", 0), "count of 'cat' must be a whole number"),
        (lambda: p.Requirement("cat", 2.0), "count of 'cat'"),
        (lambda: p.Requirement("cat", True), "count of 'cat'"),
        (lambda: p.Requirement("cat", 10**9), "from 1 to 100"),
        (lambda: p.Requirement("cat", color=["red"]), "colour of 'cat'"),
        (lambda: p.Requirement("cat", color=""), "colour of 'cat' must not be empty"),
        (lambda: p.Requirement("cat", position="left of"), "a relation and an index"),
        (lambda: p.Requirement("cat", position=("beside", 0)), "left of"),
        (lambda: p.Requirement("cat", position=("above", -1)), "index"),
        (lambda: p.Requirement("cat", position=("above", 0.0)), "index"),
        (lambda: p.Prompt(None, "colors", (CAT,)), "text of a prompt"),
        (lambda: p.Prompt("a", "style", (CAT,)), "tag of a prompt must be one of 'single_object'"),
        (lambda: p.Prompt("a", "colors", ()), "requires nothing"),
        (lambda: p.Prompt("a", "colors", CAT), "tuple of Requirements"),
        (lambda: p.Prompt("a", "colors", ("cat",)), "a Requirement"),
        (lambda: p.Prompt("a", "colors", (CAT,), ("cat",)), "`exclude`"),
        (lambda: p.Prompt("a", "position", (replace(CAT, position=("above", 0)),)), "put the reference object first"),
        (lambda: p.Names((), ("red",)), "at least one"),
        (lambda: p.Names(("cat", "cat"), ("red",)), "twice"),
        (lambda: p.Names(("cat",), 3), "colors of names"),
        (lambda: p.Names(("cat",), ("red",), (("cat", "cats", "kittens"),)), "name and its plural"),
        (lambda: p.single_object(3), "object must be a text"),
        (lambda: p.single_object("cat", "coco"), "Names, as GENEVAL"),
        (lambda: p.colored("cat", np.array(["red"])), "colour must be a text"),
        (lambda: p.counting("cat", 2.0), "count must be a whole number"),
        (lambda: p.counting("cat", 5), "use 2, 3 or 4"),
        (lambda: p.position("cat", "beside", "dog"), "one of 'left of'"),
        (lambda: p.parse_prompt(None), "prompt must be a text"),
        (lambda: p.parse_prompt("a photo of a cat " * 10**5), "at most 500 characters"),
        (lambda: p.plural(""), "must not be empty"),
        (lambda: p.meaning("a photo of a cat"), "must be a Prompt"),
        (lambda: p.each_prompt({p.single_object("cat")}), "prompts must be a list, as their order counts, got"),
        (lambda: p.each_prompt({p.single_object("cat"): 1}.keys()), "prompts must be a list, as their order counts"),
        (lambda: p.to_record({"tag": "colors"}), "must be a Prompt"),
    ],
)
def test_what_is_no_prompt_gets_one_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_sentence_may_be_spaced_otherwise() -> None:
    assert p.parse_prompt(" a photo  of a\tcat\n") == p.single_object("cat")


@pytest.mark.parametrize("path", ["no.jsonl", "."])
def test_a_file_of_records_that_cannot_be_read_is_named(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot be read \(.+\): give GenEval's jsonl file"):
        p.read_geneval(tmp_path / path)


@pytest.mark.parametrize("phrase", ["", " ", 3, None])
def test_an_article_needs_a_word(phrase):
    with pytest.raises(ValueError, match="A phrase must"):
        p.with_article(phrase)
