"""What the starting models can do, on dev prompts: the figures that their training is judged by.

The lite generator is to have the paper's profile (strong at single objects, weak at position and binding) and yet every
skill: right among some, and words that count (`lite/twins.py`). The zero-shot verifier is to help as much as the
paper's, and to leave as much to learn. `pretrain.py` trains both; what was tried before is in `results/tried.jsonl`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import difference
from cotgen_lite.experiments.measure import by_tag
from cotgen_lite.experiments.measuring import Bench, rounded, score_pool
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.showo import Showo
from cotgen_lite.generate.vq import ImageTokenizer
from cotgen_lite.geneval import Detector, evaluate
from cotgen_lite.lite.judges import scene_detections
from cotgen_lite.lite.twins import SKILLS, implied, make_twins, twin_differences
from cotgen_lite.lite.verifier import evaluation_set
from cotgen_lite.lite.world import CaptionNoise, render
from cotgen_lite.metrics import (
    bootstrap_tags,
    cohens_kappa,
    detectable_difference,
    expected_best_of,
    roc_auc_within_prompts,
    score,
)
from cotgen_lite.pools import Pool
from cotgen_lite.prompts import Prompt, parse_prompt
from cotgen_lite.verify.reasons import share_told
from cotgen_lite.verify.verifier import Verifier

MASKS = 6  # of each twin


def calibrate(out: Path, work: Path, config: Config) -> None:
    """What the starting generator can do on dev prompts, by the judge that labels."""
    bench, n = Bench(out, work, config, "calibration"), config.pool_size
    generator, prompts = bench.generator(), config.dev_prompts
    drawn = bench.generate(generator, prompts, n)
    correct = bench.judge(generator, drawn.tokens, prompts)
    bench.save_pool("dev", Pool(prompts, drawn.tokens, {}, correct))
    right = correct["template"]
    bench.write(
        "calibration",
        {
            "images_a_prompt": n,
            "baseline": profile(generator, drawn.tokens, prompts, bench.judges["template"]),
            "oracle": _scored(prompts, expected_best_of(right, right, n)),
            "kappa_of_judges": rounded(cohens_kappa(correct["learned"].ravel(), right.ravel())),
        },
    )


def try_verifier(out: Path, work: Path, config: Config) -> None:
    """What the zero-shot verifier can do on the dev pool: what its choice gains, how it tells right from wrong."""
    bench, n = Bench(out, work, config, "verifier_dev"), config.pool_size
    verifier, pool = bench.verifier("verifier"), bench.pool("dev")
    prompts, right = pool.prompts, pool.correct["template"]
    log_odds, _ = score_pool(bench.generator(), verifier, pool)
    chosen, best = (expected_best_of(order, right, n) for order in (log_odds, right))
    bench.write(
        "verifier_dev",
        {
            "zs-orm": _scored(prompts, chosen) | {"gain": difference(prompts, chosen - right.mean(1))},
            "oracle_above_zs_orm": difference(prompts, best - chosen),
            "auc_within_prompts": by_tag(roc_auc_within_prompts, prompts, log_odds, right),
            "reasons_on_clean_scenes": explained(verifier, config.explained_scenes),
            "detectable_gain_of_zs_orm": rounded(detectable_difference(prompts, chosen, right.mean(1))),
        },
    )


def explained(verifier: Verifier, scenes_per_tag: int) -> dict[str, float | None]:
    """How true the reasons are that a verifier writes about clean scenes which only just fail a dev prompt.

    "true": the share of their parts that are, "told": that of what is wrong; "of_another": how true they are of the
    next such scene of the kind, by chance.
    """
    wrong = [one for one in evaluation_set(scenes_per_tag, seed=2) if not one.holds]
    said = verifier.explain(render([one.scene for one in wrong]), [one.prompt for one in wrong])
    findings = [evaluate(parse_prompt(one.prompt), scene_detections(one.scene)).reasons for one in wrong]
    mine = np.array([share_told(text, found) for text, found in zip(said, findings, strict=True)])
    others = [share_told(text, found)[0] for text, found in zip(said, [*findings[1:], findings[0]], strict=True)]
    return {
        "true": rounded(float(mine[:, 0].mean())),
        "told": rounded(float(mine[:, 1].mean())),
        "of_another": rounded(float(np.mean(others))),
    }


def _scored(prompts: Sequence[Prompt], values: npt.NDArray) -> dict[str, Any]:
    found = score(prompts, values)
    return {"overall": _told([found.overall, *found.ci]), "tags": {tag: rounded(v) for tag, v in found.tags.items()}}


def _told(values: Sequence[float]) -> list[float | None]:
    return [rounded(float(value)) for value in values]


def profile(generator: Generator, tokens: Tensor, prompts: Sequence[Prompt], detector: Detector) -> dict[str, Any]:
    """How good pictures are: tokens (P, N, L) of N images of every prompt, by a judge.

    Overall and by tag with 95% intervals; at least one of four right ("any_of_4"); "arranged": among images with both
    things how many are arranged as asked; "bound": among those with both things and both colours how many have each
    colour on its thing.
    """
    right, both, either = (np.zeros(tokens.shape[:2], bool) for _ in range(3))
    for row, prompt in enumerate(tqdm(prompts, desc="judge")):
        present, swapped = _without_position(prompt), _with_colors_swapped(prompt)
        for column, found in enumerate(detector.detect(generator.decode(tokens[row]))):
            right[row, column] = evaluate(prompt, found).correct
            both[row, column] = evaluate(present, found).correct
            either[row, column] = right[row, column] or evaluate(swapped, found).correct
    result, tags = score(prompts, right.mean(1)), np.array([prompt.tag for prompt in prompts])
    bounds = np.percentile(bootstrap_tags(prompts, right.mean(1)), (2.5, 97.5), axis=0).T
    any_of_4 = score(prompts, expected_best_of(right.astype(float), right, min(4, right.shape[1])))
    return {
        "overall": _told([result.overall, *result.ci]),
        "tags": {tag: _told([value, *edges]) for (tag, value), edges in zip(result.tags.items(), bounds, strict=True)},
        "any_of_4": _told([any_of_4.overall, *any_of_4.ci]),
        "arranged": _share(right, both, tags == "position"),
        "bound": _share(right, either, tags == "color_attr"),
    }


def _without_position(prompt: Prompt) -> Prompt:
    return replace(prompt, include=tuple(replace(item, position=None) for item in prompt.include))


def _with_colors_swapped(prompt: Prompt) -> Prompt:
    colors = [item.color for item in prompt.include][::-1]
    return replace(
        prompt, include=tuple(replace(item, color=color) for item, color in zip(prompt.include, colors, strict=True))
    )


def _share(right: npt.NDArray, among: npt.NDArray, rows: npt.NDArray) -> dict[str, Any]:
    """How many of some images of some prompts are right, with an interval over prompts, and how many these are."""
    hits, of = right[rows].sum(1), among[rows].sum(1)
    draws = np.random.default_rng(0).integers(len(hits), size=(2000, len(hits)))
    shares = hits[draws].sum(1) / np.maximum(of[draws].sum(1), 1)
    share = [hits.sum() / max(of.sum(), 1), *np.quantile(shares, (0.025, 0.975))]
    return {"share": _told(share), "images": int(of.sum())}


def twin_test(
    model: Showo, pixels: ImageTokenizer, words: Any, prompts: Sequence[Prompt], noise: CaptionNoise, twins: int
) -> dict[str, dict[str, Any]]:
    """Of each skill how many nats the words count for, by so many twins, with a 95% interval.

    "implied" is how many the captions imply: None where they are never wrong, and there is no end of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for skill in SKILLS:
        nats = twin_differences(model, pixels, words, make_twins(prompts, skill, twins, seed=0), MASKS, seed=0).numpy()
        reach = 1.96 * nats.std() / len(nats) ** 0.5
        found[skill] = {
            "nats": round(float(nats.mean()), 4),
            "ci": [round(float(nats.mean() + sign * reach), 4) for sign in (-1, 1)],
            "implied": None if np.isinf(sure := implied(noise, skill)) else round(sure, 4),
        }
    return found
