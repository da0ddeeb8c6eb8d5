"""The course as static pages, to be read without running anything: `make site`, then open build/site/index.html.

The pages lie as the files do, so that links between them hold; notebooks and markdown become HTML.
"""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors.sanitize import SanitizeHTML
from tqdm import tqdm

from cotgen_lite.hub import data_root, write_atomically

HEADING = re.compile(r'(<h[1-6][^>]*? id=")([^"]+)(".*?</h[1-6]>)', re.DOTALL)
LINK = re.compile(r'(href="(?!https?:|mailto:|#|data:)[^"#]*?)\.(?:ipynb|md)(?=[#"])')
# What a page may hold; all other tags are shown as text. So nothing in a notebook runs in a reader's browser.
TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5
    h6 hr i img kbd li ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul"""
ATTRIBUTES = {"*": ["class", "id", "title", "style"], "a": ["href"], "img": ["src", "alt", "width", "height"]}
ATTRIBUTES |= {"details": ["open"], "ol": ["start"], "table": ["border"]}
ATTRIBUTES |= {cell: ["colspan", "rowspan", "align", "valign"] for cell in ("td", "th")}
BODY, WAY_BACK = re.compile(r"<body[^>]*>"), r'\g<0><p style="margin: 1em"><a href="../index.html">← Contents</a></p>'


def build_site(root: Path, out: Path) -> list[Path]:
    """Write every notebook and page of a repository as HTML, with what they show; returns the pages. root: the
    repository; out: where to. README.md is the contents page, README.html and index.html alike."""
    pages = []
    for source in tqdm(sources_of(root), desc="pages"):
        text = source.read_text(encoding="utf-8")
        page = [nbformat.v4.new_markdown_cell(text)]
        notebook = nbformat.reads(text, 4) if source.suffix == ".ipynb" else nbformat.v4.new_notebook(cells=page)
        notebook.metadata["title"] = notebook.cells[0].source.splitlines()[0].lstrip("# ")
        html = with_links(with_anchors(harmless(notebook)))
        target = out / source.relative_to(root).with_suffix(".html")
        write_atomically(target, html if source == root / "README.md" else BODY.sub(WAY_BACK, html, count=1))
        pages.append(target)
    write_atomically(out / "index.html", (out / "README.html").read_text(encoding="utf-8"))
    for name in ("LICENSE", "data/figures/overview.png"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, out / name)
    return [*pages, out / "index.html"]


def harmless(notebook: nbformat.NotebookNode) -> str:
    """A notebook as HTML, by a template that keeps alt texts; of HTML in its texts and outputs, what is in TAGS."""
    cleaner = SanitizeHTML(tags=TAGS.split(), attributes=ATTRIBUTES)
    exporter = HTMLExporter(template_name="classic", sanitize_html=True)
    exporter.register_filter("clean_html", lambda html: cleaner.sanitize_html_tags(str(html)))
    for output in (one for cell in notebook.cells for one in cell.get("outputs", ()) if "metadata" in one):
        alts = {kind: one.get("alt") for kind, one in output.metadata.items() if isinstance(one, dict)}
        output.metadata = {kind: {"alt": str(alt)} for kind, alt in alts.items() if alt}  # the template trusts the rest
    return exporter.from_notebook_node(notebook)[0]


def sources_of(root: Path) -> list[Path]:
    """What becomes a page: the READMEs, how to contribute, and all notebooks and pages beside them."""
    beside = [*sorted(root.glob("notebooks/*.md")), *sorted(root.glob("notebooks/*.ipynb"))]
    return [*(root / name for name in ("README.md", "data/README.md", ".github/CONTRIBUTING.md")), *beside]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading: lower case, without punctuation, with hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def with_anchors(html: str) -> str:
    """HTML whose headings have GitHub's anchors, numbered where they repeat, in place of nbconvert's."""
    seen: dict[str, int] = {}

    def anchored(match: re.Match[str]) -> str:
        text = re.sub(r"<a class=\"anchor-link\".*?</a>|<[^>]+>", "", f"<h {match[3][1:]}", flags=re.DOTALL)
        base = slug(text.strip())
        seen[base] = seen.get(base, -1) + 1
        anchor = f"{base}-{seen[base]}" if seen[base] else base
        return match[1] + anchor + re.sub(r'href="#[^"]*"', f'href="#{anchor}"', match[3], count=1)

    return HEADING.sub(anchored, html)


def with_links(html: str) -> str:
    """HTML whose relative links to notebooks and markdown pages lead to their pages."""
    return LINK.sub(r"\1.html", html)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the site into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="The course as static pages.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/site"), help="default: build/site")
    out = parser.parse_args(arguments).folder
    build_site(data_root().parent, out)
    print(f"open {out / 'index.html'} in a browser")


if __name__ == "__main__":
    main()
