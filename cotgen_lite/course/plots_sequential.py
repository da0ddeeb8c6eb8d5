"""The figure of the chapter on next-token generators: pictures in labelled rows, to be compared column by column."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.plots import RIGHT, WRONG, _bare, _frame


def draw_rows(
    rows: Mapping[str, Tensor],
    heads: Sequence[str],
    notes: Mapping[str, Sequence[str]] | None = None,
    right: Sequence[bool] = (),
    title: str = "",
) -> Figure:
    """Rows of pictures under common column heads.

    rows: label → uint8 (N, 3, H, W), equally many in each; heads: N, of the columns; notes: label → N texts, written
    under that row's pictures; right: N verdicts, drawn as frames and a check or cross in the heads.
    """
    number = len(heads)
    size = (1.35 * number + 1.2, (1.35 + 0.3 * bool(notes)) * len(rows) + 0.4 + 0.3 * bool(title))
    figure, axes = plt.subplots(len(rows), number, figsize=size, squeeze=False)
    figure.set_layout_engine("constrained", h_pad=0.08 if notes else 0.04)  # notes belong to the pictures above them
    for row, (label, images) in enumerate(rows.items()):
        for column, axis in enumerate(axes[row]):
            _bare(axis)
            axis.imshow(images[column].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            if len(right):
                good = bool(right[column])
                _frame(axis, RIGHT if good else WRONG, 1.5, "-" if good else "--")
            if row == 0:
                sign = ("✓ " if right[column] else "✗ ") if len(right) else ""
                axis.set_title(sign + heads[column], fontsize=9)
            if notes:
                axis.set_xlabel(notes[label][column], fontsize=8, labelpad=1)
        axes[row, 0].set_ylabel(label, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
