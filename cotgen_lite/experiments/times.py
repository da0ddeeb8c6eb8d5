"""How long `python -m cotgen_lite.build --all` takes.

`python -m cotgen_lite.experiments.times` finds out, in an hour and a half.

Every step is run on a fourteenth of its work (training steps, images, prompts) and timed; what it is made from is small
in the same measure, but the models in it are the course's own, so that pairs, stops and reasons are as frequent as they
are in the whole. What a step does once, however long it is, is counted fourteen times; how busy or warm the machine is
in a day's work, not at all. Interrupted, it starts the step again at which it was.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cotgen_lite.experiments.build import STEPS, Step
from cotgen_lite.experiments.configs import LITE, Config
from cotgen_lite.hub import data_root, insist_on_two_cores, write_json
from cotgen_lite.identity import check_same_run, identity
from cotgen_lite.lite.generator_training import Stage

PARTS = 14  # an interval needs two prompts of each tag, and these are a fourteenth of all


def part_of(amount: Any) -> Any:
    """One of `PARTS` equal parts of a number, rounded, or of each in a dictionary."""
    return {key: part_of(one) for key, one in amount.items()} if isinstance(amount, dict) else round(amount / PARTS)


def _part_of_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    return tuple(replace(one, steps=part_of(one.steps), pictures=part_of(one.pictures)) for one in stages)


SCALED = (
    *("judge_steps", "correction_steps"),
    *("judge_test_scenes", "verifier_test_scenes", "estimator_pairs", "best_of_many_images", "replay_pictures"),
    *("verifier_scenes", "explained_scenes", "pilot_prompts", "prm_prompts", "parm_prompts", "round_two_prompts"),
)
PART = replace(
    LITE,
    tokenizer=tuple(replace(phase, steps=part_of(phase.steps)) for phase in LITE.tokenizer),
    generator=_part_of_stages(LITE.generator),
    autoregressive=_part_of_stages(LITE.autoregressive),
    verifier=replace(
        LITE.verifier,
        **{name: part_of(getattr(LITE.verifier, name)) for name in ("tower_steps", "fact_steps", "match_steps")},
    ),
    prompt_stride=30,  # two of nearly every tag: 24 of 328 pools, 13 of 200 dev prompts
    # 60 of 852 pools.
    orm_prompts={tag: (part_of(n) or 1, pools if part_of(n) else 1) for tag, (n, pools) in LITE.orm_prompts.items()},
    **{name: part_of(getattr(LITE, name)) for name in SCALED},
)


def time_steps(steps: Sequence[Step], config: Config, folder: Path, models: Path) -> dict[str, float]:
    """Seconds of each step, run one after the other; goes on in a folder that an interrupted call left.

    models: folder of finished ones; where it has a step's, that takes the place of the one just made. ValueError if the
    interrupted call had another config.
    """
    check_same_run(folder, identity(config))
    note = folder / "seconds.json"
    seconds: dict[str, float] = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    for step in steps:
        if step.name in seconds:
            continue
        shutil.rmtree(folder / "work" / step.name, ignore_errors=True)
        start = time.monotonic()
        step.run(folder / "data", folder / "work" / step.name, config)
        seconds[step.name] = round(time.monotonic() - start, 1)
        if (models / step.name).exists():
            shutil.copytree(models / step.name, folder / "data/models" / step.name, dirs_exist_ok=True)
        write_json(note, seconds)
        print(f"{step.name}: {seconds[step.name]:.0f} s", flush=True)
    return {step.name: seconds[step.name] for step in steps}


def hours_of_all(measured: Mapping) -> float:
    """Hours that all steps take at full size, by what `main` wrote down."""
    return measured["parts"] * sum(measured["seconds_of_a_part"].values()) / 3600


def main() -> None:
    """Time all steps on a part of their work, and write it down."""
    insist_on_two_cores()
    folder = Path("build/times")
    seconds = time_steps(STEPS, PART, folder, data_root() / "models")
    measured = {"parts": PARTS, "seconds_of_a_part": seconds}
    write_json(data_root() / "results/build.json", measured)
    shutil.rmtree(folder)
    print(f"all steps at full size: about {hours_of_all(measured):.0f} hours")


if __name__ == "__main__":
    main()
