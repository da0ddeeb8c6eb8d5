"""Self-correction: a generator learns to generate anew what a verifier found wrong, from prompt, image and reasons.

The generator half of reflection: what it learns here, `reflect` in verify/search.py uses. Paper: section 5. Where the
course's lessons come from: lite/edit_targets.py. The
core ends here: lite/ is the world in which the course's models live.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import CaptionedTokens, correction_prefix, masked_loss, text_prefix
from cotgen_lite.inputs import number, of_kind, settle, shown, text, whole
from cotgen_lite.prompts import Prompt
from cotgen_lite.training import LARGEST_RATE, LARGEST_SEED, MOST_AT_ONCE, MOST_STEPS, TrainingLog, stack_tokens, train


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

    def __post_init__(self) -> None:
        shares = ("replay", "without_reasons", "without_words")
        settle(
            self,
            steps=whole(self.steps, "steps", 1, MOST_STEPS),
            learning_rate=number(self.learning_rate, "learning_rate", 0, LARGEST_RATE),
            batch_size=whole(self.batch_size, "batch_size", 1, MOST_AT_ONCE),
            seed=whole(self.seed, "seed", 0, LARGEST_SEED),
            **{name: number(getattr(self, name), name, 0, 1) for name in shares},
        )
        if self.without_reasons + self.without_words > 1:
            raise ValueError(
                "without_reasons and without_words must add up to at most 1: they are shares of corrections."
            )
        if round(self.batch_size * self.replay) == self.batch_size:
            raise ValueError(
                f"replay of {self.replay:g} leaves no room for a correction in {self.batch_size}: lower it."
            )


def train_correction(
    generator: Generator,
    lessons: Sequence[Correction],
    replay: CaptionedTokens,
    settings: CorrectionTraining,
    work_dir: str | Path | None = None,
) -> tuple[Generator, TrainingLog]:
    """Teach a copy of a generator to correct images, with plain generating mixed in; it resumes from `work_dir`.

    The loss is on the target image alone. Returns what has learned, and the log. ValueError without lessons, for one
    that the generator cannot read, for a `work_dir` that holds another run, or as in `train`. Paper: section 5.
    """
    of_kind(settings, "settings", CorrectionTraining, "a CorrectionTraining")
    of_kind(replay, "replay", CaptionedTokens, "CaptionedTokens")
    if not of_kind(lessons, "lessons", Sequence, "a list of Corrections"):
        raise ValueError("There is nothing to learn from: give at least one correction.")
    for lesson in lessons:
        if not isinstance(of_kind(lesson, "each of lessons", Correction, "a Correction").prompt, Prompt):
            raise ValueError(f"A correction's prompt must be a Prompt, got {shown(lesson.prompt)}.")
    config = of_kind(generator, "generator", Generator, "a Generator").model.config
    model = copy.deepcopy(generator.model)
    size = (config.num_image_tokens, config.codebook_size)
    said = [generator.encode(lesson.prompt.text) for lesson in lessons]
    why = [generator.encode(text(lesson.reasons, "a correction's reasons")) for lesson in lessons]
    rejected = stack_tokens([lesson.rejected for lesson in lessons], *size).tolist()
    targets = stack_tokens([lesson.target for lesson in lessons], *size)
    plain = round(settings.batch_size * settings.replay)
    if plain and not len(replay.text_ids) == len(replay.tokens) > 0:
        raise ValueError(f"replay must hold one caption an image, and some; got {len(replay.text_ids)} captions.")
    if plain:
        stack_tokens(list(replay.tokens), *size)
    for i in range(len(lessons)):  # what cannot be read is said now, not at the step that draws it
        correction_prefix(config, said[i], why[i], rejected[i])

    def loss_at(step: int) -> Tensor:
        drawing = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
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

    about = {"settings": settings, "lessons": (said, why, rejected, targets), "replay": replay}
    log = train(model, loss_at, settings.steps, settings.learning_rate, work_dir, "self-correction", about=about)
    return replace(generator, model=model), log
