"""The figures and the explorer of chapter 10, driven as a learner would; no window is needed."""

import pytest
from matplotlib import pyplot as plt

from cotgen_lite.course.ch10 import draw_fit, draw_stacks, memory_explorer
from cotgen_lite.course.plots import to_png

PARTS = {"weights": 3.5, "work": 2.0}


def test_stacks_are_as_long_as_their_parts_and_lines_stand_where_they_should() -> None:
    figure = draw_stacks({"a": PARTS, "b": {"weights": 1.0, "work": 0.5}}, "GB", {"card": 9.0})
    axis = figure.axes[0]
    bars = [(bar.get_x(), bar.get_width()) for container in axis.containers for bar in container]
    assert bars == [(0.0, 3.5), (0.0, 1.0), (3.5, 2.0), (1.0, 0.5)]
    assert [list(line.get_xdata()) for line in axis.lines] == [[9.0, 9.0]] and axis.get_xlim()[1] > 9
    assert [text.get_text() for text in axis.texts] == ["5.5", "1.5", "card"]
    assert to_png(figure)


@pytest.mark.parametrize(("memory", "verdict"), [(5.5, "✓ fits, 0.0 GB"), (4.0, "✗ does not fit: 1.5 GB")])
def test_a_card_fits_what_is_no_larger(memory: float, verdict: str) -> None:
    figure = draw_fit(PARTS, "T4", memory, "20 candidates")
    title = figure.get_suptitle()
    plt.close(figure)
    assert title.startswith("20 candidates\n") and verdict in title


def test_each_control_draws_anew() -> None:
    asked: list[tuple[int, int, int]] = []

    def parts_of(size: int, n: int, bits: int) -> dict[str, float]:
        asked.append((size, n, bits))
        return {"weights": bits / 4, "work": n * size / 2560}

    box = memory_explorer(parts_of, {"T4": 5.0, "A100": 80.0})
    (card, n), (size, bits), picture = box.children[0].children, box.children[1].children, box.children[2]
    shown = [picture.value]
    for control, value in ((bits, 4), (size, 512), (n, 3), (card, "A100")):
        control.value = value
        shown.append(picture.value)
    assert len(set(shown)) == 5
    assert asked == [(256, 20, 16), (256, 20, 4), (512, 20, 4), (512, 3, 4), (512, 3, 4)]
