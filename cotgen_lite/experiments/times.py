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

from cotgen_lite.experiments.build import STEPS, Step
from cotgen_lite.experiments.configs import LITE, Config
from cotgen_lite.hub import data_root, insist_on_two_cores, write_json
from cotgen_lite.training import check_same_run

PARTS = 14  # an interval needs two prompts of each tag, and these are a fourteenth of all


def part_of(number: int) -> int:
    """One of `PARTS` equal parts of a number, rounded."""
    return round(number / PARTS)


def parts_of(numbers: Mapping[str, int]) -> dict[str, int]:
    """`part_of` all numbers."""
    return {name: part_of(number) for name, number in numbers.items()}


PART = replace(
    LITE,
    tokenizer=tuple(replace(phase, steps=part_of(phase.steps)) for phase in LITE.tokenizer),
    judge_steps=part_of(LITE.judge_steps),
    pictures=part_of(LITE.pictures),
    generator_steps=part_of(LITE.generator_steps),
    verifier=LITE.verifier | parts_of({name: LITE.verifier[name] for name in LITE.verifier if name.endswith("_steps")}),
    one_prompt_in=30,  # two of nearly every tag: 24 of 328 pools, 13 of 200 dev prompts
    judged_scenes=part_of(LITE.judged_scenes),
    clean_scenes=part_of(LITE.clean_scenes),
    # 60 of 852 pools.
    images={tag: (part_of(n) or 1, pools if part_of(n) else 1) for tag, (n, pools) in LITE.images.items()},
    paths=parts_of(LITE.paths),
    path_prompts=parts_of(LITE.path_prompts),
    estimated_pairs=part_of(LITE.estimated_pairs),
    second_prompts=parts_of(LITE.second_prompts),
    correction_steps=part_of(LITE.correction_steps),
    replayed=part_of(LITE.replayed),
    sequential_steps=part_of(LITE.sequential_steps),
    many_candidates=part_of(LITE.many_candidates),
)


def time_steps(steps: Sequence[Step], config: Config, folder: Path, models: Path) -> dict[str, float]:
    """Seconds of each step, run one after the other; goes on in a folder that an interrupted call left.

    models: folder of finished ones; where it has a step's, that takes the place of the one just made. ValueError if the
    interrupted call had another config.
    """
    check_same_run(folder, repr(config))
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
