"""The static pages: every link leads somewhere, every picture says what it shows."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest

from cotgen_lite.course.site import build_site, harmless, main, slug, sources_of, with_anchors, with_links
from cotgen_lite.hub import data_root

ROOT = data_root().parent


class Page(HTMLParser):
    """What a page links to, shows and can be linked at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag == "img":
            self.images.append(given)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    out = tmp_path_factory.mktemp("site")
    return {path: Page(path.read_text(encoding="utf-8")) for path in build_site(ROOT, out)}


def test_every_source_is_a_page_and_readme_the_contents(pages: dict[Path, Page]) -> None:
    assert len(pages) == len(sources_of(ROOT)) + 1
    (index,) = (page for path, page in pages.items() if path.name == "index.html")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.stem}.html" in index.links
        (chapter,) = (page for path, page in pages.items() if path.stem == notebook.stem)
        assert "../index.html" in chapter.links


def test_every_relative_link_leads_to_a_page_and_a_place_on_it(pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"
            count += 1
    assert count > 100


def test_every_picture_has_an_alt_text_and_is_there(pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        for image in page.images:
            assert len(str(image.get("alt") or "").split()) >= 3, path.name
            source = str(image["src"])
            if not source.startswith(("data:", "http")):
                assert (path.parent / source).exists(), f"{path.name}: {source}"
            count += 1
    assert count > 50


HARM = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<a href='javascript:alert(1)'>here</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>here</a>",
    "<svg onload=alert(1)></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<p style='background: url(javascript:alert(1))'>x</p>",
    "</div></body><script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</script>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "<form action='javascript:alert(1)'><button>x</button></form>",
    "<math><mtext><script>alert(1)</script></mtext></math>",
]
KEPT = [
    "<details><summary>Solution</summary>\n\n```python\nx = 1 if 2 < 3 else None\n```\n\n</details>",
    "| a | b |\n|---|---|\n| 1 | **2** |",
]


class Harm(HTMLParser):
    """What of a page a browser would run: places where a planted alert stands."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        acts = {key: str(value) for key, value in attrs if key.startswith("on") or key in ("href", "action", "style")}
        self.found += [f"{tag} {key}" for key, value in acts.items() if "alert(1)" in value]
        self.found += [tag] if tag in ("form", "button", "svg") else []

    def handle_data(self, data: str) -> None:
        self.found += ["script"] if self.cdata_elem and "alert(1)" in data else []


def shown(cells: list[nbformat.NotebookNode]) -> str:
    return harmless(nbformat.v4.new_notebook(cells=cells))


def test_nothing_in_a_notebook_runs_in_a_readers_browser() -> None:
    assert Harm(HARM[0]).found and Harm(HARM[1]).found and Harm(HARM[2]).found  # it would be seen
    kinds = ("text/html", "text/markdown", "image/svg+xml", "application/javascript", "text/latex", "text/plain")
    for harm in HARM:
        outputs = [nbformat.v4.new_output("display_data", {kind: harm}) for kind in kinds]
        outputs.append(nbformat.v4.new_output("display_data", {"image/png": f'"><{harm}'}))
        wide = {"image/png": {"width": "1 onerror=alert(1)", "alt": f'"{harm}'}}
        outputs.append(nbformat.v4.new_output("display_data", {"image/png": "aGk="}, metadata=wide))
        framed = {"text/html": {"isolated": True}}
        outputs.append(nbformat.v4.new_output("display_data", {"text/html": harm}, metadata=framed))
        outputs.append(nbformat.v4.new_output("stream", text=harm))
        outputs.append(nbformat.v4.new_output("error", ename=harm, evalue=harm, traceback=[harm]))
        code = nbformat.v4.new_code_cell(harm, outputs=outputs, metadata={"tags": [f'">{harm}'.replace(",", "")]})
        raw = nbformat.v4.new_raw_cell(harm, metadata={"raw_mimetype": "text/html"})
        assert not Harm(shown([nbformat.v4.new_markdown_cell(f"# A\n\n{harm}"), code, raw])).found, harm


def test_tables_figures_and_folds_are_shown() -> None:
    table = pd.DataFrame({"a": [1]})._repr_html_()
    figure = {"image/png": {"alt": 'a line & a "quote"'}}
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": table}),
        nbformat.v4.new_output("display_data", {"image/png": "aGk="}, metadata=figure),
    ]
    html = shown(
        [nbformat.v4.new_markdown_cell(one) for one in KEPT] + [nbformat.v4.new_code_cell("", outputs=outputs)]
    )
    assert "<details><summary>Solution</summary>" in html and "</details>" in html
    assert html.count("<table") == 2 and 'class="dataframe"' in html and "<strong>2</strong>" in html
    assert [image["alt"] for image in Page(html).images] == ['a line & a "quote"']
    assert '<span class="o">&lt;</span>' in html  # code, with its colours, is escaped once


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--out", 2)])
def test_an_option_is_no_folder(
    argument: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([argument])
    assert end.value.code == status and not list(tmp_path.iterdir()) and "usage:" in "".join(capsys.readouterr())


def test_anchors_are_githubs() -> None:
    assert slug("F1: zs-orm − baseline > 0") == "f1-zs-orm--baseline--0"
    html = '<h2 id="Two-commands">Two commands<a class="anchor-link" href="#Two-commands">¶</a></h2>'
    assert with_anchors(html) == html.replace("Two-commands", "two-commands")
    twice = with_anchors('<h3 id="PARM">PARM</h3><h3 id="PARM++">PARM++</h3>')
    assert re.findall(r'id="([^"]+)"', twice) == ["parm", "parm-1"]
    assert with_links('<a href="../README.md#results"><a href="a.ipynb"><a href="https://x.org/b.ipynb">') == (
        '<a href="../README.html#results"><a href="a.html"><a href="https://x.org/b.ipynb">'
    )
