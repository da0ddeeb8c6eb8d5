"""The static pages: every link leads somewhere, every picture says what it shows."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cotgen_lite.course.site import build_site, slug, sources_of, with_anchors, with_links
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


def test_anchors_are_githubs() -> None:
    assert slug("F1: zs-orm − baseline > 0") == "f1-zs-orm--baseline--0"
    html = '<h2 id="Two-commands">Two commands<a class="anchor-link" href="#Two-commands">¶</a></h2>'
    assert with_anchors(html) == html.replace("Two-commands", "two-commands")
    twice = with_anchors('<h3 id="PARM">PARM</h3><h3 id="PARM++">PARM++</h3>')
    assert re.findall(r'id="([^"]+)"', twice) == ["parm", "parm-1"]
    assert with_links('<a href="../README.md#results"><a href="a.ipynb"><a href="https://x.org/b.ipynb">') == (
        '<a href="../README.html#results"><a href="a.html"><a href="https://x.org/b.ipynb">'
    )
