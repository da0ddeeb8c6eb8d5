"""How long the whole build takes: a part of every step, by which the README's hours are measured."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from cotgen_lite.experiments.build import STEPS, Step
from cotgen_lite.experiments.configs import LITE, Config
from cotgen_lite.experiments.results import read_seconds
from cotgen_lite.experiments.times import PART, PARTS, hours_of_all, time_steps
from cotgen_lite.hub import data_root
from cotgen_lite.pools import pool_prompts, stratified_subset
from cotgen_lite.prompts import TAGS, lite_prompts

# What is as much in a part as in the whole: settings, and amounts for each of the prompts, of which there are fewer.
KEPT = {
    *("pool_size", "guidance_dev_images", "orm_images", "prm_recheck_stride", "verifier_learning_rates"),
    *("verifier_dev_images", "orm_images_per_label", "parm_paths", "parm_learning_rates", "prm_first_steps"),
    *("dpo_learning_rates", "generator_dev_images", "pairs_per_prompt", "round_two_images", "online_prompts"),
    *("online_samples", "twins", "extra_seeds", "extra_seed_images", "corrections_per_prompt"),
    *("correction_learning_rate", "pilot_images", "autoregressive_dpo_learning_rates", "best_of_many_prompts"),
}


def work_of(config: Config) -> dict[str, float]:
    """How much of everything a config asks for."""
    prompts = {"pools": stratified_subset(pool_prompts("test"), config.prompt_stride)}
    prompts["dev"] = stratified_subset(lite_prompts("dev"), config.prompt_stride)
    amounts = {name: float(len(some)) for name, some in prompts.items()}
    amounts["images"] = sum(number * pools for number, pools in config.orm_prompts.values())
    amounts["tokenizer"] = sum(phase.steps for phase in config.tokenizer)
    for name in ("generator", "autoregressive"):
        amounts[name] = sum(stage.steps for stage in getattr(config, name))
        amounts[f"{name} pictures"] = sum(stage.pictures for stage in getattr(config, name))
    amounts |= {f"verifier {name}": n for name, n in asdict(config.verifier).items() if name.endswith("_steps")}
    for name in ("pilot_prompts", "prm_prompts", "parm_prompts", "round_two_prompts"):
        amounts[name] = sum(getattr(config, name).values())
    names = {field.name for field in fields(Config)} - KEPT - {"flag", "steps"}
    names -= {"prompt_stride", "orm_prompts", "tokenizer", "verifier"}
    return amounts | {name: getattr(config, name) for name in names - amounts.keys()}


def test_a_part_is_as_much_less_of_all_work_as_is_said() -> None:
    part, whole = work_of(PART), work_of(LITE)
    assert part.keys() == whole.keys() and len(part) > 15
    for name, amount in whole.items():
        assert part[name] == pytest.approx(amount / PARTS, rel=0.1), name
    assert all(getattr(PART, name) == getattr(LITE, name) for name in KEPT)


def test_a_stratified_subset_takes_the_first_of_each_tag_and_every_so_manyeth_after_it() -> None:
    prompts = pool_prompts("test")
    assert stratified_subset(prompts, 1) == prompts
    for tag in TAGS:
        different = list(dict.fromkeys(prompt for prompt in prompts if prompt.tag == tag))
        kept = [prompt for prompt in stratified_subset(prompts, 7) if prompt.tag == tag]
        assert list(dict.fromkeys(kept)) == different[:: 7 if len(different) > 8 else 4]  # never one alone
        assert len(kept) == sum(map(prompts.count, set(kept)))  # with all their pools


def test_steps_after_a_model_are_made_from_the_finished_one(tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    (finished / "generator").mkdir(parents=True)
    (finished / "generator/weights").write_text("learned long")
    seen = []

    def train(out: Path, work: Path, config: Config) -> None:
        (out / "models/generator").mkdir(parents=True)
        (out / "models/generator/weights").write_text("learned briefly")

    def draw(out: Path, work: Path, config: Config) -> None:
        seen.append(((out / "models/generator/weights").read_text(), work.name, config))

    steps = [Step("generator", "", train), Step("images", "", draw)]
    seconds = time_steps(steps, PART, tmp_path / "new", finished)
    assert seen == [("learned long", "images", PART)]
    assert list(seconds) == ["generator", "images"] and all(one >= 0 for one in seconds.values())
    steps.append(Step("rollouts", "", draw))
    again = time_steps(steps, PART, tmp_path / "new", finished)  # an interrupted call's steps are not run again
    assert len(seen) == 2 and list(again) == ["generator", "images", "rollouts"] and again.items() >= seconds.items()
    with pytest.raises(ValueError, match="another run"):
        time_steps(steps, LITE, tmp_path / "new", finished)


def test_readme_says_the_hours_that_were_measured() -> None:
    measured = json.loads((data_root() / "results/build.json").read_text())
    assert list(measured["seconds_of_a_part"]) == [step.name for step in STEPS] and measured["parts"] == PARTS
    readme, chapter = map(read, ("README.md", "notebooks/11_results.ipynb"))
    hours = f"{hours_of_all(measured):.0f} hours"
    assert f"about {hours} on two" in readme and f"some {hours}" in chapter
    trained = read_seconds(data_root() / "results/times.json")["training"]
    names = {name.split("/")[1] for name in trained}
    made = sum(seconds for step, seconds in measured["seconds_of_a_part"].items() if step in names)
    shipped, counted = sum(trained.values()) / 3600, PARTS * made / 3600
    assert f"add up to {shipped:.0f} hours for steps that this counts as {counted:.0f}" in readme


def read(page: str) -> str:
    """A page of the repository, its lines joined."""
    return " ".join((data_root().parent / page).read_text(encoding="utf-8").split())
