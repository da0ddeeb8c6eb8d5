"""The page for whoever makes a world of their own: its world, its command, its lines and its figures."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cotgen_lite.experiments import build
from cotgen_lite.experiments.configs import SMALL
from cotgen_lite.hub import SHIPPED, restore
from cotgen_lite.prompts import TAGS

PAGE = (SHIPPED.parent / "notebooks/YOUR_WORLD.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


WORLD = json.loads(blocks("json")[0])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's world and nothing else."""
    monkeypatch.setenv("COTGEN_DATA", "")  # which the build sets
    folder = tmp_path / "mine"
    (folder / "world").mkdir(parents=True)
    shutil.copy(SHIPPED / "world/objects.ttf", folder / "world")
    (folder / "world/world.json").write_text(json.dumps(WORLD))
    return folder


AT_TOY_SIZE = """
import sys
from dataclasses import replace
from cotgen_lite.experiments import build
from cotgen_lite.experiments.configs import QUICK, SMALL
build.SMALL = replace(QUICK, flag=SMALL.flag, steps=SMALL.steps)
build.main(["--small", "--out", sys.argv[1]])
"""


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    """The page's command at toy size, in a process of its own: a process has one world."""
    return subprocess.run([sys.executable, "-c", AT_TOY_SIZE, str(folder)], capture_output=True, text=True)


@pytest.mark.slow
def test_the_pages_world_is_made_by_its_command_and_looked_at_by_its_lines(mine: Path) -> None:
    first = make(mine)
    assert first.returncode == 0, first.stderr
    assert {path.name for path in (mine / "models").iterdir()} == {"generator", "judge", "tokenizer", "words"}
    assert make(mine).stdout.count("there already") == len(SMALL.steps)
    for lines in blocks("python"):
        run = subprocess.run([sys.executable, "-c", lines], cwd=mine.parent, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    assert min((mine / f"{name}.png").stat().st_size for name in ("icons", "samples", "steps")) > 1_000
    measured = json.loads((mine.parent / "own_world.json").read_text())
    assert measured.keys() == json.loads((SHIPPED / "results/own_world.json").read_text()).keys()
    assert "make it again with `python -m cotgen_lite.build --small --out" in restore(mine)
    (mine / "world/world.json").write_text(json.dumps(WORLD | {"background": [255, 255, 255]}))
    assert "world.json is not what the models in" in make(mine).stderr


def test_the_pages_objects_are_in_the_font_and_not_those_of_the_second_world() -> None:
    assert len(WORLD["objects"]) == 6 and len(WORLD["colors"]) == 4
    assert not set(WORLD["objects"]) & set(json.loads((SHIPPED / "next/world/world.json").read_text())["objects"])
    icons = json.loads((SHIPPED / "world/icons.json").read_text())
    assert all(about["glyph"] == icons[name]["codepoint"] for name, about in WORLD["objects"].items())


def test_the_page_says_what_was_measured() -> None:
    measured = json.loads((SHIPPED / "results/own_world.json").read_text())
    assert set(measured["baseline"]["tags"]) == set(TAGS)
    for tag, (right, low, high) in measured["baseline"]["tags"].items():
        assert f"| `{tag}` | {right:.2f} | {low:.2f} to {high:.2f} |" in PAGE
    assert measured["baseline"]["tags"]["single_object"][0] > 0.8
    assert measured["images_a_prompt"] == SMALL.pool_size == 8
    assert set(measured["seconds"]) == set(SMALL.steps)
    assert f"{sum(measured['seconds'].values()) / 60:.0f} minutes" in PAGE


BUS_AND_TRAIN = {"bus": {"glyph": "F00E7", "plural": "buses"}, "train": {"glyph": "F052C", "plural": "trains"}}
NO_PLURAL = {"castle": {"glyph": "F011A"}}
NO_POSITION = WORLD["prompts"] | {"dev": WORLD["prompts"]["dev"] | {"position": 0}}
TWO_COLORS = {"red": [214, 39, 40], "blue": [30, 110, 235]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "does not describe a world"),
        (json.dumps(WORLD | {"objects": WORLD["objects"] | NO_PLURAL}), "it lacks 'plural'"),
        (json.dumps(WORLD | {"objects": WORLD["objects"] | BUS_AND_TRAIN}), "The icons of bus and train are too much"),
        (json.dumps(WORLD | {"colors": TWO_COLORS}), "The world has 12 colors prompts, of which 16"),
        (json.dumps(WORLD | {"prompts": NO_POSITION}), "None of the 66 prompts asks for left/right"),
    ],
)
def test_a_world_that_cannot_be_learned_is_refused_before_anything_is_made(text: str, says: str, mine: Path) -> None:
    (mine / "world/world.json").write_text(text)
    run = make(mine)
    assert run.returncode == 1 and says in run.stderr and len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert [path.name for path in mine.iterdir()] == ["world"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--small"], "--small wants"),
        (["--small", "--out", str(SHIPPED)], "--small wants"),
        (["--small", "--out", str(SHIPPED / "next")], "--small wants"),
        (["--small", "--quick", "--out", "mine"], "--small wants"),
        (["--small", "--all"], "--small wants"),
        (["--small", "--out", "nowhere"], "nowhere/world/world.json is missing: put a world there first"),
    ],
)
def test_the_command_wants_a_folder_with_a_world(
    arguments: list[str], says: str, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(mine.parent)
    with pytest.raises(SystemExit) as left:
        build.main(arguments)
    assert says in f"{left.value.code} {capsys.readouterr().err}"
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]
