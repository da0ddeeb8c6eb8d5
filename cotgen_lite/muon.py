"""Muon, the optimiser that small models learn arrangement with: an orthogonal step for every weight matrix.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest matrix whose singular values are all one, so
that what is seldom seen in the gradient is learned as fast as what is always there. torch has it too, in bfloat16,
which a CPU without such arithmetic computes over ten times slower; here it is float32. Read next: training.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cotgen_lite.inputs import number, of_kind

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of a quintic that draws singular values to about 1 in five rounds
ROUNDS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U·Vᵀ where the matrix, float (rows, columns), is U·S·Vᵀ: each singular value becomes .7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    flipped = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if flipped else matrix).float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if flipped else x


def weight_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of a network's linear layers that are not tied to, or the output of, a table of embeddings."""
    of_kind(model, "model", nn.Module, "a network of torch")
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    heads = [part.get_output_embeddings() for part in model.modules() if isinstance(part, PreTrainedModel)]
    tables |= {id(head.weight) for head in heads if isinstance(head, nn.Linear)}
    linear = {id(part.weight): part.weight for part in model.modules() if isinstance(part, nn.Linear)}
    return [weight for key, weight in linear.items() if key not in tables and weight.requires_grad]


class Muon(torch.optim.AdamW):
    """Muon for a network's weight matrices, AdamW for all else (embeddings, norms, biases), each at its own rate.

    rate: of the matrices, times √(rows/columns) where they are taller than wide. adamw_rate: of the rest. weight_decay
    holds for both.
    """

    def __init__(self, model: nn.Module, rate: float, adamw_rate: float, weight_decay: float = 0.01) -> None:
        matrices = weight_matrices(model)
        ids = set(map(id, matrices))
        rest = [weight for weight in model.parameters() if id(weight) not in ids and weight.requires_grad]
        rate, adamw_rate = number(rate, "rate", 0), number(adamw_rate, "adamw_rate", 0)
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": rate, "momentum": MOMENTUM},
            {"params": rest, "lr": adamw_rate},
        ]
        decay, groups = number(weight_decay, "weight_decay", 0), [group for group in groups if group["params"]]
        super().__init__(groups, lr=adamw_rate, betas=(0.9, 0.98), weight_decay=decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both, by the gradients that are there."""
        groups = self.param_groups
        for group in groups:
            for weight in group["params"] if "momentum" in group else ():
                self._step_of_matrix(weight, group)
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _step_of_matrix(self, weight: Tensor, group: dict[str, Any]) -> None:
        if weight.grad is None:
            return
        state = self.state[weight]
        state.setdefault("step", torch.tensor(0.0))  # which AdamW looks for in whatever it loads
        mean = state.setdefault("mean", torch.zeros_like(weight))
        mean.lerp_(weight.grad, 1 - group["momentum"])
        ahead = weight.grad.lerp(mean, group["momentum"])  # Nesterov's
        rows, columns = weight.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonalised(ahead), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
