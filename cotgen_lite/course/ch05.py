"""Chapter 05, iterative DPO: its exercises' checkers. Its explorer is chapter 04's too, in `explorer`.

Notebook: 05_iterative_dpo.ipynb. Paper: section 3.3. Shared: plots.py, explorer.py, checker.py.
"""

import numpy as np

from cotgen_lite.course.checker import Exercise


def _rarer(labels: np.ndarray, axis: int = 1) -> np.ndarray:
    return np.minimum(labels.sum(axis), (~labels).sum(axis))


_LABELS = np.array([[1] * 5, [0, 0, 0, 0, 1], [0] * 5, [1, 1, 1, 0, 0]], dtype=bool)
# How many pairs verdicts (P, N) give, each image used once, at most `most` a prompt.
check_pairs = Exercise(
    lambda labels, most: np.minimum(_rarer(labels), most).sum(),
    (
        (_LABELS, 10),
        (_LABELS, 1),
        (np.array([[1, 0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0]], dtype=bool), 2),
        (np.array([[1, 0], [0, 1], [1, 1]], dtype=bool), 3),
        (_LABELS, 0),
    ),
    lambda labels, most: {
        "Each image is used once: three right and two wrong make two pairs, not six.": (
            np.minimum(labels.sum(1) * (~labels).sum(1), most).sum()
        ),
        "You counted right images: each needs a wrong one of its prompt.": np.minimum(labels.sum(1), most).sum(),
        "Both images of a pair are of one prompt: count by prompt, then add.": min(labels.sum(), (~labels).sum()),
        "That looks along the wrong axis: each row is a prompt.": np.minimum(_rarer(labels, 0), most).sum(),
        "A prompt gives at most `most` pairs: yours may give more.": _rarer(labels).sum(),
        "`most` holds for each prompt, not for all of them together.": min(_rarer(labels).sum(), most),
    },
)

# How likely n images of a prompt have both labels, if each is right with chance p.
check_chance_of_a_pair = Exercise(
    lambda p, n: 1 - p**n - (1 - p) ** n,
    ((0.2, 10), (0.9, 4), (0.5, 2), (0.35, 3), (0.3, 1), (0.0, 4), (1.0, 3)),
    lambda p, n: {
        "That is the chance of at least one right image: a pair needs a wrong one too.": 1 - (1 - p) ** n,
        "That is the chance of at least one wrong image: a pair needs a right one too.": 1 - p**n,
        "That is the chance of one label only.": p**n + (1 - p) ** n,
        "That is for two images: with n of them, ask how all can be alike.": 2 * p * (1 - p),
        "To have a right and a wrong one are not independent: subtract both ways to fail.": (
            (1 - p**n) * (1 - (1 - p) ** n)
        ),
    },
    "One chance",
)
