"""Prose is spelt right, the British way, and names files that are there.

Read are pages, notebooks, and the package's docstrings, comments and texts: strings with a space in them, so error
messages, alt texts and captions. Not read are code in backticks, addresses, tags, formulas, and names: words with a
digit, an underscore, a dot or a capital inside. Words that the course needs and the dictionary lacks are in words.txt.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from spellchecker import SpellChecker

ROOT = Path(__file__).resolve().parent.parent
OWN_WORDS = (ROOT / "tests/words.txt").read_text(encoding="utf-8").splitlines()
Place = tuple[str, str]  # where, and the prose that stands there
FENCED = re.compile(r"```.*?```", re.DOTALL)
NOT_PROSE = re.compile(r"`[^`]+`|<[a-z/!|][^>]*>|(?<=\])\([^)]*\)|https?://\S+|\$+[^$]+\$+")
WORD = re.compile(r"\w+(?:['’.]\w+)*")
AMERICAN = re.compile(
    r"(?:col|fav|neighb|behavi)or(?:s|ed|ing|ful|ite|ites|hood)?|cent(?:er|ers|ered|ering)|gray|"
    r"(?:label|model|travel|cancel)(?:ed|ing)|(?!resiz)[a-z]{3,}iz(?:e|es|ed|ing|ations?)"
)
FILE_NAME = re.compile(r"`(?!build/)((?:\.?\w[\w.-]*/)+[\w.-]*|\w[\w-]*\.(?:jsonl?|md|txt|yml|toml))`")
NAMING_FILES = ("README.md", "data/README.md", ".github/CONTRIBUTING.md", "notebooks/TEACHING.md")


def prose(root: Path) -> Iterator[Place]:
    """All that is read, with a 0 for each stretch of code."""
    for place, text in (*pages(root), *package(root)):
        yield place, NOT_PROSE.sub(" 0 ", FENCED.sub(" 0 ", text))


def pages(root: Path) -> Iterator[Place]:
    """Pages and forms whole; of notebooks each cell's text, in code comments and strings."""
    for pattern in ("*.md", "data/*.md", "notebooks/*.md", ".github/**/*.md", ".github/**/*.yml"):
        for path in sorted(root.glob(pattern)):
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted(root.glob("notebooks/*.ipynb")):
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            texts = [cell.source] if cell.cell_type == "markdown" else texts_of(cell.source)
            yield from ((f"notebooks/{path.name}, cell {i}", text) for text in texts)


def package(root: Path) -> Iterator[Place]:
    """Docstrings, comments and texts of the package."""
    for path in sorted(root.glob("cotgen_lite/**/*.py")):
        yield from ((path.relative_to(root).as_posix(), text) for text in texts_of(path.read_text(encoding="utf-8")))


def texts_of(source: str) -> list[str]:
    """Comments, and strings with a space in them; a value in an f-string counts as a 0."""
    source = re.sub(r"^( *)!.*", r"\1pass", source, flags=re.MULTILINE)  # a notebook's shell commands
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    tree, strings, parts = ast.parse(source), [], set()
    for node in ast.walk(tree):  # an f-string comes before its parts
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            strings.append("".join(str(p.value) if isinstance(p, ast.Constant) else "0" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            strings.append(node.value)
    return comments + [text for text in strings if " " in text]


def words_of(text: str) -> Iterator[str]:
    """The words in lower case, without a genitive's s; no names."""
    for word in WORD.findall(text):
        word = re.sub(r"['’]s?$", "", word).replace("’", "'")
        if re.fullmatch(r"[A-Za-z][a-z']+", word):
            yield word.lower()


def places_of(places: list[Place]) -> dict[str, list[str]]:
    """Where each word stands."""
    found: dict[str, list[str]] = {}
    for place, text in places:
        for word in words_of(text):
            found.setdefault(word, []).append(place)
    return found


def unknown(places: list[Place], dictionary: SpellChecker) -> dict[str, str]:
    """Words that the dictionary lacks, and the first place where each stands."""
    return {word: where[0] for word, where in places_of(places).items() if word not in dictionary}


@pytest.fixture(scope="module")
def course() -> list[Place]:
    return list(prose(ROOT))


@pytest.fixture(scope="module")
def dictionary() -> SpellChecker:
    return SpellChecker()


def test_every_word_is_known(course: list[Place], dictionary: SpellChecker) -> None:
    wrong = {word: place for word, place in unknown(course, dictionary).items() if word not in OWN_WORDS}
    assert not wrong, f"correct it, or add it to tests/words.txt: {wrong}"


def test_no_own_word_is_superfluous(course: list[Place], dictionary: SpellChecker) -> None:
    needed = unknown(course, dictionary).keys()
    assert sorted(set(OWN_WORDS)) == OWN_WORDS
    assert set(OWN_WORDS) <= needed, f"not needed in tests/words.txt: {set(OWN_WORDS) - needed}"


def test_pages_spell_the_british_way(course: list[Place]) -> None:
    read = places_of([(place, text) for place, text in course if not place.startswith("cotgen_lite/")])
    american = {word: where for word, where in read.items() if AMERICAN.fullmatch(word)}
    american.pop("colors")  # the name of one of GenEval's tags
    assert not american


def test_no_word_stands_twice_in_a_row(course: list[Place]) -> None:
    for place, text in course:
        twice = re.search(r"(?i)\b([a-z]+)\s+\1\b", text)
        assert not twice, f"{place}: {twice[0]}"


def test_files_that_pages_name_or_link_are_there() -> None:
    for page in NAMING_FILES:
        text, folder = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8")), (ROOT / page).parent
        named = FILE_NAME.findall(text)
        assert named, page
        for name in named:
            in_data = "/" not in name and any(ROOT.glob(f"data/**/{name}"))
            assert (ROOT / name).exists() or (folder / name).exists() or in_data, f"{page}: {name}"
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (folder / link).exists(), f"{page}: {link}"


def test_a_typo_is_found_and_code_is_not_read(tmp_path: Path, dictionary: SpellChecker) -> None:
    text = """A verifer's [pge](htps://xyzzy) `prmpt` <b clss="x">CamlCase</b> snke_case a1gorithm lgits.py Picures.

```
fnced
```"""
    code = '!pip instal qqq\nshow(f"A figre, {n}nths of it", "wrng")  # a commnt'
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(code)]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks/x.ipynb")
    (tmp_path / "cotgen_lite").mkdir()
    (tmp_path / "cotgen_lite/y.py").write_text('"""Dra it."""\n')
    first, second = "notebooks/x.ipynb, cell 0", "notebooks/x.ipynb, cell 1"
    typos = {"verifer": first, "pge": first, "picures": first, "commnt": second, "figre": second}
    assert unknown(list(prose(tmp_path)), dictionary) == typos | {"dra": "cotgen_lite/y.py"}
