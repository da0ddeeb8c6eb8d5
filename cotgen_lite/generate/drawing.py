"""The old names of `pipeline.generate_pool` and its kin, until nobody uses them any more."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cotgen_lite.generate.pipeline import ImageGenerator, generate_pool
from cotgen_lite.generate.pipeline import judge_tokens as judge_tokens
from cotgen_lite.generate.pipeline import label_tokens as label_tokens
from cotgen_lite.prompts import Prompt


def draw_pool(
    generator: ImageGenerator[Any],
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    work_dir: Path,
    final_only: bool = False,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """See `generate_pool`; the cost as a dictionary."""
    steps, committed_at, spent = generate_pool(generator, prompts, n, seed, work_dir, final_only)
    cost = {"generator_passes": spent.generator_passes, "tokens": spent.tokens, "seconds": spent.generator_seconds}
    return steps, committed_at, cost
