"""`python -m cotgen_lite.build`: makes everything under `data/` from nothing, one step after the other.

`--all` does so in a folder of its own, build/all, in many hours; `--quick` at toy size, in minutes; `--out` in a folder
that you name; without any of them, what is missing in the course's own data is made. A finished step is skipped, an
interrupted one goes on where it was. Step names, with `--out`, make these steps again. In their place, `table` prints
what was found, and `checksums` lists the folder's files with their checksums anew, as they are.
What a step does stands in its function; how much it does, in `configs.py`.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cotgen_lite.experiments.configs import LITE, QUICK, Config
from cotgen_lite.experiments.dpo_studies import measure_estimators, measure_far, measure_spread
from cotgen_lite.experiments.measure import measure_all
from cotgen_lite.experiments.measure_alignment import measure_alignment
from cotgen_lite.experiments.measure_parm import measure_guided, measure_parm
from cotgen_lite.experiments.measure_reflection import measure_reflection
from cotgen_lite.experiments.measure_sequential import measure_sequential
from cotgen_lite.experiments.measure_verifiers import measure_orm, measure_prm
from cotgen_lite.experiments.pretrain import (
    build_generator,
    build_judge,
    build_prompts,
    build_sequential,
    build_tokenizer,
    build_verifier,
)
from cotgen_lite.experiments.report import print_table, write_readme
from cotgen_lite.experiments.train_generators import (
    build_dpo,
    build_dpo_images,
    build_it_dpo,
    build_self_correct,
    build_sequential_dpo,
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
from cotgen_lite.hub import CHECKSUMS, MANIFEST, data_root, write_checksums


@dataclass(frozen=True)
class Step:
    """A step of the build: the names of those that it needs, the function that makes it, and what that writes last
    under `out` (a file, or a folder's manifest). The function is given `out`, a folder to resume from, the amounts.
    """

    name: str
    needs: str
    run: Callable[[Path, Path, Config], None]
    makes: str = "models/{name}"

    @property
    def summary(self) -> str:
        """The first line of what its function says of itself."""
        return (getattr(self.run, "func", self.run).__doc__ or "").splitlines()[0]

    def last_file(self, out: Path) -> Path:
        """The file that the step writes last: where it is, the step is done."""
        path = out / self.makes.format(name=self.name)
        return path if path.suffix else path / MANIFEST


# In this order. When a step is made again, all that hang on it are to be made again too.
STEPS = (
    Step("prompts", "", build_prompts, "models/words"),
    Step("tokenizer", "", build_tokenizer),
    Step("judge", "tokenizer", build_judge),
    Step("generator", "prompts tokenizer", build_generator),
    Step("verifier", "prompts", build_verifier),
    Step("results", "judge generator verifier", measure_all, "results/test_set.json"),
    Step("images", "generator", build_images, "training/images"),
    Step("rollouts", "generator", build_rollouts, "training/rollouts"),
    Step("orm", "images verifier", build_orm),
    Step("orm_results", "results orm", measure_orm, "results/orm_auc.json"),
    Step("prm", "rollouts verifier", build_prm),
    Step("prm_results", "orm_results prm", measure_prm, "results/labels.json"),
    Step("paths", "generator", build_paths, "training/paths"),
    Step("parm", "paths images verifier", build_parm),
    Step("parm-plus-plus", "paths images verifier", build_parm_plus),
    Step("dpo", "images", build_dpo),
    Step("dpo_images", "dpo", build_dpo_images, "training/dpo_images"),
    Step("it-dpo", "dpo_images", build_it_dpo),
    Step("it-dpo-guided-orm", "dpo_images orm", partial(build_it_dpo, guide="orm")),
    Step("it-dpo-guided-parm", "dpo_images parm", partial(build_it_dpo, guide="parm")),
    Step("dpo_results", "prm_results it-dpo it-dpo-guided-orm", measure_alignment, "results/alignment.json"),
    Step("parm_results", "dpo_results parm", measure_parm, "results/parm.json"),
    Step("parm_guided_results", "parm_results it-dpo-guided-parm", measure_guided, "results/parm_guided.json"),
    Step("self-correct", "images", build_self_correct),
    Step(
        "reflection_results", "parm_results parm-plus-plus self-correct", measure_reflection, "results/reflection.json"
    ),
    Step("sequential", "prompts tokenizer", build_sequential),
    Step("sequential-dpo", "sequential", build_sequential_dpo),
    Step("sequential_results", "results orm parm sequential-dpo", measure_sequential, "results/sequential.json"),
    Step("dpo_estimators", "dpo", measure_estimators, "results/dpo_estimators.json"),
    Step("dpo_far", "judge it-dpo-guided-orm", measure_far, "results/best_of_many.json"),
    Step("dpo_spread", "dpo_results", measure_spread, "results/dpo_spread.json"),
)


OTHER_DEEDS = ("table", "checksums")  # what is named in place of steps


def hanging_on(names: Sequence[str]) -> list[Step]:
    """The steps that are made from any of these, directly or not."""
    made = set(names)
    for step in STEPS:
        if made.intersection(step.needs.split()):
            made.add(step.name)
    return [step for step in STEPS if step.name in made and step.name not in names]


def build(names: list[str], out: Path, work: Path, config: Config) -> None:
    """Run the steps that are not built yet; a step named on its own is made again."""
    for step in STEPS:
        if names and step.name not in names:
            continue
        if not names and step.last_file(out).exists():
            print(f"{step.name}: there already")
            continue
        print(f"{step.name}: {step.summary}", flush=True)
        if step.name in names:  # named on its own: made again from nothing, pools' shards too
            shutil.rmtree(work / step.name, ignore_errors=True)
        step.last_file(out).unlink(missing_ok=True)
        for later in hanging_on([step.name]):  # what was made, or half made, from the old one is worth nothing now
            later.last_file(out).unlink(missing_ok=True)
            shutil.rmtree(work / later.name, ignore_errors=True)
        start = time.monotonic()
        step.run(out, work / step.name, config)
        print(f"{step.name}: done in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m cotgen_lite.build", description=(__doc__ or "").strip())
    names = [*(step.name for step in STEPS), *OTHER_DEEDS]
    parser.add_argument("steps", nargs="*", metavar="step", help=f"only these, made again: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="toy size, into build/quick unless --out says otherwise")
    parser.add_argument("--all", action="store_true", help="everything from nothing, into build/all")
    parser.add_argument("--out", type=Path, help="folder to build into; by default the course's own data")
    options = parser.parse_args(arguments)
    if options.all and (options.steps or options.quick or options.out):
        parser.error("--all stands alone: it makes every step, at full size, in build/all")
    if len(options.steps) > 1 and (alone := [name for name in OTHER_DEEDS if name in options.steps]):
        parser.error(f"{alone[0]} stands alone: give it without steps")
    unknown = [step for step in options.steps if step not in names]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}: use {', '.join(names)}")
    home = Path("build/quick" if options.quick else "build/all" if options.all else "build")
    out = options.out or (data_root() if home == Path("build") else home / "data")
    if options.steps == ["table"]:
        print_table(out)
        return
    if options.steps == ["checksums"]:
        print(f"{out / CHECKSUMS}: the checksums of {len(write_checksums(out))} files")
        return
    if options.steps and not (options.quick or options.out):
        later = [step.name for step in hanging_on(options.steps)]
        lost = f", and undo what hangs on it ({', '.join(later)})" if later else ""
        parser.error(
            f"this would make {', '.join(options.steps)} in {out} again{lost}. Nothing was changed. "
            f"To do so, add --out {out}; to see all steps run at toy size, in build/quick, give --quick alone"
        )
    own = not options.out or out.resolve() == data_root().resolve()  # another folder takes nothing over from ours
    work = home / "work" if own else Path(f"{out}-work")
    build(options.steps, out, work, QUICK if options.quick else LITE)
    if (out / "results/test_set.json").exists():
        write_readme(out)
        print_table(out)


if __name__ == "__main__":
    main()
