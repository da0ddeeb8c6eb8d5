"""Self-correction: a generator learns to draw anew what a verifier found wrong, from prompt, image and reasons.

Paper: section 5 (self-correction fine-tuning).
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.experiments.configs import Recipe
from cotgen_lite.generate.drawing import draw_pool, judge_tokens
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.generate.showo import correction_prefix, masked_loss, text_prefix
from cotgen_lite.geneval import evaluate
from cotgen_lite.hub import MANIFEST, publish
from cotgen_lite.lite.edit_targets import mend
from cotgen_lite.lite.generator_training import CaptionedTokens, make_captioned_tokens
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.lite.world import CaptionNoise, render
from cotgen_lite.metrics import score
from cotgen_lite.pools import Pool, load_pool, one_in
from cotgen_lite.prompts import Prompt, encode_text, lite_prompts, refuse_held_out
from cotgen_lite.training import TrainingLog, fingerprint, thinned, train
from cotgen_lite.verify.reasons import find_reasons, write_reasons
from cotgen_lite.verify.training_data import IMAGES


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


def corrections(
    generator: Generator, judge: TemplateJudge, pool: Pool, wrong: npt.NDArray[np.bool_], most: int, seed: int
) -> list[Correction]:
    """Lessons from the wrong images of a pool, at most so many of each row, in random order.

    Each has what the judge finds wrong with it, in words, and what it sees, mended (`mending.mend`) and drawn, as its
    target. wrong: (P, N), which images are. An image in which the judge finds nothing wrong gives none. ValueError if
    a dev or test prompt is among them.
    """
    refuse_held_out(pool.prompts)
    rng = np.random.default_rng(seed)
    picks = [
        (row, column) for row in range(len(wrong)) for column in rng.permutation(np.flatnonzero(wrong[row]))[:most]
    ]
    picks, lessons = [picks[i] for i in rng.permutation(len(picks))], []
    for first in tqdm(range(0, len(picks), 64), desc="lessons", disable=len(picks) <= 64):
        rows, columns = map(list, zip(*picks[first : first + 64], strict=True))
        codes, scenes, whys = pool.tokens[rows, columns], [], []
        for row, seen in zip(rows, judge.detect(generator.decode(codes)), strict=True):
            found = evaluate(pool.prompts[row], seen).reasons
            whys.append(write_reasons(found, rng) if found else "")
            scenes.append(mend(pool.prompts[row], seen, rng))
        targets = generator.pixels.encode(render(scenes)).to("cpu", torch.int16)
        some = zip(rows, codes, whys, targets, strict=True)
        lessons += [Correction(pool.prompts[row], one, why, target) for row, one, why, target in some if why]
    return lessons


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
    config, words = generator.model.config, generator.words
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


def build_self_correct(out: Path, work: Path, recipe: Recipe) -> None:
    """The generator that can correct an image."""
    images, start = load_pool(out / "training/images" / IMAGES), load_generator(models=out / "models")
    wrong = ~images.correct["template"]
    lessons = corrections(start, TemplateJudge(), images, wrong, recipe.corrections_a_pool, seed=0)
    settings = json.loads((out / f"models/generator/{MANIFEST}").read_text(encoding="utf-8"))["settings"]
    replay = make_captioned_tokens(
        recipe.replayed, start.pixels, start.words, CaptionNoise(**settings["noise"]), seed=settings["seed"]
    )
    training = CorrectionTraining(recipe.correction_steps, recipe.correction_rate)
    generator = replace(start, model=copy.deepcopy(start.model))
    log = train_correction(generator, lessons, replay, training, work)
    about = {"start": "generator", "lessons": len(lessons), "replayed": recipe.replayed}
    about |= {"dev": try_on_dev(start, generator, work, recipe), "losses": thinned(log.losses)}
    publish(generator.model, out / "models/self-correct", asdict(training) | about, log.seconds)


def try_on_dev(start: Generator, generator: Generator, work: Path, recipe: Recipe) -> dict[str, float]:
    """What a corrected generator can do on dev prompts, by the training judge: accuracy of its "plain" images, and of
    the starting generator's images ("before") after each wrong one was corrected once, by the judge's reasons
    ("corrected") or without reasons ("mute")."""
    prompts = one_in(lite_prompts("dev"), recipe.one_prompt_in)
    number, judge = recipe.aligned_dev_images, TemplateJudge()
    pools = [
        draw_pool(one, prompts, number, seed=5, work_dir=work / "dev")[0][:, :, -1].contiguous()
        for one in (start, generator)
    ]
    right = [judge_tokens(generator, codes, prompts, judge) for codes in pools]
    reasons = find_reasons(start, judge, pools[0], prompts, seed=0)
    rows, columns = np.nonzero(~right[0])
    asked, wrong = [prompts[row] for row in rows], pools[0][rows, columns]
    found = {"before": right[0], "plain": right[1]}
    for name, texts in (("corrected", reasons), ("mute", np.full_like(reasons, ""))):
        found[name] = now = right[0].copy()
        if len(rows):
            why = texts[rows, columns].tolist()
            drawn = generator.correct([prompt.text for prompt in asked], wrong, why, 1, seed=9)
            codes = torch.stack([paths[0].final for paths in drawn])[:, None]
            now[rows, columns] = judge_tokens(generator, codes, asked, judge)[:, 0]
    return {name: round(score(prompts, verdicts.mean(1)).overall, 4) for name, verdicts in found.items()}
