"""`python -m cotgen_lite.build`: makes everything under `data/` from nothing, one step after the other.

A finished step is skipped, an interrupted one goes on where it was. `--quick` runs the whole path at toy size, `--out`
builds into another folder, and step names (`python -m cotgen_lite.build results`) run these steps only.
`python -m cotgen_lite.build table` prints what was found.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cotgen_lite.files import MANIFEST, data_root, file_sha256
from cotgen_lite.generator_training import make_captioned_tokens, train_generator
from cotgen_lite.judge_training import train_judge
from cotgen_lite.measure import measure_all
from cotgen_lite.prompts import lite_prompts, to_record
from cotgen_lite.report import print_table, write_readme
from cotgen_lite.results import write_json, write_rows
from cotgen_lite.scenes import CaptionNoise, random_scene, render
from cotgen_lite.showo import Showo, lite_config
from cotgen_lite.tokenizer import Magvit
from cotgen_lite.tokenizer import lite_config as lite_pixels_config
from cotgen_lite.tokenizer_training import TokenizerTraining, train_tokenizer
from cotgen_lite.verifier_training import train_verifier
from cotgen_lite.vocabulary import lite_tokenizer


@dataclass(frozen=True)
class Recipe:
    """How long everything is trained and how much is measured; all seeds are fixed."""

    tokenizer: tuple[TokenizerTraining, ...]
    judge_steps: int
    pictures: int
    generator_steps: int
    verifier: dict[str, int]
    pool_size: int
    dev_candidates: int
    prompts_per_tag: int
    judged_scenes: int


# The tokenizer first learns to rebuild, then to be certain: the same patch in the same code wherever it stands, which
# leaves the generator less to learn (392 codes in use, an icon in 4 different spellings instead of 19).
LITE = Recipe(
    tokenizer=(
        TokenizerTraining(1200, batch=32, certainty=0.002, commitment=0.03, seed=0),
        TokenizerTraining(300, batch=32, learning_rate=1e-3, certainty=0.05, commitment=0.5, seed=1),
        TokenizerTraining(350, batch=32, learning_rate=1.2e-3, certainty=0.2, commitment=1.0, seed=2),
        TokenizerTraining(250, batch=32, learning_rate=1.2e-3, certainty=0.1, commitment=1.0, foreground=8.0, seed=3),
    ),
    judge_steps=1200,
    pictures=40_000,
    generator_steps=4000,
    verifier={"tower_steps": 400, "fact_steps": 400, "match_steps": 1100, "wording_steps": 1000, "evaluate_every": 100},
    pool_size=20,
    dev_candidates=2,
    prompts_per_tag=100,
    judged_scenes=2000,
)
QUICK = Recipe(
    tokenizer=(TokenizerTraining(20, batch=16), TokenizerTraining(20, batch=16, seed=1)),
    judge_steps=10,
    pictures=256,
    generator_steps=20,
    verifier={"tower_steps": 10, "fact_steps": 5, "match_steps": 5, "wording_steps": 5, "evaluate_every": 15},
    pool_size=4,
    dev_candidates=2,
    prompts_per_tag=2,
    judged_scenes=20,
)


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
    pixels, started = Magvit.from_pretrained(out / "models/tokenizer"), time.monotonic()
    model = train_judge(work, recipe.judge_steps, rebuild=lambda images: pixels.decode(pixels.encode(images)))
    publish(model, out / "models/judge", {"steps": recipe.judge_steps, "seed": 0}, time.monotonic() - started)


def build_generator(out: Path, work: Path, recipe: Recipe) -> None:
    """The generator, on noisy captions."""
    words, pixels = lite_tokenizer(), Magvit.from_pretrained(out / "models/tokenizer")
    noise = CaptionNoise()
    data = make_captioned_tokens(recipe.pictures, pixels, words, noise, seed=0)
    torch.manual_seed(0)
    model = Showo(lite_config(len(words), words.bos_token_id, words.eos_token_id))
    log = train_generator(model, data, recipe.generator_steps, work, seed=0)
    settings = {"steps": log.steps, "pictures": recipe.pictures, "seed": 0, "noise": asdict(noise)}
    publish(model, out / "models/generator", settings | {"losses": _thinned(log.losses)}, log.seconds)


def build_verifier(out: Path, work: Path, recipe: Recipe) -> None:
    """The verifier, on clean scenes only."""
    started = time.monotonic()
    areas = train_verifier(work, work / "best", **recipe.verifier, seed=0)
    folder = out / "models/verifier"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "best", folder)
    settings = recipe.verifier | {"seed": 0, "dev_auc": areas}
    write_manifest(folder, settings, time.monotonic() - started)


def build_results(out: Path, work: Path, recipe: Recipe) -> None:
    """Pools, scores, findings and figures, from the models."""
    measure_all(out, work, recipe.pool_size, recipe.dev_candidates, recipe.prompts_per_tag, recipe.judged_scenes)


STEPS: dict[str, Callable[[Path, Path, Recipe], None]] = {
    "prompts": build_prompts,
    "tokenizer": build_tokenizer,
    "judge": build_judge,
    "generator": build_generator,
    "verifier": build_verifier,
    "results": build_results,
}


def publish(model: PreTrainedModel, folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Save a model's weights as fp16 safetensors, and the manifest that says how it was made."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    write_manifest(folder, settings, seconds)


def write_manifest(folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Record settings, seconds of training and every file's checksum; its presence says that the model is whole."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    sums = {path.name: file_sha256(path) for path in files}
    manifest = {"settings": settings, "seconds": round(seconds), "sha256": sums}
    write_json(folder / MANIFEST, manifest)


def is_built(step: str, out: Path) -> bool:
    """Whether a step's last file is there."""
    last = {"prompts": f"models/words/{MANIFEST}", "results": "results/test_set.json"}
    return (out / last.get(step, f"models/{step}/{MANIFEST}")).exists()


def build(steps: list[str], out: Path, work: Path, recipe: Recipe) -> None:
    """Run the steps that are not built yet; a step named on its own is made again."""
    for step, make in STEPS.items():
        if steps and step not in steps:
            continue
        if not steps and is_built(step, out):
            print(f"{step}: there already")
            continue
        if step in steps:  # named on its own: made again from nothing, pools' shards too
            shutil.rmtree(work / step, ignore_errors=True)
        print(f"{step}: {(make.__doc__ or '').splitlines()[0]}", flush=True)
        make(out, work / step, recipe)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cotgen_lite.build", description=(__doc__ or "").strip())
    names = [*STEPS, "table"]
    parser.add_argument("steps", nargs="*", metavar="step", help=f"only these, made again: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="toy size, into build/quick unless --out says otherwise")
    parser.add_argument("--out", type=Path, help="folder to build into; by default the course's own data")
    options = parser.parse_args(arguments)
    unknown = [step for step in options.steps if step not in names]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}: use {', '.join(names)}")
    out = options.out or (Path("build/quick/data") if options.quick else data_root())
    if options.steps == ["table"]:
        print_table(out)
        return
    work = Path("build/quick/work" if options.quick else "build/work")
    build(options.steps, out, work, QUICK if options.quick else LITE)
    write_readme(out)
    print_table(out)


def _draw_scenes(rng: np.random.Generator, count: int) -> Tensor:
    return render([random_scene(rng) for _ in range(count)])


def _thinned(losses: list[float]) -> list[float]:
    return [round(loss, 4) for loss in losses[:: max(1, len(losses) // 40)]]


if __name__ == "__main__":
    main()
