"""Chapter 04, DPO: its figure and its exercises' checkers. Its explorer is chapter 05's too, in `explorer`.

Notebook: 04_dpo.ipynb. Paper: section 3.3. Shared: plots.py, explorer.py, checker.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from cotgen_lite.course.checker import compare
from cotgen_lite.course.plots import Texts, draw_images, wrap


def draw_pairs(chosen: Tensor, rejected: Tensor, prompts: Texts) -> Figure:
    """B preference pairs, one a column: chosen images above, rejected ones below, both uint8 (B, 3, H, W)."""
    number = len(prompts)
    titles, right = [wrap(prompt) for prompt in prompts] + [""] * number, [True] * number + [False] * number
    figure = draw_images(torch.cat([chosen, rejected]), titles, number, right, size=1.6)
    figure.axes[0].set_ylabel("chosen")
    figure.axes[number].set_ylabel("rejected")
    return figure


def check_margin(function: Callable[[float, float, float, float, float], float]) -> None:
    """The reward margin of a pair, from policy's and reference's log-probabilities and β."""
    for numbers in ((-10.0, -12.0, -11.0, -11.5, 0.1), (-30.0, -20.0, -35.0, -20.5, 0.5)):
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta = numbers
        gains = policy_chosen - reference_chosen, policy_rejected - reference_rejected
        wanted, added = beta * (gains[0] - gains[1]), beta * (gains[0] + gains[1])
        by = beta * (policy_chosen - policy_rejected)
        mistakes = {
            "The sign: the margin is positive where the policy has learned to prefer the chosen image.": -wanted,
            "That is the policy alone: a reward is how much likelier an image became *than under the reference*.": by,
            "The scale β is missing.": wanted / beta,
            "You added both rewards: the margin is that of the chosen image *minus* that of the rejected.": added,
        }
        compare(float(function(*numbers)), wanted, mistakes)


def check_pull(function: Callable[[Tensor, float], Tensor]) -> None:
    """How hard a pair pulls: minus the derivative of the loss by the log-ratio; margins (B,), β."""
    margin, beta = torch.tensor([-2.0, 0.0, 3.0]), 0.1
    wanted, right_already = beta * torch.sigmoid(-margin), beta * torch.sigmoid(margin)
    loss = "That is the loss itself, not how it changes"
    mistakes = {
        "That pulls hardest at pairs that are right already: the sign inside the sigmoid.": right_already,
        "The chain rule: the margin is β times the log-ratio, so β comes out as a factor.": torch.sigmoid(-margin),
        "Minus the derivative is wanted: it is positive.": -wanted,
        f"{loss}.": -F.logsigmoid(margin),
        f"{loss}, and has the wrong sign.": F.logsigmoid(margin),
    }
    compare(function(margin, beta), wanted, mistakes, shape="One number a pair")


def check_elbo(function: Callable[[Tensor, Tensor], float]) -> None:
    """One ELBO-weighted estimate, from log p of every place (L,) and which are hidden, bool (L,)."""
    log_p = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    for hidden in (torch.tensor([True, False, True, False]), torch.tensor([True, True, True, True])):
        plain, mean, seen = log_p[hidden].sum(), log_p[hidden].mean(), log_p[~hidden].mean()
        mistakes = {
            "That is the plain sum over hidden places: fewer of them must count more, by L / k.": plain,
            "That is the mean of hidden places: the image has L of them, so multiply by L.": mean,
            "You took the visible places: they are given, only the hidden ones are predicted.": 4 * seen,
        }
        compare(float(function(log_p, hidden)), 4 * mean, mistakes, f"{int(hidden.sum())} of 4 hidden")
