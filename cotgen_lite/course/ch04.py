"""Chapter 04, DPO: its figure and its exercises' checkers. Its explorer is chapter 05's too, in `explorer`.

Notebook: 04_dpo.ipynb. Paper: section 3.3. Shared: plots.py, explorer.py, checker.py.
"""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import Exercise
from cotgen_lite.course.plots import Texts, draw_images, pictures, wrap
from cotgen_lite.inputs import one_each


def draw_pairs(chosen: Tensor, rejected: Tensor, prompts: Texts) -> Figure:
    """B preference pairs, one a column: chosen images above, rejected ones below, both uint8 (B, 3, H, W)."""
    number = len(pictures(chosen, "chosen", "B"))
    pictures(rejected, "rejected", number)
    one_each(prompts, "prompts", number, "pairs")
    titles, right = [*map(wrap, prompts), *[""] * number], [True] * number + [False] * number
    figure = draw_images(torch.cat([chosen, rejected]), titles, number, right, size=1.6)
    figure.axes[0].set_ylabel("chosen")
    figure.axes[number].set_ylabel("rejected")
    return figure


# The reward margin of a pair, from policy's and reference's log-probabilities and β.
check_margin = Exercise(
    lambda policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta: (
        beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    ),
    (
        (-10.0, -12.0, -11.0, -11.5, 0.1),
        (-30.0, -20.0, -35.0, -20.5, 0.5),
        (-7.3, -2.8, -1.9, -6.1, 1.7),
        (-8.0, -3.5, -6.5, -3.0, 1.2),
    ),
    lambda pc, pr, rc, rr, beta: {
        "The sign: the margin is positive where the policy prefers the chosen image.": beta * ((pr - rr) - (pc - rc)),
        "That is the policy alone: a reward is how much likelier than *under the reference*.": beta * (pc - pr),
        "The scale β is missing.": (pc - rc) - (pr - rr),
        "You added both rewards: the chosen image's *minus* the rejected one's.": beta * ((pc - rc) + (pr - rr)),
        "That is the reward of the chosen image alone: take away the rejected one's.": beta * (pc - rc),
        "A margin may be negative: leave out the absolute value.": abs(beta * ((pc - rc) - (pr - rr))),
    },
)

# How hard a pair pulls: minus the derivative of the loss by the log-ratio; margins (B,), β.
check_pull = Exercise(
    lambda margin, beta: beta * torch.sigmoid(-margin),
    (
        (torch.tensor([-2.0, 0.0, 3.0]), 0.1),
        (torch.tensor([0.4, -1.3, -0.6, 2.2]), 0.5),
        (torch.tensor([1.1]), 1.0),
    ),
    lambda margin, beta: {
        "That pulls hardest at pairs that are right already: the sign inside the sigmoid.": beta * margin.sigmoid(),
        "The chain rule: m is β times the log-ratio, so β comes out as a factor.": torch.sigmoid(-margin),
        "Minus the derivative is wanted: it is positive.": -beta * torch.sigmoid(-margin),
        "That is the loss itself, not how it changes.": -F.logsigmoid(margin),
    },
    "One number a pair",
)

_SHORT, _LONG = torch.tensor([-1.0, -2.0, -0.5, -3.0]), torch.tensor([-0.7, -2.4, -1.1, -4.2, -0.3, -1.8])
# One ELBO-weighted estimate, from log p of every place (L,) and which are hidden, bool (L,).
check_elbo = Exercise(
    lambda log_p, hidden: len(log_p) * log_p[hidden].mean(),
    (
        (_SHORT, torch.tensor([True, False, True, False])),
        (_SHORT, torch.tensor([True, True, True, True])),
        (_LONG, torch.tensor([False, True, True, False, True, True])),
        (_LONG, torch.tensor([False, False, False, True, False, False])),
    ),
    lambda log_p, hidden: {
        "That is the plain sum over hidden places: fewer of them must count more, by L / k.": log_p[hidden].sum(),
        "That is the mean of hidden places: the image has L of them, so multiply by L.": log_p[hidden].mean(),
        "You took the visible places: only the hidden ones are predicted.": len(log_p) * log_p[~hidden].mean(),
        "You took all places: only the hidden ones are predicted.": log_p.sum(),
        "The weight is upside down: L / k counts few places more.": log_p[hidden].sum() * hidden.sum() / len(log_p),
        "The sign: that is a loss, a log-probability is at most 0.": -len(log_p) * log_p[hidden].mean(),
    },
)
