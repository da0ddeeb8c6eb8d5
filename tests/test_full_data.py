"""The full scale's ranking data by its command, on small random checkpoints; and what it would cost, counted again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_mask2former import COCO, save_clip, save_detector
from tokenizers import Tokenizer, models, pre_tokenizers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, Mask2FormerConfig, PreTrainedTokenizerFast, SwinConfig

from cotgen_lite.full_scale import data as f
from cotgen_lite.full_scale.mask2former import CocoMask2Former, draw_pictures
from cotgen_lite.full_scale.prompts import everyday_names, full_prompts, geneval_meanings
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import SamplingSettings
from cotgen_lite.generate.showo import Showo, ShowoConfig
from cotgen_lite.generate.vq import Magvit, MagvitConfig
from cotgen_lite.geneval import Detection, Detector, evaluate
from cotgen_lite.pools import Pool, load_pool
from cotgen_lite.prompts import GENEVAL, meaning_hash, parse_prompt
from cotgen_lite.verify import training_data

PAGE = Path(__file__).resolve().parent.parent / "notebooks/FULL_SCALE.md"


class Coin:
    """A detector that passes the self-check and finds, in every second image as it were, one of everything."""

    def detect(self, images: torch.Tensor) -> list[list[Detection]]:
        drawn, there = draw_pictures()
        if images.shape == drawn.shape and torch.equal(images, drawn):
            return [[item] for item in there]
        everything = [Detection(name, 0.99, (0, 0, 9, 9)) for name in GENEVAL.objects]
        return [everything if int(image.sum()) % 2 else [] for image in images]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name small random checkpoints in the full-size layout."""
    root = tmp_path_factory.mktemp("checkpoints")
    spoken = sorted({word for prompt in full_prompts() for word in prompt.text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<end>", *spoken])}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    torch.manual_seed(0)
    config = ShowoConfig(
        text_vocab_size=len(words),
        num_image_tokens=16,
        bos_token_id=0,
        eos_token_id=0,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    pixels = MagvitConfig(image_size=64, channels=8, encoder_blocks=(1,) * 5, decoder_blocks=(1,) * 5, norm_groups=4)
    parts = {"generator": Showo(config), "words": words, "pixels": Magvit(pixels)}
    for name, part in parts.items():
        part.save_pretrained(root / name)
    (root / "detector").mkdir()
    save_detector(root / "detector", COCO)
    save_clip(root / "clip")
    return [argument for name in (*parts, "detector", "clip") for argument in (f"--{name}", str(root / name))]


def same_pools(one: Pool, other: Pool) -> bool:
    same_labels = np.array_equal(one.correct["template"], other.correct["template"])
    return one.prompts == other.prompts and torch.equal(one.tokens, other.tokens) and same_labels


@pytest.fixture
def coin(monkeypatch: pytest.MonkeyPatch) -> Detector:
    detector = Coin()
    monkeypatch.setattr(f.Mask2FormerDetector, "from_pretrained", lambda *_: detector)
    return detector


def test_command_makes_a_pool_to_learn_from_and_resumes(
    folders: list[str],
    coin: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [*folders, "--prompts", "3", "--images-a-prompt", "6", "--seed", "4", "--out", str(tmp_path)]
    f.main(command)
    pool = load_pool(tmp_path / "pool.safetensors")
    prompts = f.judgeable(full_prompts())[:3]
    assert pool.prompts == prompts and pool.tokens.shape == (3, 6, 16)
    hot = SamplingSettings(1.75, steps=18, temperature=training_data.HOT_TEMPERATURE)
    generator = Generator.from_pretrained(*folders[1:6:2], hot, device="cpu", dtype=torch.bfloat16)
    finals = generator([p.text for p in prompts], 6, seed=4).tokens.unflatten(0, (3, 6))
    assert torch.equal(pool.tokens.long(), finals)
    labels = pool.correct["template"]
    for prompt, codes, right in zip(prompts, finals, labels, strict=True):
        found = coin.detect(generator.decode(codes))
        assert right.tolist() == [evaluate(prompt, detections).correct for detections in found]
    examples = training_data.orm_examples(pool, most=6, seed=0, held_out=geneval_meanings())
    assert len(examples) == 2 * sum(min(row.sum(), (~row).sum()) for row in labels) > 0
    about = json.loads((tmp_path / "about.json").read_text())
    assert (about["temperature"], about["guidance_scale"], about["steps"], about["seed"]) == (1.3, 1.75, 18, 4)
    assert about["right"] == round(float(labels.mean()), 4)
    told = capsys.readouterr().out
    assert "18 images of 3 prompts" in told and "all 2485 prompts" in told
    # Once more: everything is there, so nothing is drawn or looked at but the self-check's pictures.
    (tmp_path / "pool.safetensors").unlink()
    monkeypatch.setattr(Generator, "__call__", lambda *_, **__: pytest.fail("drawn again"))
    monkeypatch.setattr(Generator, "decode", lambda *_: pytest.fail("looked at again"))
    f.main(command)
    assert same_pools(load_pool(tmp_path / "pool.safetensors"), pool)
    assert capsys.readouterr().out == told  # the rate too: seconds are those of the drawing
    # What an image takes on disk: two bytes a code and one for its step, and a label.
    parts = [load_file(path) for path in (tmp_path / "shards").rglob("shard-*")]
    sizes = [value.nbytes for part in parts for name, value in part.items() if name not in ("cost", "seconds")]
    assert sum(sizes) == 18 * (16 * (2 + 1) + 1)


def test_random_detectors_stop_it_before_anything_is_drawn(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        f.main([*folders, "--prompts", "1", "--images-a-prompt", "1", "--out", str(tmp_path / "out")])
    assert "fewer than a third" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_missing_models_and_wrong_numbers_are_one_sentence(
    folders: list[str], coin: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change, complaint in (
        (["--generator", str(tmp_path / "nowhere")], "No Show-o model can be read"),
        (["--images-a-prompt", "0"], "1 or more"),
        (["--prompts", "0"], "1 or more"),
    ):
        with pytest.raises(SystemExit):
            f.main([*folders, "--out", str(tmp_path / "out"), *change])
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda out: f.drawing_places(0, 3), "n must be"),
        (lambda out: f.drawing_places(float("nan"), 3), "n must be"),
        (lambda out: f.seconds_an_image(3, "B200"), "card must be one of 'T4'"),
        (lambda out: f.judgeable(["a cat"]), "must be a Prompt"),
        (lambda out: f.make_full_data(None, None, full_prompts()[:1], 10**9, 0, out), "n must be .* to 10000"),
        (lambda out: f.make_full_data(None, None, full_prompts()[:1], 2, 0.5, out), "seed must be"),
        (lambda out: f.make_full_data(None, None, full_prompts()[:1], 2, 0, None), "out must be"),
        (lambda out: f.make_full_data(None, None, full_prompts()[:1], 2, 0, out), "must be a generator"),
    ],
)
def test_wrong_values_are_one_clear_sentence(tmp_path: Path, call: Callable[[Path], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_make_the_same_pool(folders: list[str], tmp_path: Path) -> None:
    job = "import sys; from test_full_data import Coin; from cotgen_lite.full_scale import data\n"
    job += "from cotgen_lite.generate import pipeline\n"
    job += "pipeline.SHARD = 1; data.Mask2FormerDetector.from_pretrained = lambda *_: Coin()\n"
    job += "data.main(sys.argv[1:])"
    for name, processes in (("one", 1), ("two", 2)):
        command = [sys.executable, "-c", job, *folders, "--prompts", "3", "--images-a-prompt", "2"]
        command += ["--out", str(tmp_path / name)]
        setting = os.environ | {"WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
        setting["PYTHONPATH"] = os.pathsep.join(map(str, Path(__file__).parents[:2]))
        running = [
            subprocess.Popen(command, env=setting | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
            for rank in range(processes)
        ]
        told = [process.communicate(timeout=400)[0] for process in running]
        assert [process.returncode for process in running] == [0] * processes
        assert "6 images of 3 prompts" in told[0] and not any(told[1:])
    one, two = (load_pool(tmp_path / name / "pool.safetensors") for name in ("one", "two"))
    assert same_pools(one, two)
    shards = [sorted(path.name for path in (tmp_path / name).rglob("*.safetensors")) for name in ("one", "two")]
    assert shards[0] == shards[1] and len(shards[0]) == 3 + 3 + 1


def test_only_prompts_that_can_be_judged_are_drawn() -> None:
    kept = f.judgeable(full_prompts())
    assert len(kept) == 2485 and abs(len(kept) * f.IMAGES_A_PROMPT - 288_000) < 2485 / 2
    everything, takes = [Detection(name, 0.99, (0, 0, 9, 9)) for name in GENEVAL.objects], set(kept)
    for prompt in full_prompts():  # of an object that is unknown to the detector the rules say "missing"
        missing = any(reason.kind == "missing" for reason in evaluate(prompt, everything).reasons)
        assert missing == (prompt not in takes)


def test_what_geneval_asks_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    bench = parse_prompt("a photo of a bench", everyday_names())
    assert meaning_hash(bench) in geneval_meanings()
    with pytest.raises(ValueError, match="'a photo of a bench' asks what a dev or test prompt asks"):
        f.make_full_data(None, None, [bench], 1, 0, tmp_path)  # type: ignore[arg-type]


# --- what it costs ---


@pytest.mark.parametrize("n", [1, 20, 47])
def test_places_are_those_that_drawing_costs(toy_generator: Generator, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f, "PLACES", toy_generator.model.config.num_image_tokens + 2)
    cost = toy_generator("a photo of a cat", n).cost
    words = (5 + 3) + 3  # "a photo of a cat" and no words at all, each between [t2i] [bos] and [eos]
    assert cost.tokens == f.drawing_places(n, toy_generator.settings.steps) + words


def test_estimate_is_its_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    places = 2 * 258 * (6 + 116 * 17) / 116  # six batches of up to 20 share a first step
    seconds = 2 * 1_208_506_368 * places / (0.3 * 312e12) + (300.9e9 + 441.8e9 + 2 * 162e9) / (0.3 * 19.5e12)
    assert f.seconds_an_image(116, "A100") == pytest.approx(seconds)
    assert f"{288_260 * seconds / 8 / 3600:.1f} | {288_260 * seconds / 3600:.0f} |" in f.table()
    assert f.IMAGE_BYTES == 256 * 3 + 1 + 416 + 1
    monkeypatch.setattr(f, "SHARE", 0.15)
    assert f.seconds_an_image(116, "A100") == pytest.approx(2 * seconds)


def test_stated_work_is_what_torch_counts() -> None:
    with torch.device("meta"), torch.no_grad():
        showo = Showo(ShowoConfig())
        layers = showo.showo.model.layers
        assert sum(weights.numel() for weights in layers.parameters()) == f.SHOWO_WEIGHTS
        assert showo.config.num_image_tokens + 2 == f.PLACES
        with FlopCounterMode(display=False) as counted:  # attention comes on top of the weights
            showo.showo.model(torch.zeros(1, 276, dtype=torch.long), attention_mask=torch.zeros(1, 1, 276, 276))
        assert 1 < counted.get_total_flops() / (2 * 276 * f.SHOWO_WEIGHTS) < 1.03
        with FlopCounterMode(display=False) as counted:
            Magvit(MagvitConfig()).decoder(torch.empty(1, 13, 16, 16))
        assert counted.get_total_flops() == pytest.approx(f.DECODE, rel=1e-3)
        shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        eyes = CLIPVisionModel(CLIPVisionConfig(**shape, patch_size=14, image_size=224))
        with FlopCounterMode(display=False) as counted:
            eyes(pixel_values=torch.empty(1, 3, 224, 224))
        assert counted.get_total_flops() == pytest.approx(f.READ_COLOR, rel=1e-3)


@pytest.mark.slow
def test_stated_work_of_the_detector_is_what_torch_counts() -> None:
    stages = {"depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "embed_dim": 96, "window_size": 7}
    swin = SwinConfig(image_size=384, **stages, out_features=["stage1", "stage2", "stage3", "stage4"])
    with FakeTensorMode(), torch.no_grad():
        detector = CocoMask2Former(Mask2FormerConfig(backbone_config=swin, num_labels=80)).eval()
        with FlopCounterMode(display=False) as counted:
            detector(pixel_values=torch.empty(1, 3, 800, 800))
    assert counted.get_total_flops() == pytest.approx(f.DETECT, rel=1e-3)


def test_the_page_says_what_the_estimate_says(capsys: pytest.CaptureFixture[str]) -> None:
    f.main(["--estimate"])
    table = capsys.readouterr().out.strip()
    assert table.count("\n") == 1 + len(f.CARDS)
    page = PAGE.read_text(encoding="utf-8")
    assert table in page
    assert f"{288_260 * f.IMAGE_BYTES / 1e6:.0f} MB" in page and "2,485 × 116 = 288,260" in page
    assert np.isclose(2 * f.SHOWO_WEIGHTS * f.drawing_places(116, 18) / 116 / 1e12, 21.3, atol=0.05)
    assert "21.3 TFLOP" in page and "300.9" in page and "441.8" in page and "162.0" in page
