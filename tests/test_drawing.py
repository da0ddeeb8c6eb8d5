"""Pools drawn shard by shard: the same after an interrupt, and never another model's."""

import copy
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cotgen_lite import pools
from cotgen_lite.generate.autoregressive import load_autoregressive
from cotgen_lite.generate.pipeline import (
    Generator,
    GeneratorOutput,
    _first_candidates,
    generate_pool,
    judge_tokens,
    label_tokens,
    load_generator,
)
from cotgen_lite.generate.sampling import Cost, SamplingSettings
from cotgen_lite.generate.vq import Magvit, lite_magvit_config
from cotgen_lite.geneval import Detection
from cotgen_lite.hub import data_path
from cotgen_lite.identity import fingerprint
from cotgen_lite.lite.judges import TemplateJudge, load_judge
from cotgen_lite.pools import in_shards, load_pool, pool_prompts, write_arrays
from cotgen_lite.prompts import Prompt, parse_prompt


def test_pool_is_the_same_after_an_interrupt(tmp_path: Path, toy_generator) -> None:
    prompts = pool_prompts("test")[:12]
    tokens, committed_at, cost = generate_pool(toy_generator, prompts, 2, 0, tmp_path / "whole")
    assert tokens.shape == (12, 2, toy_generator.settings.steps, 64) and committed_at.max() < 18
    assert cost.generator_passes > 0
    generate_pool(toy_generator, prompts, 2, 0, tmp_path / "parted")
    shards = sorted((tmp_path / "parted").glob("*/shard-*"))
    for shard in shards[1:]:
        shard.unlink()
    kept = shards[0].stat().st_mtime_ns
    again, _, _ = generate_pool(toy_generator, prompts, 2, 0, tmp_path / "parted")
    assert torch.equal(again, tokens)
    assert shards[0].stat().st_mtime_ns == kept and shards[-1].exists()
    # four pools of one prompt hold four different sets of candidates
    pools = {tuple(tokens[i, 0, -1].tolist()) for i in range(4)}
    assert prompts[0] == prompts[3] and len(pools) == 4


@pytest.mark.parametrize(("name", "load"), [("baseline", load_generator), ("sequential", load_autoregressive)])
def test_shipped_pools_are_drawn_again_token_for_token(name: str, load, tmp_path: Path) -> None:
    pool = load_pool(data_path(f"pools/{name}.safetensors"))
    rows = [0, 1, len(pool.prompts) - 1]  # two pools of one prompt, and another's
    drawn = generate_pool(load(), [pool.prompts[row] for row in rows], pool.tokens.shape[1], 0, tmp_path)
    assert len({pool.prompts[row] for row in rows}) == 2
    assert torch.equal(drawn.tokens, pool.tokens[rows])


@pytest.mark.timeout(20)  # looking for each prompt among all before it takes minutes
def test_candidates_of_a_hundred_thousand_prompts_are_numbered_at_once() -> None:
    keys = [(row % 99_999, 7) for row in range(100_000)]
    assert _first_candidates(keys, 3, 5) == [5] * 99_999 + [8]


def test_a_process_makes_its_share_and_waits_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    made: list[int] = []

    def make(shard: int) -> dict[str, torch.Tensor]:
        made.append(shard)
        return {"shard": torch.tensor([shard])}

    def other_process() -> None:
        for number in (0, 2, 4):
            write_arrays(tmp_path / f"shard-{number:03d}.safetensors", {"shard": torch.tensor([number])})

    late = threading.Timer(0.3, other_process)
    late.start()
    parts = in_shards(range(5), make, tmp_path, "shards")
    assert made == [1, 3] and [int(part["shard"]) for part in parts] == [0, 1, 2, 3, 4]
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="RANK is 1 of WORLD_SIZE 1"):
        in_shards(range(5), make, tmp_path, "shards")


def test_verdicts_are_kept_by_detector_and_images(tmp_path: Path) -> None:
    generator, pool = load_generator(), load_pool(data_path("pools/baseline.safetensors"))
    tokens, prompts = pool.tokens[300:310, :2], pool.prompts[300:310]
    asked = []

    class Counting(TemplateJudge):
        def detect(self, images: torch.Tensor) -> list[list[Detection]]:
            asked.append(len(images))
            return super().detect(images)

    first, again = (label_tokens(generator, tokens, prompts, Counting(), tmp_path)[0] for _ in range(2))
    assert len(asked) == 10 and np.array_equal(first, again)
    assert np.array_equal(first, judge_tokens(generator, tokens, prompts, TemplateJudge()))
    label_tokens(generator, tokens.flip(0), prompts, Counting(), tmp_path)
    assert len(asked) == 20
    # Seconds are kept as well: a later call tells how long the judging took, not the reading.
    verdicts, seconds = label_tokens(generator, tokens, prompts, Counting(), tmp_path)
    again, same = label_tokens(generator, tokens, prompts, Counting(), tmp_path)
    assert len(asked) == 20 and seconds == same > 0 and np.array_equal(verdicts, first)
    for scale in (1.0, 1.1):
        learned = load_judge()
        next(learned.parameters()).data.mul_(scale)
        label_tokens(generator, tokens[:1], prompts[:1], learned, tmp_path / "learned")
    assert len(list((tmp_path / "learned").iterdir())) == 2


def test_shards_of_other_weights_are_not_reused(tmp_path: Path, toy_generator: Generator) -> None:
    prompts = pool_prompts("test")[:1]
    generate_pool(toy_generator, prompts, 2, 0, tmp_path)
    generate_pool(toy_generator, prompts, 2, 0, tmp_path, guidance_scale=0.0)
    model = copy.deepcopy(toy_generator.model)
    with torch.no_grad():
        next(model.parameters()).mul_(1 + 1e-4)
    generate_pool(replace(toy_generator, model=model), prompts, 2, 0, tmp_path)
    assert len(list(tmp_path.glob("*/shard-000.safetensors"))) == 3
    half, whole = model.half(), copy.deepcopy(model).half().float()
    assert fingerprint((half,)) != fingerprint((whole,))  # equal numbers, but computed with in another precision


def test_finished_images_alone_are_kept_apart_and_equal(tmp_path: Path, toy_generator: Generator) -> None:
    prompts = pool_prompts("test")[:2]
    whole, committed_at, cost = generate_pool(toy_generator, prompts, 3, 0, tmp_path)
    finals = generate_pool(toy_generator, prompts, 3, 0, tmp_path, final_only=True)
    assert torch.equal(finals.steps, whole[:, :, -1:]) and torch.equal(finals.committed_at, committed_at)
    assert (
        torch.equal(finals.tokens, whole[:, :, -1])
        and finals.cost.tokens == cost.tokens
        and len(list(tmp_path.iterdir())) == 2
    )


def test_every_network_that_shapes_the_codes_tells_shards_apart(tmp_path: Path, toy_generator: Generator) -> None:
    @dataclass(frozen=True)
    class WithReader(Generator):
        reader: nn.Module

    def drawn_with(reader: nn.Module, pixels: Magvit) -> int:
        fields = {name: getattr(toy_generator, name) for name in ("model", "text_tokenizer", "settings")}
        generate_pool(
            WithReader(**fields, image_tokenizer=pixels, reader=reader), pool_prompts("test")[:1], 1, 0, tmp_path
        )
        return len(list(tmp_path.iterdir()))

    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert (
        drawn_with(one, toy_generator.image_tokenizer)
        == drawn_with(copy.deepcopy(one), toy_generator.image_tokenizer)
        == 1
    )
    assert drawn_with(one, Magvit(lite_magvit_config())) == 1  # pixels come after the codes
    assert drawn_with(other, toy_generator.image_tokenizer) == 2


def test_pools_are_named_by_all_that_shapes_them_and_by_nothing_else(tmp_path: Path, toy_generator: Generator) -> None:
    cat, dog, named = (parse_prompt(text) for text in ("a photo of a cat", "a photo of a dog", "a photo of a cat"))
    turned = copy.deepcopy(toy_generator.model)
    turned.config.partial_rotary_factor = 0.25  # equal weights, other images

    def folders(one: Generator, prompts: list[Prompt], n: int = 1, seed: int = 0, **changes: object) -> int:
        generate_pool(one, prompts, n, seed, tmp_path, **changes)
        return len(list(tmp_path.iterdir()))

    assert folders(toy_generator, [cat]) == 1
    same = replace(cat, text=np.str_(cat.text))
    assert folders(toy_generator, (same,), np.int64(1), np.int32(0), temperature=np.float64(1), steps=np.int64(5)) == 1
    assert folders(toy_generator, [named], temperature=1) == 1
    assert folders(toy_generator, [dog]) == 2
    assert folders(toy_generator, [cat], remasking="linear") == 3
    assert folders(toy_generator, [cat], seed=1) == 4
    assert folders(toy_generator, [cat], 2) == 5
    assert folders(replace(toy_generator, model=turned), [cat]) == 6
    # equal texts, but another division into shards, which numbers candidates anew
    pair = [cat, dog, dog, dog, dog, dog, dog, cat, cat]
    assert folders(toy_generator, pair) == 7
    assert folders(toy_generator, [*pair[:-1], replace(cat, tag="colors")]) == 8


def test_verdicts_are_named_by_all_that_shapes_them(tmp_path: Path, toy_generator: Generator) -> None:
    class Picky(TemplateJudge):
        """Has a setting that is no weight."""

        def __init__(self, lowest: float) -> None:
            super().__init__()
            self.LOWEST = lowest

    cat, dog = (parse_prompt(text) for text in ("a photo of a cat", "a photo of a dog"))
    tokens = torch.arange(128, dtype=torch.int16).view(1, 2, 64)

    def folders(codes: torch.Tensor, prompts: list[Prompt], judge: Picky) -> int:
        label_tokens(toy_generator, codes, prompts, judge, tmp_path)
        return len(list(tmp_path.iterdir()))

    assert folders(tokens, [cat], Picky(0.6)) == folders(tokens.clone(), (cat,), Picky(0.6)) == 1
    assert folders(tokens, [cat], Picky(0.7)) == 2
    assert folders(tokens + 1, [cat], Picky(0.6)) == 3
    assert folders(tokens, [dog], Picky(0.6)) == 4
    assert folders(tokens, [replace(cat, tag="counting")], Picky(0.6)) == 5  # judged by another threshold


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("n must be", {"n": 0}),
        ("n must be", {"n": 10**9}),
        ("seed must be", {"seed": "0"}),
        ("prompts must be a list", {"prompts": "a photo of a cat"}),
        ("Each of prompts must be a Prompt", {"prompts": ["a photo of a cat"]}),
        ("prompts must hold at least one", {"prompts": []}),
        ("work_dir must be", {"work_dir": None}),
        ("final_only must be", {"final_only": 1}),
        ("generator must be", {"generator": "generator"}),
        ("no setting 'temp'", {"temp": 2.0}),
    ],
)
def test_what_makes_no_pool_is_said_and_leaves_nothing(said: str, changes: dict, tmp_path: Path, toy_generator) -> None:
    given = {"generator": toy_generator, "prompts": pool_prompts("test")[:1], "n": 1, "seed": 0, "work_dir": tmp_path}
    with pytest.raises(ValueError, match=said):
        generate_pool(**{**given, **changes})
    assert not list(tmp_path.iterdir())


def test_steps_are_counted_beyond_a_byte(tmp_path: Path) -> None:
    class Slow:
        """Draws two tokens, of which one is settled at the last step."""

        def __init__(self, steps: int) -> None:
            self.settings = SamplingSettings(steps=steps)

        begin = encode = lambda self, *_: [1]

        def with_settings(self) -> Any:
            return self

        def __call__(self, prompts: list[str], n: int, seed: int) -> GeneratorOutput:
            committed = torch.arange(1, self.settings.steps + 1)[None, :, None] >= torch.tensor(
                [1, self.settings.steps]
            )
            return GeneratorOutput(prompts, committed.to(torch.int16), committed, Cost(), lambda tokens: tokens)

    for steps, kind in ((18, torch.uint8), (256, torch.uint8), (257, torch.int16), (300, torch.int16)):
        drawn = generate_pool(Slow(steps), pool_prompts("test")[:1], 1, 0, tmp_path)  # type: ignore[type-var]
        assert drawn.committed_at.tolist() == [[[0, steps - 1]]] and drawn.committed_at.dtype == kind


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("tokens must have shape", {"tokens": torch.zeros(1, 64, dtype=torch.int16)}),
        ("tokens must have shape", {"tokens": torch.zeros(2, 1, 64, dtype=torch.int16)}),
        ("tokens must have shape", {"tokens": torch.zeros(1, 1, 63, dtype=torch.int16)}),
        ("tokens must be a tensor", {"tokens": np.zeros((1, 1, 64), dtype=np.int16)}),
        ("tokens must lie", {"tokens": torch.full((1, 1, 64), -1)}),
        ("prompts must hold", {"prompts": []}),
        ("detector must be", {"detector": "template"}),
        ("generator must be", {"generator": None}),
    ],
)
def test_what_cannot_be_judged_is_said(said: str, changes: dict, tmp_path: Path, toy_generator: Generator) -> None:
    tokens = torch.zeros(1, 1, 64, dtype=torch.int16)
    given = {"generator": toy_generator, "tokens": tokens, "prompts": pool_prompts("test")[:1]}
    given = {**given, "detector": TemplateJudge(), **changes}
    with pytest.raises(ValueError, match=said):
        judge_tokens(**given)
    with pytest.raises(ValueError, match=said):
        label_tokens(**given, work_dir=tmp_path)


def test_two_processes_may_write_the_same_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(shard: int) -> dict[str, torch.Tensor]:
        return {"shard": torch.tensor([shard])}

    def write_while_another_does(*given: object, **named: object) -> None:
        save_file(*given, **named)
        monkeypatch.setattr(pools, "save_file", save_file)
        in_shards([7], make, tmp_path, "shards")

    monkeypatch.setattr(pools, "save_file", write_while_another_does)
    (part,) = in_shards([7], make, tmp_path, "shards")
    assert part["shard"] == 7 and [path.name for path in tmp_path.iterdir()] == ["shard-000.safetensors"]
