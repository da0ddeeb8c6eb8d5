"""Self-correction: a generator learns to generate anew what a verifier found wrong, from prompt, image and reasons.

The generator half of reflection: what it learns here, `reflect` in verify/search.py uses. Paper: section 5. Where the
course's lessons come from: lite/edit_targets.py. The
core ends here: lite/ is the world in which the course's models live.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import CaptionedTokens, correction_prefix, masked_loss, text_prefix
from cotgen_lite.identity import fingerprint
from cotgen_lite.prompts import Prompt
from cotgen_lite.training import TrainingLog, train


@dataclass(frozen=True)
class Correction:
    """One lesson: what was asked for, an image that misses it and why, and one that does not. Tokens (L,)."""

    prompt: Prompt
    rejected: Tensor
    reasons: str
    target: Tensor


@dataclass(frozen=True)
class CorrectionTraining:
    """How a generator learns to correct itself.

    replay: share of each batch that is plain pre-training data, so that it keeps its old skill. without_reasons: share
    of corrections whose reasons are left out, so that their absence is nothing strange; without_words: share of further
    ones that have neither reasons nor prompt, which is what guidance holds the words against.
    """

    steps: int
    learning_rate: float
    batch_size: int = 32
    replay: float = 0.25
    without_reasons: float = 0.1
    without_words: float = 0.1
    seed: int = 0


def train_correction(
    generator: Generator,
    lessons: Sequence[Correction],
    replay: CaptionedTokens,
    settings: CorrectionTraining,
    work_dir: str | Path | None = None,
) -> tuple[Generator, TrainingLog]:
    """Teach a copy of a generator to correct images, with plain generating mixed in; it resumes from `work_dir`.

    The loss is on the target image alone. Returns what has learned, and the log. ValueError without lessons, or for a
    `work_dir` that holds another run. Paper: section 5.
    """
    if not lessons:
        raise ValueError("There is nothing to learn from: give at least one correction.")
    model, config = copy.deepcopy(generator.model), generator.model.config
    said = [generator.encode(lesson.prompt.text) for lesson in lessons]
    why = [generator.encode(lesson.reasons) for lesson in lessons]
    rejected = [lesson.rejected.tolist() for lesson in lessons]
    targets = torch.stack([lesson.target for lesson in lessons]).long()

    def loss_at(step: int) -> Tensor:
        drawing = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        plain = round(settings.batch_size * settings.replay)
        some = torch.randint(len(lessons), (settings.batch_size - plain,), generator=drawing).tolist()
        chance = torch.rand(len(some), generator=drawing)
        blind = (chance < settings.without_words).tolist()
        mute = (chance < settings.without_words + settings.without_reasons).tolist()
        old = torch.randint(len(replay.text_ids), (plain,), generator=drawing).tolist()
        prefixes = [
            correction_prefix(config, [] if unsaid else said[i], [] if quiet else why[i], rejected[i])
            for i, quiet, unsaid in zip(some, mute, blind, strict=True)
        ]
        prefixes += [text_prefix(config, replay.text_ids[i]) for i in old]
        new = torch.cat([targets[some], replay.tokens[old].long()])
        # Corrections are guided against the image alone, so their prefixes are not dropped to the empty prompt.
        return masked_loss(model, prefixes, new, drawing, [0.0] * len(some) + [0.1] * plain)

    run = fingerprint((model,), said, why, rejected, targets.tolist(), replay.tokens.sum(dim=1).tolist())
    about = asdict(settings) | replay.about | {"run": run}
    log = train(model, loss_at, settings.steps, settings.learning_rate, work_dir, "self-correction", about=about)
    return replace(generator, model=model), log
