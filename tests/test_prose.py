"""Pages and chapters are spelt the British way and name files that are there; `make lint` looks for misspelt words."""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from cotgen_lite.course.cards import ALPHABET, ONLOOKERS

ROOT = Path(__file__).resolve().parent.parent
FENCED = re.compile(r"```.*?```", re.DOTALL)
CODE = re.compile(r"`[^`]+`|<[a-z/!|][^>]*>|(?<=\])\([^)]*\)|https?://\S+|\$+[^$]+\$+")
AMERICAN = re.compile(
    r"\b((?:col|fav|neighb|behavi)or(?:ed|ing|ful|ite|ites|hood)?|cent(?:er|ers|ered|ering)|gray|"
    r"(?:label|model|travel|cancel)(?:ed|ing)|(?!resiz)[a-z]{3,}iz(?:e|es|ed|ing|ations?))\b"
)
FILE_NAME = re.compile(r"`(?!build/)((?:\.?\w[\w.-]*/)+[\w.-]*|\w[\w-]*\.(?:jsonl?|md|txt|yml|toml))`")
NAMING_FILES = ("README.md", "data/README.md", ".github/CONTRIBUTING.md", "notebooks/TEACHING.md")


def prose() -> Iterator[tuple[str, str]]:
    """Each page and each chapter's markdown with its name, with a 0 for each stretch of code."""
    for pattern in ("*.md", "data/*.md", "notebooks/*.md", ".github/**/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            yield path.name, CODE.sub(" 0 ", FENCED.sub(" 0 ", path.read_text(encoding="utf-8")))
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                yield path.name, CODE.sub(" 0 ", FENCED.sub(" 0 ", cell.source))


def test_pages_spell_the_british_way() -> None:
    assert not [(place, found[0]) for place, text in prose() for found in AMERICAN.finditer(text)]


def test_no_word_stands_twice_in_a_row() -> None:
    assert not [(place, found[0]) for place, text in prose() for found in re.finditer(r"(?i)\b([a-z]+)\s+\1\b", text)]


def test_files_that_pages_name_or_link_are_there() -> None:
    for page in NAMING_FILES:
        text, folder = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8")), (ROOT / page).parent
        named = FILE_NAME.findall(text)
        assert named, page
        for name in named:
            in_data = "/" not in name and any(ROOT.glob(f"data/**/{name}"))
            places = (ROOT / name, folder / name, ROOT / "cotgen_lite" / name)
            assert in_data or any(place.exists() for place in places), f"{page}: {name}"
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (folder / link).exists(), f"{page}: {link}"


def test_cards_that_chapters_share_are_word_for_word_the_same() -> None:
    for first, card in (("<details><summary>The letters of this course", ALPHABET), ("| onlooker |", ONLOOKERS)):
        texts = [
            cell.source
            for path in sorted(ROOT.glob("notebooks/*.ipynb"))
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "markdown" and first in cell.source
        ]
        assert texts and all(card in text for text in texts)
