"""`python -m cotgen_lite.build`: makes everything under `data/` from nothing, one step after the other.

`--all` does so in a folder of its own, build/all, in many hours; `--quick` at toy size, in minutes; `--out` in a folder
that you name; without any of them, what is missing in the course's own data is made. A finished step is skipped, an
interrupted one goes on where it was. Step names, with `--out`, make these steps again, and `table` in their place
prints what was found.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cotgen_lite.experiments.configs import LITE, QUICK, Recipe
from cotgen_lite.experiments.dpo_studies import measure_estimators, measure_far, measure_spread
from cotgen_lite.experiments.measure import measure_all
from cotgen_lite.experiments.measure_alignment import measure_alignment
from cotgen_lite.experiments.measure_parm import measure_guided, measure_parm
from cotgen_lite.experiments.measure_reflection import measure_reflection
from cotgen_lite.experiments.measure_sequential import measure_sequential
from cotgen_lite.experiments.measure_verifiers import measure_orm, measure_prm
from cotgen_lite.experiments.report import print_table, write_readme
from cotgen_lite.experiments.results import write_rows
from cotgen_lite.experiments.sequential_training import build_sequential, build_sequential_dpo
from cotgen_lite.experiments.train_generators import (
    build_dpo,
    build_dpo_images,
    build_guided_orm,
    build_guided_parm,
    build_it_dpo,
    build_self_correct,
)
from cotgen_lite.experiments.train_verifiers import (
    build_images,
    build_orm,
    build_parm,
    build_parm_plus,
    build_paths,
    build_prm,
    build_rollouts,
)
from cotgen_lite.generate.showo import Showo, lite_config
from cotgen_lite.generate.vq import Magvit
from cotgen_lite.generate.vq import lite_config as lite_pixels_config
from cotgen_lite.hub import MANIFEST, data_root, publish, write_manifest
from cotgen_lite.lite.generator_training import make_captioned_tokens, train_generator
from cotgen_lite.lite.judges import train_judge
from cotgen_lite.lite.tokenizer_training import train_tokenizer
from cotgen_lite.lite.verifier_training import train_verifier
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import CaptionNoise, random_scene, render
from cotgen_lite.prompts import lite_prompts, to_record
from cotgen_lite.training import subsample


def build_prompts(out: Path, work: Path, recipe: Recipe) -> None:
    """The dev and test prompts, as GenEval writes its own, and the words that lite models read."""
    for split in ("dev", "test"):
        write_rows(out / f"prompts/{split}.jsonl", [to_record(prompt) for prompt in lite_prompts(split)])
    words = out / "models/words"
    lite_tokenizer().save_pretrained(words)
    write_manifest(words, {}, 0)


def build_tokenizer(out: Path, work: Path, recipe: Recipe) -> None:
    """The image tokenizer, on random scenes."""
    torch.manual_seed(0)
    model = Magvit(lite_pixels_config())
    phases = enumerate(recipe.tokenizer)
    logs = [train_tokenizer(model, _draw_scenes, training, work / f"phase-{n}") for n, training in phases]
    settings = {"phases": [asdict(training) for training in recipe.tokenizer]}
    publish(model, out / "models/tokenizer", settings, sum(log.seconds for log in logs))


def build_judge(out: Path, work: Path, recipe: Recipe) -> None:
    """The learned judge, on clean scenes and on what the tokenizer makes of them."""
    pixels = Magvit.from_pretrained(out / "models/tokenizer")
    model, log = train_judge(work, recipe.judge_steps, rebuild=pixels.rebuild)
    publish(model, out / "models/judge", {"steps": recipe.judge_steps, "seed": 0}, log.seconds)


def build_generator(out: Path, work: Path, recipe: Recipe) -> None:
    """The generator, on noisy captions."""
    words, pixels = lite_tokenizer(), Magvit.from_pretrained(out / "models/tokenizer")
    noise = CaptionNoise()
    data = make_captioned_tokens(recipe.pictures, pixels, words, noise, seed=0)
    torch.manual_seed(0)
    model = Showo(lite_config(len(words), words.bos_token_id, words.eos_token_id))
    log = train_generator(model, data, recipe.generator_steps, work, seed=0)
    settings = {"steps": log.steps, "pictures": recipe.pictures, "seed": 0, "noise": asdict(noise)}
    publish(model, out / "models/generator", settings | {"losses": subsample(log.losses)}, log.seconds)


def build_verifier(out: Path, work: Path, recipe: Recipe) -> None:
    """The verifier, on clean scenes only."""
    log = train_verifier(work, work / "best", **recipe.verifier, seed=0)
    folder = out / "models/verifier"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "best", folder)
    settings = recipe.verifier | {"seed": 0, "stopped_at_step": log.steps, "dev_auc": log.auc}
    write_manifest(folder, settings, log.seconds)


def build_results(out: Path, work: Path, recipe: Recipe) -> None:
    """Pools, scores, findings and figures, from the models."""
    measure_all(
        out,
        work,
        recipe.pool_size,
        recipe.dev_candidates,
        recipe.one_prompt_in,
        recipe.judged_scenes,
        recipe.clean_scenes,
    )


def build_orm_results(out: Path, work: Path, recipe: Recipe) -> None:
    """Scores and findings of the fine-tuned ORM."""
    measure_orm(out)


def build_prm_results(out: Path, work: Path, recipe: Recipe) -> None:
    """Scores and findings of search step by step with both PRMs."""
    measure_prm(out, work, recipe.pool_size, recipe.first_steps)


def build_dpo_results(out: Path, work: Path, recipe: Recipe) -> None:
    """Pools, scores and findings of the aligned generators, and what alignment cost them."""
    measure_alignment(out, work, recipe)


def build_dpo_estimators(out: Path, work: Path, recipe: Recipe) -> None:
    """How estimators of log-probability differ, in noise and in what training with them gains."""
    measure_estimators(out, work, recipe)


def build_dpo_far(out: Path, work: Path, recipe: Recipe) -> None:
    """Best of n far beyond the usual n: where the verifier's belief and the judges part."""
    measure_far(out, work, recipe)


def build_dpo_spread(out: Path, work: Path, recipe: Recipe) -> None:
    """Both rounds with other training seeds, and a guided first round: scores only."""
    measure_spread(out, work, recipe)


def build_parm_results(out: Path, work: Path, recipe: Recipe) -> None:
    """PARM among the paths of each generator: what it stops and chooses, what that costs; scores and findings."""
    measure_parm(out, work, recipe)


def build_parm_guided_results(out: Path, work: Path, recipe: Recipe) -> None:
    """The generator that PARM guided, verifiers on top of it, PARM among them; scores and findings."""
    measure_guided(out, work, recipe)


def build_reflection_results(out: Path, work: Path, recipe: Recipe) -> None:
    """PARM++ on the generator that corrects itself, with its controls; scores and findings."""
    measure_reflection(out, work, recipe)


def build_sequential_results(out: Path, work: Path, recipe: Recipe) -> None:
    """The methods on next-token generators, with verifiers as they are and retaught; scores and findings."""
    measure_sequential(out, work, recipe)


STEPS: dict[str, Callable[[Path, Path, Recipe], None]] = {
    "prompts": build_prompts,
    "tokenizer": build_tokenizer,
    "judge": build_judge,
    "generator": build_generator,
    "verifier": build_verifier,
    "results": build_results,
    "images": build_images,
    "rollouts": build_rollouts,
    "orm": build_orm,
    "orm_results": build_orm_results,
    "prm": build_prm,
    "prm_results": build_prm_results,
    "paths": build_paths,
    "parm": build_parm,
    "parm-plus-plus": build_parm_plus,
    "dpo": build_dpo,
    "dpo_images": build_dpo_images,
    "it-dpo": build_it_dpo,
    "it-dpo-guided-orm": build_guided_orm,
    "it-dpo-guided-parm": build_guided_parm,
    "dpo_results": build_dpo_results,
    "parm_results": build_parm_results,
    "parm_guided_results": build_parm_guided_results,
    "self-correct": build_self_correct,
    "reflection_results": build_reflection_results,
    "sequential": build_sequential,
    "sequential-dpo": build_sequential_dpo,
    "sequential_results": build_sequential_results,
    "dpo_estimators": build_dpo_estimators,
    "dpo_far": build_dpo_far,
    "dpo_spread": build_dpo_spread,
}


# What each step is made from: when a step is made again, all that hang on it are to be made again too.
NEEDS: dict[str, tuple[str, ...]] = {
    "prompts": (),
    "tokenizer": (),
    "judge": ("tokenizer",),
    "generator": ("prompts", "tokenizer"),
    "verifier": ("prompts",),
    "results": ("judge", "generator", "verifier"),
    "images": ("generator",),
    "rollouts": ("generator",),
    "orm": ("images", "verifier"),
    "orm_results": ("results", "orm"),
    "prm": ("rollouts", "verifier"),
    "prm_results": ("orm_results", "prm"),
    "paths": ("generator",),
    "parm": ("paths", "images", "verifier"),
    "parm-plus-plus": ("paths", "images", "verifier"),
    "dpo": ("images",),
    "dpo_images": ("dpo",),
    "it-dpo": ("dpo_images",),
    "it-dpo-guided-orm": ("dpo_images", "orm"),
    "it-dpo-guided-parm": ("dpo_images", "parm"),
    "dpo_results": ("prm_results", "it-dpo", "it-dpo-guided-orm"),
    "parm_results": ("dpo_results", "parm"),
    "parm_guided_results": ("parm_results", "it-dpo-guided-parm"),
    "self-correct": ("images",),
    "reflection_results": ("parm_results", "parm-plus-plus", "self-correct"),
    "sequential": ("prompts", "tokenizer"),
    "sequential-dpo": ("sequential",),
    "sequential_results": ("results", "orm", "parm", "sequential-dpo"),
    "dpo_estimators": ("dpo",),
    "dpo_far": ("judge", "it-dpo-guided-orm"),
    "dpo_spread": ("dpo_results",),
}


def depends_on(step: str, other: str) -> bool:
    """Whether a step is made from another, directly or not."""
    return any(need == other or depends_on(need, other) for need in NEEDS[step])


def last_file(step: str, out: Path) -> Path:
    """The file that a step writes last: where it is, the step is done."""
    last = {
        "prompts": f"models/words/{MANIFEST}",
        "results": "results/test_set.json",
        "images": f"training/images/{MANIFEST}",
        "rollouts": f"training/rollouts/{MANIFEST}",
        "orm_results": "results/orm_auc.json",
        "prm_results": "results/labels.json",
        "paths": f"training/paths/{MANIFEST}",
        "dpo_images": f"training/dpo_images/{MANIFEST}",
        "dpo_results": "results/alignment.json",
        "parm_results": "results/parm.json",
        "parm_guided_results": "results/parm_guided.json",
        "reflection_results": "results/reflection.json",
        "sequential_results": "results/sequential.json",
        "dpo_estimators": "results/dpo_estimators.json",
        "dpo_far": "results/best_of_many.json",
        "dpo_spread": "results/dpo_spread.json",
    }
    return out / last.get(step, f"models/{step}/{MANIFEST}")


def build(steps: list[str], out: Path, work: Path, recipe: Recipe) -> None:
    """Run the steps that are not built yet; a step named on its own is made again."""
    for step, make in STEPS.items():
        if steps and step not in steps:
            continue
        if not steps and last_file(step, out).exists():
            print(f"{step}: there already")
            continue
        print(f"{step}: {(make.__doc__ or '').splitlines()[0]}", flush=True)
        if step in steps:  # named on its own: made again from nothing, pools' shards too
            shutil.rmtree(work / step, ignore_errors=True)
        last_file(step, out).unlink(missing_ok=True)
        for later in STEPS:  # what was made, or half made, from the old one is worth nothing now
            if depends_on(later, step):
                last_file(later, out).unlink(missing_ok=True)
                shutil.rmtree(work / later, ignore_errors=True)
        start = time.monotonic()
        make(out, work / step, recipe)
        print(f"{step}: done in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cotgen_lite.build", description=(__doc__ or "").strip())
    names = [*STEPS, "table"]
    parser.add_argument("steps", nargs="*", metavar="step", help=f"only these, made again: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="toy size, into build/quick unless --out says otherwise")
    parser.add_argument("--all", action="store_true", help="everything from nothing, into build/all")
    parser.add_argument("--out", type=Path, help="folder to build into; by default the course's own data")
    options = parser.parse_args(arguments)
    if options.all and (options.steps or options.quick or options.out):
        parser.error("--all stands alone: it makes every step, at full size, in build/all")
    unknown = [step for step in options.steps if step not in names]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}: use {', '.join(names)}")
    home = Path("build/quick" if options.quick else "build/all" if options.all else "build")
    out = options.out or (data_root() if home == Path("build") else home / "data")
    if options.steps == ["table"]:
        print_table(out)
        return
    if options.steps and not (options.quick or options.out):
        later = [step for step in STEPS if any(depends_on(step, other) for other in options.steps)]
        lost = f", and undo what hangs on it ({', '.join(later)})" if later else ""
        parser.error(
            f"this would make {', '.join(options.steps)} in {out} again{lost}. Nothing was changed. "
            f"To do so, add --out {out}; to see all steps run at toy size, in build/quick, give --quick alone"
        )
    own = not options.out or out.resolve() == data_root().resolve()  # another folder takes nothing over from ours
    work = home / "work" if own else Path(f"{out}-work")
    build(options.steps, out, work, QUICK if options.quick else LITE)
    if last_file("results", out).exists():
        write_readme(out)
        print_table(out)


def _draw_scenes(rng: np.random.Generator, count: int) -> Tensor:
    return render([random_scene(rng) for _ in range(count)])


if __name__ == "__main__":
    main()
