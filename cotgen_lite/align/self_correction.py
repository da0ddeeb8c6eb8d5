"""Self-correction: a generator learns to draw anew what a verifier found wrong, from prompt, image and reasons.

Paper: section 5 (self-correction fine-tuning).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import CaptionedTokens, correction_prefix, masked_loss, text_prefix
from cotgen_lite.prompts import Prompt, encode_text
from cotgen_lite.training import TrainingLog, fingerprint, train


@dataclass(frozen=True)
class Correction:
    """One lesson: what was asked for, an image that misses it and why, and one that does not. Codes are (L,)."""

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
    work_dir: Path,
) -> TrainingLog:
    """Teach a generator in place to correct images, with plain drawing mixed in; resumes from `work_dir`.

    The loss is on the target image alone. ValueError without lessons, or for a `work_dir` that holds another run.
    Paper: section 5.
    """
    if not lessons:
        raise ValueError("There is nothing to learn from: give at least one correction.")
    config, words = generator.model.config, generator.text_tokenizer
    said = [encode_text(words, lesson.prompt.text) for lesson in lessons]
    why = [encode_text(words, lesson.reasons) for lesson in lessons]
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
            correction_prefix(config, [] if unsaid else said[i], [] if quiet else why[i], lessons[i].rejected.tolist())
            for i, quiet, unsaid in zip(some, mute, blind, strict=True)
        ]
        prefixes += [text_prefix(config, replay.text_ids[i]) for i in old]
        new = torch.cat([targets[some], replay.tokens[old].long()])
        # Corrections are guided against the image alone, so their prefixes are not dropped to the empty prompt.
        return masked_loss(generator.model, prefixes, new, drawing, [0.0] * len(some) + [0.1] * plain)

    about = asdict(settings) | replay.about
    about["run"] = fingerprint(
        (generator.model,),
        [
            (a, b, lesson.rejected.tolist(), lesson.target.tolist())
            for a, b, lesson in zip(said, why, lessons, strict=True)
        ],
        replay.tokens.sum(dim=1).tolist(),
    )
    return train(
        generator.model, loss_at, settings.steps, settings.learning_rate, work_dir, "self-correction", about=about
    )
