"""What the explorers of all chapters share: controls above one picture, which is a pure function of their values.

A chapter's own explorer stands in its chNN.py, and its figure, which is also drawn once without controls, beside it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from html import escape
from threading import Lock, RLock

import matplotlib.pyplot as plt
from ipywidgets import HTML, Dropdown, HBox, Image, IntSlider, VBox, Widget
from matplotlib.figure import Figure
from torch import Tensor
from traitlets import Any, HasTraits

from cotgen_lite.course.plots import Numbers, Texts, draw_side_by_side, to_png
from cotgen_lite.hub import first_line
from cotgen_lite.inputs import of_kind, text, texts, whole, with_methods

BUSY, KEPT = "drawing …", 100  # what stands below a picture meanwhile; how many settings' pictures are kept
OWN_SIZE = {"align_self": "flex-start", "max_width": "100%"}  # a box would stretch a picture to its own width


class Game(HasTraits):
    """What a game remembers between clicks, for `explorer` to draw; only `play` changes it."""

    value, acting = Any(), RLock()  # the kernel calls back on several threads at once

    def play(self, move: Callable[..., tuple]) -> None:
        """Go on to what a move makes of what is remembered."""
        with self.acting:
            self.value = move(*self.value)


def explorer(
    draw: Callable[..., Figure | tuple[Figure, str]], *rows: Sequence[Widget], game: Game | None = None
) -> VBox:
    """Rows of controls above a picture and words: drawn now and whenever a control moves, always of the last values.
    draw: the controls' values, in order, or what a game remembers → figure, and words if there are any. The kernel
    calls back on several threads: one drawing is made at a time, and what was left behind meanwhile is not shown. What
    was drawn of some values is kept. Where drawing fails, a sentence takes the picture's place; the first time, raise.
    """
    picture, words, drawing = Image(format="png", layout=OWN_SIZE), HTML(), Lock()
    with_methods(draw, "draw", ["__call__"], "a function from the controls' values to a figure")
    for row in rows:
        for control in of_kind(row, "each row", (list, tuple), "a list of controls"):
            of_kind(control, "each control", Widget, "a widget of ipywidgets")
    controls = [game] if game else [control for row in rows for control in row]
    if not controls:
        raise ValueError("rows must have at least one control, got none.")

    def drawn(*values: object) -> tuple[bytes, str]:
        open_before = plt.get_fignums()
        try:
            made = draw(*values)
            figure, said = made if isinstance(made, tuple) else (made, "")
            return to_png(figure), text(said, "what draw says")
        finally:
            for number in set(plt.get_fignums()) - set(open_before):  # of a failure: the next cell would show it
                plt.close(number)

    look_up = drawn if game else lru_cache(KEPT)(drawn)  # drawing may take seconds; a game's memory grows

    def redraw(change: object = None) -> None:
        words.value = BUSY
        with drawing:
            values, failure = [control.value for control in controls], None
            try:
                png, said = look_up(*values)
            except BaseException as error:
                png, said, failure = b"", f"This could not be drawn ({escape(first_line(error))}).", error
            if values == [control.value for control in controls]:  # else the move that came meanwhile draws next
                picture.layout.display, picture.value, words.value = "" if png else "none", png, said
        if failure and (
            change is None or not isinstance(failure, Exception)
        ):  # a cell shows its error; an interrupt ends
            raise failure

    for control in controls:
        control.observe(redraw, names="value")
    redraw()
    return VBox([*(HBox(row) for row in rows), picture, words])


def menu(options: Texts, description: str = "prompt") -> Dropdown:
    """A choice among texts; its value is the number of the one that is chosen."""
    texts(of_kind(options, "texts", (list, tuple), "a list of texts"), "texts")
    return Dropdown(
        options=[(one, number) for number, one in enumerate(options)], description=description, layout={"width": "30em"}
    )


def slider(description: str, value: int, least: int, most: int) -> IntSlider:
    """A choice of a whole number, which counts once it is let go."""
    least, most = whole(least, "least"), whole(most, "most", whole(least, "least"))
    value = whole(value, "value", least, most)
    return IntSlider(value=value, min=least, max=most, description=description, continuous_update=False)


def generators_explorer(
    prompts: Texts, look: Callable[[str, int], tuple[dict[str, Tensor], dict[str, Numbers]]]
) -> VBox:
    """Chapters 04 and 05: choose prompt and seed, and see what each generator makes of the same noise. look: (prompt,
    seed) → by generator, images (N, 3, H, W) and verdicts (N,), drawn anew at a change."""
    return explorer(
        lambda row, seed: draw_side_by_side(*look(prompts[row], seed), f"{prompts[row]}, seed {seed}"),
        (menu(prompts), slider("seed", 0, 0, 20)),
    )
