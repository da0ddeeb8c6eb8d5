"""The explorer of chapter 10: choose a card, and see whether everything fits on it."""

from collections.abc import Callable, Mapping

from ipywidgets import Dropdown, HBox, IntSlider, ToggleButtons, VBox
from matplotlib.figure import Figure

from cotgen_lite.course.plots_full import draw_fit
from cotgen_lite.course.widgets import keep_drawn


def memory_explorer(parts_of: Callable[[int, int, int], Mapping[str, float]], cards: Mapping[str, float]) -> VBox:
    """Notebook 10: choose card, image size, candidates and the bits of the verifier's weights.

    parts_of: (image size in px, candidates at once, bits) → part → GB; cards: name → GB of memory.
    """
    card = Dropdown(options=list(cards), description="card")
    size = ToggleButtons(
        options=[("256 px", 256), ("512 px", 512)], description="images", style={"button_width": "5em"}
    )
    n = IntSlider(value=20, min=1, max=60, description="paths")
    bits = ToggleButtons(
        options=[("16 bits", 16), ("8", 8), ("4", 4)], description="verifier", style={"button_width": "4em"}
    )

    def draw(name: str, pixels: int, number: int, width: int) -> tuple[Figure, str]:
        title = f"{number} paths of {pixels} px at once, the verifier in {width} bits"
        return draw_fit(parts_of(pixels, number, width), name, cards[name], title), ""

    picture, _ = keep_drawn((card, size, n, bits), draw)
    return VBox([HBox([card, n]), HBox([size, bits]), picture])
