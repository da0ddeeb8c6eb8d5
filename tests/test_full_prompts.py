"""The full scale's prompts: 200 objects in plain English, 13,000 distinct prompts, none that GenEval tests."""

import hashlib
import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from cotgen_lite import prompts as p
from cotgen_lite.full_scale import prompts as f
from cotgen_lite.hub import data_path

TEXTS_SHA256 = "fdfb3a14cca5f946bc92d27fac1c3a179ca352568c387a365178fa1ba52ffc41"
MEANINGS_SHA256 = "0c2f7768f0139569f1385d4d3c01fd167a534d4f900510155d60804b2ba1d49f"

# Plurals that English spelling does not give.
IRREGULAR = {
    "person": "people",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
    "computer mouse": "computer mice",
    "knife": "knives",
    "scarf": "scarves",
    "potato": "potatoes",
    "tomato": "tomatoes",
}


def spelled_plural(name: str) -> str:
    """The plural by the rules of English spelling."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def shipped_hashes() -> list[str]:
    return data_path(f.MEANINGS_FILE).read_text().splitlines()


def write_records(path: Path, prompts: list[p.Prompt]) -> Path:
    path.write_text("".join(json.dumps(p.to_record(prompt)) + "\n" for prompt in prompts))
    return path


def like_geneval() -> list[p.Prompt]:
    """As many prompts of each tag as GenEval has, of its names, but drawn by us; the last two ask for the same."""
    chosen = [
        prompt
        for tag, size in f.GENEVAL_SIZES.items()
        for prompt in islice(f._unseen(f._candidates(tag, p.GENEVAL), set()), size)
    ]
    (a, b) = chosen[-2].include
    return [*chosen[:-1], p.color_attr(b.name, str(b.color), a.name, str(a.color), p.GENEVAL)]


def test_two_hundred_objects_geneval_among_them() -> None:
    names = f.everyday_names()
    assert len(names.objects) == len(set(names.objects)) == 200
    assert set(p.GENEVAL.objects) <= set(names.objects)
    assert names.colors == p.GENEVAL.colors
    assert list(names.objects) == sorted(names.objects)
    assert all(name == " ".join(name.split()).lower() for name in names.objects)


def test_plurals_are_english() -> None:
    names = f.everyday_names()
    assert {name: p.plural(name, names) for name in names.objects} == {
        name: IRREGULAR.get(name, spelled_plural(name)) for name in names.objects
    }
    assert set(IRREGULAR) <= set(names.objects)
    assert not [name for name, several in names.plurals if several == p.plural(name)]  # listed only where needed
    assert len({p.plural(name, names) for name in names.objects}) == 200


def test_articles_are_english() -> None:
    """`with_article` goes by the first letter; none of these may start with a vowel's letter but not its sound."""
    names = f.everyday_names()
    assert not [name for name in names.objects if name.startswith(("eu", "hour", "one", "uk", "uni", "us", "x"))]


def test_thirteen_thousand_prompts() -> None:
    prompts = f.full_prompts()
    assert len(prompts) == 13_000
    assert Counter(prompt.tag for prompt in prompts) == {
        "single_object": 120,
        "two_object": 3488,
        "counting": 520,
        "colors": 1896,
        "position": 3488,
        "color_attr": 3488,
    }
    assert len({p.meaning(prompt) for prompt in prompts}) == 13_000


def test_prompts_of_one_thing_are_all_that_geneval_leaves() -> None:
    names, hashes = f.everyday_names(), set(shipped_hashes())
    everything = [
        *(p.single_object(name, names) for name in names.objects),
        *(p.counting(name, count, names) for name in names.objects for count in (2, 3, 4)),
        *(p.colored(name, color, names) for name in names.objects for color in names.colors if name != "person"),
    ]
    left = {prompt for prompt in everything if f.meaning_hash(prompt) not in hashes}
    assert left == {prompt for prompt in f.full_prompts() if prompt.tag in ("single_object", "counting", "colors")}


def test_objects_colors_and_relations_come_up_about_equally_often() -> None:
    asked = [item for prompt in f.full_prompts() for item in prompt.include]
    objects = Counter(item.name for item in asked)
    assert len(objects) == 200 and min(objects.values()) > 60
    colors = Counter(item.color for item in asked if item.color)
    assert set(colors) == set(p.GENEVAL.colors) and min(colors.values()) > 800
    relations = Counter(item.position[0] for item in asked if item.position)
    assert set(relations) == set(p.RELATIONS) and min(relations.values()) > 800
    assert not [item for item in asked if item.name == "person" and item.color]


def test_color_attr_takes_two_colors() -> None:
    pairs = [prompt.include for prompt in f.full_prompts() if prompt.tag == "color_attr"]
    assert all(a.color != b.color for a, b in pairs)


def test_none_is_a_prompt_of_geneval() -> None:
    hashes = shipped_hashes()
    assert len(hashes) == len(set(hashes)) == f.GENEVAL_MEANINGS == 552
    assert hashes == sorted(hashes)
    assert hashlib.sha256("\n".join(hashes).encode()).hexdigest() == MEANINGS_SHA256
    assert f.geneval_meanings() == set(hashes)
    assert not set(hashes) & {f.meaning_hash(prompt) for prompt in f.full_prompts()}


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a bench",
        "a photo of three people",
        "a photo of four benches",
        "a photo of an orange orange",
        "a photo of a green computer mouse",
        "a photo of a laptop left of a cow",
        "a photo of a cow right of a laptop",
        "a photo of a bear and a person",
        "a photo of a brown tie and a red skis",
    ],
)
def test_what_geneval_asks_for_is_refused(text: str) -> None:
    prompt = p.parse_prompt(text, f.everyday_names())
    assert f.meaning_hash(prompt) in shipped_hashes()
    assert p.meaning(prompt) not in {p.meaning(other) for other in f.full_prompts()}


def test_same_prompts_on_every_call() -> None:
    first = f.full_prompts()
    f.full_prompts.cache_clear()
    assert f.full_prompts() == first and f.full_prompts() is not first
    texts = "\n".join(prompt.text for prompt in first)
    assert hashlib.sha256(texts.encode()).hexdigest() == TEXTS_SHA256


def test_every_prompt_parses_back() -> None:
    names = f.everyday_names()
    assert not [prompt for prompt in f.full_prompts() if p.parse_prompt(prompt.text, names) != prompt]


def test_command_makes_the_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prompts = like_geneval()
    path = write_records(tmp_path / "records.jsonl", prompts)
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    f.main([str(path)])
    lines = (tmp_path / f.MEANINGS_FILE).read_text().splitlines()
    expected = {hashlib.sha256(repr(p.meaning(prompt)).encode()).hexdigest()[:16] for prompt in prompts}
    assert lines == sorted(expected) and len(lines) == 552
    assert f.forbidden_meanings(path) == expected
    assert "552 meanings" in capsys.readouterr().out


def test_shipped_hashes_are_those_of_geneval_itself() -> None:
    path = Path(os.environ.get("GENEVAL_JSONL", "not given"))
    if not path.exists():
        pytest.skip("GENEVAL_JSONL does not name GenEval's evaluation_metadata.jsonl")
    assert sorted(f.forbidden_meanings(path)) == shipped_hashes()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "holds no record"),
        (b"a photo of a cat\n", "Line 1"),
        (b"[1, 2]\n", "Line 1"),
        (b'{"tag": "colors"}\n', "Line 1"),
        (b"\xff\xfe\x00", "utf-8"),
    ],
)
def test_another_file_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, content: bytes, hint: str
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"not GenEval's list .*{hint}.*evaluation_metadata\.jsonl"):
        f.forbidden_meanings(path)
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    with pytest.raises(SystemExit):
        f.main([str(path)])
    assert "evaluation_metadata.jsonl" in capsys.readouterr().err
    assert not (tmp_path / f.MEANINGS_FILE).exists()


def test_prompts_of_geneval_form_are_not_enough(tmp_path: Path) -> None:
    for prompts in (like_geneval()[:-1], list(p.lite_prompts("test"))):
        with pytest.raises(ValueError, match="80, 99, 80, 94, 100, 100"):
            f.forbidden_meanings(write_records(tmp_path / "records.jsonl", prompts))


def test_damaged_hashes_do_not_let_test_prompts_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / f.OBJECTS_FILE).write_text(data_path(f.OBJECTS_FILE).read_text())
    (tmp_path / f.MEANINGS_FILE).write_text("\n".join(shipped_hashes()[:-1]))
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    f.full_prompts.cache_clear()
    with pytest.raises(ValueError, match=r"551 hashes, not 552.*git -C"):
        f.full_prompts()
