"""Prompts: templates, plurals, meaning, the three sets, and GenEval's own records."""

import json
import os
from collections import Counter
from pathlib import Path

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


def test_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + '\n{"tag": "colors"}\n')
    with pytest.raises(ValueError, match="Line 2"):
        p.read_geneval(path)


def test_equal_meanings() -> None:
    assert p.meaning(p.position("cat", "left of", "dog")) == p.meaning(p.position("dog", "right of", "cat"))
    assert p.meaning(p.position("cat", "above", "dog")) == p.meaning(p.position("dog", "below", "cat"))
    assert p.meaning(p.position("cat", "above", "dog")) != p.meaning(p.position("cat", "below", "dog"))
    assert p.meaning(p.two_object("cat", "dog")) == p.meaning(p.two_object("dog", "cat"))
    assert p.meaning(p.color_attr("cat", "red", "dog", "blue")) == p.meaning(p.color_attr("dog", "blue", "cat", "red"))
    assert p.meaning(p.color_attr("cat", "red", "dog", "blue")) != p.meaning(p.color_attr("cat", "blue", "dog", "red"))
    assert p.meaning(p.counting("cat", 2)) != p.meaning(p.counting("cat", 3))


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


def test_unknown_set() -> None:
    with pytest.raises(ValueError, match="train"):
        p.lite_prompts("validation")
