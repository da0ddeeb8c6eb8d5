"""Chapter 05, iterative DPO: its exercises' checkers. Its explorer is chapter 04's too, in `explorer`.

Notebook: 05_iterative_dpo.ipynb. Paper: section 3.3. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Callable

import numpy as np

from cotgen_lite.course.checker import compare


def check_pairs(function: Callable[[np.ndarray, int], int]) -> None:
    """How many pairs verdicts (P, N) give, each image used once, at most `most` a prompt."""
    labels = np.array([[1] * 5, [0, 0, 0, 0, 1], [0] * 5, [1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], dtype=bool)
    right, wrong = labels.sum(axis=1), (~labels).sum(axis=1)
    across = np.minimum(labels.sum(axis=0), (~labels).sum(axis=0)).sum()
    mistakes = {
        "Each image is used once: three right and two wrong make two pairs, not six.": (right * wrong).sum(),
        "Each right image needs a wrong one of its prompt.": right.sum(),
        "Both images of a pair are of one prompt: count by prompt, then add.": min(right.sum(), wrong.sum()),
        "That looks along the wrong axis: each row is a prompt.": across,
    }
    compare(function(labels, 10), 4, mistakes, "The five prompts give 0, 1, 0, 2 and 1 pairs")
    compare(function(labels, 1), 3, case="With most = 1, the fourth prompt gives one of its two pairs")


def check_chance_of_a_pair(function: Callable[[float, int], float]) -> None:
    """How likely n images of a prompt have both labels, if each is right with chance p."""
    for p, n in ((0.2, 10), (0.9, 4), (0.5, 2)):
        wanted, both = 1 - p**n - (1 - p) ** n, (1 - p**n) * (1 - (1 - p) ** n)
        mistakes = {
            "That is the chance of at least one right image: a pair needs a wrong one too.": 1 - (1 - p) ** n,
            "That is the chance of at least one wrong image: a pair needs a right one too.": 1 - p**n,
            "That is the chance of one label only.": 1 - wanted,
            "That is for two images: with n of them, ask how all can be alike.": 2 * p * (1 - p),
            "Having a right and having a wrong image are not independent: subtract both ways to fail.": both,
        }
        compare(float(function(p, n)), wanted, mistakes, f"With p = {p} and n = {n}")
