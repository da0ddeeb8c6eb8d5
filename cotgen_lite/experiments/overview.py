"""The README's figure: the course in one picture. The notebooks' own figures are drawn by `cotgen_lite.course`."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cotgen_lite.hub import in_place_of

KEPT = "#0072B2"  # the colour that the notebooks' figures give to what is ours


def save_overview(
    path: Path, prompt: str, steps: Tensor, candidates: Tensor, beliefs: npt.ArrayLike, right: npt.ArrayLike
) -> None:
    """Write a PNG file of an image coming into being, above the candidates, of which the verifier keeps one.

    steps: uint8 (T, 3, H, W) of the chosen candidate; candidates: uint8 (N, 3, H, W); beliefs: P(yes) (N,); right:
    verdicts (N,).
    """
    import matplotlib.pyplot as plt

    belief, columns = np.asarray(beliefs, dtype=float), len(candidates)
    chosen, shown = int(belief.argmax()), np.linspace(0, len(steps) - 1, columns).round().astype(int)
    figure, axes = plt.subplots(2, columns, figsize=(1.3 * columns, 3.6), layout="constrained")
    pictures = [*(steps[step] for step in shown), *candidates]
    signs = ["✓" if verdict else "✗" for verdict in np.asarray(right, dtype=bool)]
    titles = [f"step {step + 1}" for step in shown]
    titles += [f"{'kept' if n == chosen else ''}\n{signs[n]} P(yes) {belief[n]:.2f}" for n in range(columns)]
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=9)
    for spine in axes[1, chosen].spines.values():
        spine.set(color=KEPT, linewidth=4, linestyle="-")
    figure.suptitle(
        f"“{prompt}”: {columns} of {len(steps)} steps of one picture; {columns} candidates as the verifier sees them",
        fontsize=11,
    )
    with in_place_of(path) as part:
        figure.savefig(part, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
