"""The whole build at toy size: every step runs, a second call skips all, and what it makes can be loaded."""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from cotgen_lite.experiments import build, pretrain
from cotgen_lite.experiments.configs import LITE, QUICK, Config
from cotgen_lite.experiments.measure_sequential import teach_verifiers
from cotgen_lite.experiments.report import finding_lines, rows_by_method, table_lines, write_readme
from cotgen_lite.experiments.results import note_seconds, read_rows, read_scores, read_seconds, write_rows
from cotgen_lite.generate.autoregressive import load_autoregressive
from cotgen_lite.hub import CHECKSUMS, damaged_files, data_root, read_checksums, restore, write_atomically
from cotgen_lite.lite import verifier
from cotgen_lite.pools import Pool, load_pool, save_pool
from cotgen_lite.prompts import Prompt, lite_prompts


@pytest.mark.slow
def test_quick_build_makes_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cotgen_lite.experiments.measure_reflection.ROUNDS", 1)  # they are drawn one by one, and slow
    monkeypatch.setattr("cotgen_lite.experiments.measure.pool_prompts", two_pools_for_counting)
    make_models_small(monkeypatch)
    build.main(["--quick"])
    out = tmp_path / "build/quick/data"
    aligned = ("dpo", "it-dpo", "it-dpo-guided-orm", "it-dpo-guided-parm")
    verifiers = ("verifier", "orm", "prm", "parm", "parm-plus-plus")
    sequential = ("sequential", "sequential-dpo")
    for name in ("tokenizer", "judge", "generator", *verifiers, *aligned, "self-correct", *sequential):
        manifest = json.loads((out / f"models/{name}/manifest.json").read_text())
        assert manifest["sha256"]["model.safetensors"]
    rows = rows_by_method(out)
    alone = {"baseline", "random", "oracle", "zs-orm", "ft-orm", "zs-prm", "ft-prm", "dpo-guided-orm", *aligned}
    alone |= {
        "parm",
        "parm-first",
        "parm-from-12",
        "dpo+parm",
        "it-dpo+parm",
        "it-dpo-guided-parm+parm",
        "self-correct",
    }
    controls = ("reflect", "-no-reasons", "-shuffled-reasons", "-judges-reasons", "-more-samples")
    alone |= {f"self-correct+parm{kind}" for kind in ("", "++", *(f"++{control}" for control in controls))}
    alone |= {f"seq:{kind}" for kind in ("baseline", "oracle", "zs-orm", "ft-orm", "parm", "dpo")}
    alone |= {"seq:ft-orm-retaught", "seq:parm-retaught"}
    drawn = (*aligned, "self-correct", "seq:dpo")
    assert alone | {f"{name}+{top}" for name in drawn for top in ("oracle", "zs-orm", "ft-orm")} == set(rows)
    assert rows["baseline"]["overall"] == rows["random"]["overall"] <= rows["oracle"]["overall"]
    listed = [method for method in rows if not method.endswith("+oracle")]
    assert len(table_lines(out)) == 2 + len(listed) and len(finding_lines(out)) == 2 + 12
    assert {(row["method"], row["seed"]) for row in read_rows(out / "results/scores.jsonl")} >= {("it-dpo", 1)}
    capsys.readouterr()
    build.main(["--quick"])
    assert capsys.readouterr().out.count("there already") == len(build.STEPS)
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {CHECKSUMS, ".quick", *read_checksums(out)} and damaged_files(out) == []
    assert all(any(step.owns(file) for step in build.STEPS) for file in written - {CHECKSUMS, ".quick"})
    assert not [file for file in written if "seconds" in (out / file).read_text("utf-8", "replace")]  # of the clock
    assert read_seconds(tmp_path / "build/quick/work/times.json").keys() >= {"scores", "training", "parm", "steps"}

    teach_by_chance(out)
    build.main(["checksums", "--quick"])
    for module in ("experiments.train_generators", "experiments.train_verifiers"):
        monkeypatch.setattr(f"cotgen_lite.{module}.find_reasons", reasons_by_chance)
    build.main(["orm", "prm", "parm", "parm-plus-plus", "dpo", "dpo_images", "self-correct", "--quick"])
    label_by_chance(out / "training/dpo_images/pool.safetensors")
    build.main(["checksums", "--quick"])
    build.main(["it-dpo", "it-dpo-guided-orm", "it-dpo-guided-parm", "dpo_estimators", "--quick"])
    estimators = json.loads((out / "results/dpo_estimators.json").read_text())
    assert all(found["noise"]["scatter"] >= 0 and found["steps"] > 0 for found in estimators.values())
    for name in verifiers[1:]:
        settings = json.loads((out / f"models/{name}/manifest.json").read_text())["settings"]
        assert settings["examples"] > 0 and settings["learning_rate"] and settings["losses"]
        weights = [(out / f"models/{model}/model.safetensors").read_bytes() for model in (name, "verifier")]
        assert weights[0] != weights[1]
    settings = json.loads((out / "models/self-correct/manifest.json").read_text())["settings"]
    assert settings["lessons"] > 0 and {"before", "plain", "corrected", "mute"} == set(settings["dev"])
    for name, start in zip(aligned, ("generator", "dpo", "dpo", "dpo"), strict=True):
        settings = json.loads((out / f"models/{name}/manifest.json").read_text())["settings"]
        assert settings["start"] == start and settings["pairs"] > 0 and settings["steps"] > 0
        assert ("online_margin" in settings) == ("guided" in name)
    monkeypatch.setattr("cotgen_lite.generate.pipeline.judge", by_the_pixels)
    build.main(["sequential-dpo", "--quick"])
    settings = json.loads((out / "models/sequential-dpo/manifest.json").read_text())["settings"]
    assert len(settings["tried"]) == 2 and all(
        one["pairs"] > 0 and one["steps"] > 0 for one in settings["tried"].values()
    )
    weights = [(out / f"models/{model}/model.safetensors").read_bytes() for model in sequential]
    assert weights[0] != weights[1]
    taught = tmp_path / "build/quick/work/sequential_results"
    teach_verifiers(out, load_autoregressive(models=out / "models"), taught, QUICK)
    assert list((taught / "orm").glob("checkpoint-*")) and list((taught / "parm").glob("checkpoint-*"))
    assert not any((out / f"results/{name}.json").exists() for name in ("orm_auc", "alignment"))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three steps, of which the last adds to the first one's file, in place of the build's; what was run is noted."""
    run: list[str] = []

    def make(name: str) -> Callable[[Path, Path, Config], None]:
        def step(out: Path, work: Path, config: Config) -> None:
            """Make something."""
            run.append(name)
            write_atomically(out / f"models/{name}/weights", name)
            write_atomically(out / f"models/{name}/manifest.json", "{}")
            work.mkdir(exist_ok=True)
            if name == "c":
                write_atomically(out / "scores", (out / "scores").read_text().removesuffix("c\n") + "c\n")
                if "stop" in run:
                    raise KeyboardInterrupt
            elif name == "a":
                write_atomically(out / "scores", "a\n")

        return step

    steps = (
        build.Step("a", "", make("a"), "models/a scores"),
        build.Step("b", "a", make("b")),
        build.Step("c", "b", make("c"), changes="scores"),
    )
    monkeypatch.setattr(build, "STEPS", steps)
    return run


def test_a_step_is_done_when_all_its_files_are_as_it_left_them(small_steps: list[str], tmp_path: Path) -> None:
    out, work = tmp_path / "data", tmp_path / "work"

    def again() -> list[str]:
        small_steps.clear()
        build.build([], out, work, QUICK)
        return list(small_steps)

    assert again() == ["a", "b", "c"] and again() == []
    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for file, made in {
        "models/c/weights": ["c"],
        "models/b/manifest.json": ["b", "c"],
        "models/a/weights": ["a", "b", "c"],
        "scores": ["a", "b", "c"],
    }.items():
        (out / file).unlink()
        assert again() == made and again() == [], file
        (out / file).write_text("other")
        assert again() == made and again() == [], file
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole


HALF = "0123456789abcdef" * 2  # as `hub.in_place_of` names what is half-written


def test_an_interrupted_step_starts_from_what_the_steps_before_it_left(small_steps: list[str], tmp_path: Path) -> None:
    out, work = tmp_path / "data", tmp_path / "work"
    small_steps.append("stop")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build.build([], out, work, QUICK)
    (out / f"models/b.{HALF}.part").write_text("half")
    (out / "models/film.mkv.part").write_text("another program's")
    (out / ".tmpABC123").mkdir()
    (work / "b").mkdir(exist_ok=True)
    (work / f"b/shard.{HALF}.part").write_text("half")
    assert small_steps == ["stop", "a", "b", "c", "c"]
    small_steps.clear()
    build.build([], out, work, QUICK)
    assert small_steps == ["c"] and (out / "scores").read_text() == "a\nc\n"
    assert [path.name for path in out.rglob("*.part")] == ["film.mkv.part"] and not list(work.rglob("*.part"))
    assert (out / ".tmpABC123").is_dir()
    assert damaged_files(out) == [] and not (out / ".before").exists()


def test_a_named_step_undoes_what_hangs_on_it(small_steps: list[str], tmp_path: Path) -> None:
    out, work = tmp_path / "data", tmp_path / "work"
    build.build([], out, work, QUICK)
    build.build(["b"], out, work, QUICK)
    assert not (out / "models/c").exists() and not (work / "c").exists() and (work / "a").exists()
    (out / "models/b/weights").unlink()
    with pytest.raises(build.CannotBuild, match="c needs b, which is not"):
        build.build(["c"], out, work, QUICK)


def test_what_stands_without_a_list_is_left_alone(small_steps: list[str], tmp_path: Path) -> None:
    (tmp_path / "models/a").mkdir(parents=True)
    (tmp_path / "models/a/weights").write_text("mine")
    with pytest.raises(build.CannotBuild, match=r"no list of what is whole .*build checksums --out"):
        build.build([], tmp_path, tmp_path / "work", QUICK)
    assert (tmp_path / "models/a/weights").read_text() == "mine" and not small_steps


def test_the_courses_own_files_are_not_made_again_for_being_damaged(small_steps: list[str], tmp_path: Path) -> None:
    build.build([], tmp_path / "data", tmp_path / "work", QUICK)
    (tmp_path / "data/models/a/weights").write_text("other")
    small_steps.clear()
    with pytest.raises(build.CannotBuild, match=r"models/a/weights is damaged: .*Nothing was changed"):
        build.build([], tmp_path / "data", tmp_path / "work", QUICK, own=True)
    assert not small_steps


@pytest.mark.parametrize(("config", "other", "flag"), [(QUICK, LITE, "with"), (LITE, QUICK, "without")])
def test_sizes_do_not_mix_and_the_cure_keeps_to_them(
    config: Config, other: Config, flag: str, small_steps: list[str], tmp_path: Path
) -> None:
    out, work = tmp_path / "my data", tmp_path / "work"
    build.build([], out, work, config)
    (out / "models/b/weights").unlink()
    small_steps.clear()
    with pytest.raises(
        build.CannotBuild, match=rf"my data was built {flag} --quick, .*or here {flag} it\. Nothing was"
    ):
        build.build([], out, work, other)
    assert not small_steps and (out / "models/c").exists()
    command = f"python -m cotgen_lite.build {'--quick ' * (config is QUICK)}--out '{out}'"
    assert f"make it again with `{command}`" in restore(out)
    build.main(shlex.split(command)[3:])
    assert small_steps == ["b", "c"]
    small_steps.clear()
    shutil.rmtree(out)
    build.build([], out, work, other)
    assert ("--quick" in restore(out)) == (other is QUICK)


def test_two_builds_at_once_are_refused_and_a_dead_one_holds_nothing(small_steps: list[str], tmp_path: Path) -> None:
    program = "import sys, time; from pathlib import Path; from cotgen_lite.experiments.build import held\n"
    program += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    out = tmp_path / "data"
    other = subprocess.Popen([sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE)
    try:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(build.CannotBuild, match=rf"Another build is at work in .*data \(process {other.pid} on"):
            build.build([], out, tmp_path / "work", QUICK)
    finally:
        other.kill()
        other.wait()
    build.build([], out, tmp_path / "work", QUICK)
    assert small_steps == ["a", "b", "c"] and not (out / ".lock").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_named_and_the_build_goes_on(
    error: Exception, small_steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def fail(*_: object) -> None:
        """Fail."""
        raise error

    steps = build.STEPS
    monkeypatch.setattr(build, "STEPS", (steps[0], replace(steps[1], run=fail), steps[2]))
    with pytest.raises(SystemExit, match=r"^The disk is full, .*cannot be written: free some, and .*goes on"):
        build.main(["--out", "mine"])
    monkeypatch.setattr(build, "STEPS", steps)
    build.main(["--out", "mine"])
    assert small_steps == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all", "--quick"], "--all stands alone"),
        (["table", "orm"], "table stands alone"),
        (["--out", "."], "is no folder with a name of its own"),
        (["--out", "file"], "is no folder with a name of its own"),
        (["--out", "file/mine"], "cannot be written"),
        (["checksums", "--out", "nowhere"], "nowhere is no folder"),
        (["table", "--out", "nowhere"], "nowhere/results/scores.jsonl is missing: make it again with"),
        (["table", "--out", "half"], "half/results/scores.jsonl is damaged in line 1"),
    ],
)
def test_bad_command_lines_are_refused_in_one_sentence(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    write_atomically(tmp_path / "half/results/scores.jsonl", "{")
    with pytest.raises(SystemExit) as left:
        build.main(arguments)
    assert said in f"{left.value.code} {capsys.readouterr().err}"


def test_tables_are_printed_whatever_the_terminal_can_show(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cotgen_lite.build", "table"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    said = subprocess.run(command, env=environment, capture_output=True, check=True).stdout.decode("cp1252")
    assert "ft-orm \\u2212 zs-orm > 0" in said


def test_seconds_stand_beside_the_results_and_are_read_with_them(tmp_path: Path) -> None:
    row = {"method": "a", "generator": "b", "n": 2, "seed": 0, "cost": {"tokens": 3.0}}
    write_rows(tmp_path / "data/results/scores.jsonl", [row])
    assert read_scores(tmp_path / "data") == [row]
    note_seconds(tmp_path / "work/times.json", "scores", {"a of b, n 2, seed 0": 0.5})
    note_seconds(tmp_path / "work/times.json", "scores", {"c of b, n 1, seed 0": 9})
    assert build.list_as_it_is(tmp_path / "data", tmp_path / "work") == 2
    assert read_scores(tmp_path / "data") == [row | {"cost": {"tokens": 3.0, "seconds": 0.5}}]


def test_checksums_take_over_seconds_of_several_names_where_there_is_a_list(tmp_path: Path) -> None:
    out, work = tmp_path / "data", tmp_path / "work"
    for seconds in (1, 2):
        for name in ("scores", "training"):
            note_seconds(work / "times.json", name, {"a": seconds})
        out.mkdir(exist_ok=True)
        build.list_as_it_is(out, work)
    assert read_seconds(out / "results/times.json") == {"scores": {"a": 2}, "training": {"a": 2}}
    (out / "results/times.json").write_text(
        '{"scores": {"b": 3}}'
    )  # changed by hand, for which `checksums` is the cure
    build.list_as_it_is(out, work)
    assert read_seconds(out / "results/times.json") == {"scores": {"a": 2, "b": 3}, "training": {"a": 2}}
    (out / "results/times.json").write_text("[]")
    with pytest.raises(ValueError, match=r"times\.json is damaged: .*get it back, or delete it"):
        build.list_as_it_is(out, work)


def test_checksums_list_nothing_half_done_or_under_way(small_steps: list[str], tmp_path: Path) -> None:
    out, work = tmp_path / "data", tmp_path / "work"
    small_steps.append("stop")
    with pytest.raises(KeyboardInterrupt):
        build.build([], out, work, QUICK)
    before = read_checksums(out)
    with pytest.raises(build.CannotBuild, match="finish the build first, by the same command without `checksums`"):
        build.list_as_it_is(out, work)
    assert read_checksums(out) == before
    small_steps.clear()
    build.build([], out, work, QUICK)
    with build.held(work), pytest.raises(build.CannotBuild, match=r"Another build is at work in .*work"):
        build.list_as_it_is(out, work)
    assert build.list_as_it_is(out, tmp_path / "none") == 7 and not (tmp_path / "none").exists()


def make_models_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators and verifiers of the course's own classes in a tenth of its sizes: ten steps teach them nothing."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

    def shrink(module: ModuleType, name: str, **also: object) -> None:
        make = getattr(module, name)

        def made(*ids: int, **settings: object) -> PretrainedConfig:
            config = make(*ids, **settings)
            for size, value in (sizes | also).items():
                setattr(config, size, value)
            return config

        monkeypatch.setattr(module, name, made)

    shrink(pretrain, "lite_showo_config")
    shrink(pretrain, "lite_autoregressive_config", text_width=32)
    shrink(verifier.hf, "SiglipVisionConfig")
    shrink(verifier.hf, "Qwen2Config", num_key_value_heads=2, layer_types=["full_attention"] * 2)


def two_pools_for_counting(split: str) -> tuple[Prompt, ...]:
    """The prompts of one tag have two pools, the others one each."""
    return tuple(prompt for prompt in lite_prompts(split) for _ in range(1 + (prompt.tag == "counting")))


def teach_by_chance(out: Path) -> None:
    """Labels drawn by chance, where an untrained generator's pictures are all wrong."""
    rng = np.random.default_rng(0)
    label_by_chance(out / "training/images/pool.safetensors")
    rollouts = out / "training/rollouts/four.safetensors"
    steps = load_pool(rollouts)
    # Two paths of one tag, so that a step can have both labels.
    prompts, codes = (steps.prompts[0],) * 2, steps.tokens[:1].repeat(2, 1, 1)
    save_pool(Pool(prompts, codes, {}, {"rollouts": rng.random((2, 18, 4)) < 0.2}), rollouts)
    ends = np.tile([[True], [False]], (1, 18))
    save_pool(Pool(prompts, codes, {}, {"template": ends}), out / "training/paths/pool.safetensors")


def reasons_by_chance(generator: object, detector: object, tokens: torch.Tensor, *_: object, seed: int) -> np.ndarray:
    """A reason for four of five images, whatever they show."""
    return np.where(
        np.arange(tokens.shape[0] * tokens.shape[1]).reshape(tokens.shape[:2]) % 5 == 0, "", "there is no cat"
    )


def by_the_pixels(detector: object, images: torch.Tensor, prompts: object) -> np.ndarray:
    """A verdict that tells the pictures of an untrained generator apart."""
    return (images.flatten(1).long().sum(1) % 2 == 0).numpy()


def label_by_chance(images: Path) -> None:
    """The labels of a set of images, half of them right."""
    pool = load_pool(images)
    labels = np.random.default_rng(1).random(pool.correct["template"].shape) < 0.5
    save_pool(replace(pool, correct={"template": labels}), images)


def test_steps_need_only_what_stands_before_them() -> None:
    names = [step.name for step in build.STEPS]
    for place, step in enumerate(build.STEPS):
        assert set(step.needs.split()) <= set(names[:place])
    hanging = [step.name for step in build.hanging_on(["verifier"])]
    assert "prm_results" in hanging and "images" not in hanging and "verifier" not in hanging


def test_unknown_step_lists_the_steps(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        build.main(["nothing"])
    assert "tokenizer, judge, generator" in capsys.readouterr().err


def test_nothing_of_the_courses_own_data_is_made_again_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made: list[tuple] = []
    monkeypatch.setattr(build, "build", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(build, "write_readme", lambda out: None)
    monkeypatch.setattr(build, "print_table", lambda out: None)
    with pytest.raises(SystemExit):
        build.main(["orm"])
    message = capsys.readouterr().err
    assert "undo what hangs on it (orm_results, prm_results," in message and f"add --out {data_root()}" in message
    assert "Nothing was changed" in message and "give --quick alone" in message
    with pytest.raises(SystemExit):
        build.main(["--all", "orm"])
    assert not made
    build.main(["orm", "--out", "again"])
    build.main(["--all"])
    build.main(["--out", str(data_root())])
    assert made == [
        (["orm"], Path("again"), Path("again-work"), LITE, False),
        ([], Path("build/all/data"), Path("build/all/work"), LITE, False),
        ([], data_root(), Path("build/work"), LITE, True),
    ]


def test_readme_gets_the_shipped_table_between_its_markers(tmp_path: Path) -> None:
    shipped = Path(build.data_root())
    text = (shipped.parent / "README.md").read_text()
    assert all("\n".join(lines(shipped)) in text for lines in (table_lines, finding_lines))
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "data").symlink_to(shipped)
    write_readme(tmp_path / "data")
    assert (tmp_path / "README.md").read_text() == text  # else: python -m cotgen_lite.build
    (tmp_path / "README.md").write_text("before\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n")
    write_readme(tmp_path / "data")
    new = (tmp_path / "README.md").read_text()
    assert "old" not in new and new.startswith("before") and new.endswith("after\n") and "| baseline |" in new


def test_readme_tells_of_both_worlds_whichever_was_measured_last(tmp_path: Path) -> None:
    readme, worlds = tmp_path / "README.md", {"data": data_root(), "data/next": data_root() / "next"}
    for name, shipped in worlds.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results").symlink_to(shipped / "results")
    for name in worlds:
        readme.write_text("before\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n")
        write_readme(tmp_path / name)
        second, first = readme.read_text().split("**The first world** (`data/`), of chapters 02 to 11:")
        assert "old" not in second and "**The second world** (`data/next/`), of chapters 00 and 01:" in second
        for part, world in ((second, worlds["data/next"]), (first, worlds["data"])):
            assert all("\n".join(lines(world)) in part for lines in (table_lines, finding_lines))
