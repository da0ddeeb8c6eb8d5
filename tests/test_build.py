"""The whole build at toy size: every step runs, a second call skips all, and what it makes can be loaded."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from cotgen_lite.experiments import build, pretrain
from cotgen_lite.experiments.configs import LITE, QUICK
from cotgen_lite.experiments.measure_sequential import teach_verifiers
from cotgen_lite.experiments.report import finding_lines, rows_by_method, table_lines, write_readme
from cotgen_lite.experiments.results import read_rows
from cotgen_lite.generate.autoregressive import load_autoregressive
from cotgen_lite.hub import data_root
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

    def nothing(*_: object) -> None:
        """Made nothing."""

    teach_by_chance(out)
    for module in ("experiments.train_generators", "experiments.train_verifiers"):
        monkeypatch.setattr(f"cotgen_lite.{module}.find_reasons", reasons_by_chance)
    build.main(["orm", "prm", "parm", "parm-plus-plus", "dpo", "dpo_images", "self-correct", "--quick"])
    label_by_chance(out / "training/dpo_images/pool.safetensors")
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

    made_nothing = [
        replace(step, run=nothing) if step.name in ("tokenizer", "results") else step for step in build.STEPS
    ]
    monkeypatch.setattr(build, "STEPS", made_nothing)
    build.main(["results", "--quick"])
    assert not (out / "results/test_set.json").exists()  # an interrupted step is not done
    build.main(["tokenizer", "--quick"])
    done = {step.name for step in build.STEPS if step.last_file(out).exists()}
    assert done == {"prompts", "verifier"}  # what was made from the old one is to be made again, from nothing
    assert {path.name for path in (tmp_path / "build/quick/work").iterdir()} == {"verifier"}


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
    monkeypatch.setattr(build, "build", lambda steps, out, work, config: made.append((steps, out, work, config)))
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
    assert made == [
        (["orm"], Path("again"), Path("again-work"), LITE),
        ([], Path("build/all/data"), Path("build/all/work"), LITE),
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
