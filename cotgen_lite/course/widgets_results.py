"""The explorer of chapter 11: any two methods side by side, by tag."""

from collections.abc import Mapping

from ipywidgets import Dropdown, VBox
from matplotlib.figure import Figure

from cotgen_lite.course.plots import OTHER, OURS, draw_profile
from cotgen_lite.course.widgets import keep_drawn


def draw_two(rows: Mapping[str, Mapping], labels: Mapping[str, str], first: str, second: str) -> Figure:
    """Two methods' accuracies by tag. rows: method → its row of results/scores.jsonl; labels: method → its name."""
    bars = {labels[method]: rows[method]["tags"] | {"overall": rows[method]["overall"]} for method in (first, second)}
    return draw_profile(bars, dict(zip(bars, (OTHER, OURS), strict=False)))


def method_explorer(rows: Mapping[str, Mapping], labels: Mapping[str, str], first: str, second: str) -> VBox:
    """Notebook 11: choose two methods; arguments as in `draw_two`, and which two are shown at the start."""
    options = [(labels[method], method) for method in labels if method in rows]
    one, other = (
        Dropdown(options=options, value=value, description=name, layout={"width": "40em"})
        for name, value in (("first", first), ("second", second))
    )

    def draw(a: str, b: str) -> tuple[Figure, str]:
        return draw_two(rows, labels, a, b), ""

    picture, _ = keep_drawn((one, other), draw)
    return VBox([one, other, picture])
