"""Fine-tuning: the loss by hand, learning, going on after an interrupt, LoRA, on lite and LLaVA-OneVision layouts."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature
from peft import LoraConfig
from PIL import Image
from small_verifiers import save_lite, save_onevision
from torch.nn import functional as F
from transformers import TrainerCallback

from cotgen_lite import training
from cotgen_lite.lite.world import random_scene, render
from cotgen_lite.verify import finetune
from cotgen_lite.verify.finetune import FineTuning, finetune_verifier
from cotgen_lite.verify.verifier import ORM_QUESTION, Verifier

PROMPT = "a photo of a red cat"


def fresh(folder: Path, save=save_lite, seed: int = 0) -> Verifier:
    torch.manual_seed(seed)
    save(folder)
    return Verifier.from_pretrained(folder, device="cpu")


def conversations(number: int, turns: int = 1) -> tuple[Dataset, torch.Tensor, torch.Tensor]:
    """Scenes of which every second one is darkened: yes where dark. Two turns ask the same twice, "no" first."""
    rng = np.random.default_rng(0)
    images = render([random_scene(rng) for _ in range(number)])
    dark = torch.arange(number) % 2 == 0
    images[dark] //= 3
    question = ORM_QUESTION.format(prompt=PROMPT)
    rows = []
    for image, yes in zip(images, dark, strict=True):
        answers = ["no"] * (turns - 1) + ["yes" if yes else "no"]
        messages = []
        for turn, answer in enumerate(answers):
            content = [*([{"type": "image"}] if turn == 0 else []), {"type": "text", "text": question}]
            messages += [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
        rows.append({"messages": messages, "images": [Image.fromarray(image.permute(1, 2, 0).numpy())]})
    return Dataset.from_list(rows), images, dark


def loss_by_hand(verifier: Verifier, images: torch.Tensor, answers: list[list[str]]) -> float:
    """Mean cross-entropy of all answers and the end token after each, one conversation at a time."""
    tokenizer, losses = verifier.processor.tokenizer, []
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for image, said in zip(images, answers, strict=True):
        question = "<|user|>{}" + ORM_QUESTION.format(prompt=PROMPT) + "<|assistant|>"
        text = "".join(
            question.format("<image>" if turn == 0 else "") + answer + "<|endoftext|>"
            for turn, answer in enumerate(said)
        )
        inputs = verifier.processor(images=[image], text=[text], return_tensors="pt")
        ids = inputs["input_ids"][0]
        ends = (ids == end).nonzero()[:, 0]
        with torch.no_grad():
            logits = verifier.model(**inputs).logits[0]
        places = torch.cat([ends - 1, ends])  # one-word answers
        losses.append(F.cross_entropy(logits[places - 1], ids[places], reduction="none"))
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("turns", [1, 2])
def test_the_loss_is_that_of_every_answer_and_of_nothing_else(tmp_path, turns):
    verifier = fresh(tmp_path / "model")
    dataset, images, dark = conversations(6, turns)
    answers = [["no"] * (turns - 1) + ["yes" if yes else "no"] for yes in dark]
    expected = loss_by_hand(verifier, images, answers)
    _, log = finetune_verifier(verifier, dataset, FineTuning(1e-4, batch_size=6), tmp_path / "work")
    assert log.losses == [pytest.approx(expected, rel=1e-3)]


def test_it_learns_what_the_answers_say(tmp_path):
    verifier = fresh(tmp_path / "model")
    dataset, images, dark = conversations(32)
    tuned, log = finetune_verifier(verifier, dataset, FineTuning(1e-3, epochs=6))  # in no folder of ours
    assert log.steps == len(log.losses) == 24 and log.losses[-1] < 0.5 * log.losses[0] and log.seconds > 0
    odds = tuned.score(images, PROMPT)
    assert odds[dark].min() > odds[~dark].max()
    assert not tuned.model.training


class Stop(TrainerCallback):
    """Breaks off after three steps, as a closed laptop would."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_it_goes_on_after_an_interrupt(tmp_path, monkeypatch):
    settings = FineTuning(1e-3, epochs=1, batch_size=4, save_steps=2)
    dataset, images, _ = conversations(20)
    whole, log = finetune_verifier(fresh(tmp_path / "a"), dataset, settings, tmp_path / "whole")
    bar = training.StepBar
    monkeypatch.setattr(training, "StepBar", lambda label: Stop())
    with pytest.raises(KeyboardInterrupt):
        finetune_verifier(fresh(tmp_path / "b"), dataset, settings, tmp_path / "parted")
    monkeypatch.setattr(training, "StepBar", bar)
    monkeypatch.setattr(finetune, "check_same_run", lambda *_: None)
    other = fresh(tmp_path / "c", seed=1)  # its weights must all be replaced by the checkpoint's
    parted, again = finetune_verifier(other, dataset, settings, tmp_path / "parted")
    assert again.losses == pytest.approx(log.losses)
    _, again = finetune_verifier(fresh(tmp_path / "d"), dataset, settings, tmp_path / "parted")
    assert again.seconds == float((tmp_path / "parted/seconds.txt").read_text()) > 0  # of the run itself
    torch.testing.assert_close(parted.score(images, PROMPT), whole.score(images, PROMPT))


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])], ids=["full", "lora"])
def test_llava_onevision_in_full_and_through_lora(tmp_path, lora):
    verifier = fresh(tmp_path / "model", save_onevision)
    before = {name: weight.clone() for name, weight in verifier.model.state_dict().items()}
    dataset, images, _ = conversations(8)
    tuned, log = finetune_verifier(verifier, dataset, FineTuning(1e-2, batch_size=4), tmp_path / "work", lora)
    assert log.steps == 2
    after = tuned.model.state_dict()
    assert after.keys() == before.keys()  # the adapter is merged
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed
    if lora:
        assert all("q_proj.weight" in name or "v_proj.weight" in name for name in changed)
    tuned.model.save_pretrained(tmp_path / "tuned")
    tuned.processor.save_pretrained(tmp_path / "tuned")
    again = Verifier.from_pretrained(tmp_path / "tuned", device="cpu")
    torch.testing.assert_close(again.score(images, PROMPT), tuned.score(images, PROMPT))


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    dataset, _, _ = conversations(4)
    finetune_verifier(fresh(tmp_path / "a"), dataset, FineTuning(1e-4, batch_size=4), tmp_path / "work")
    for verifier, data, settings in (
        (fresh(tmp_path / "b"), dataset, FineTuning(2e-4, batch_size=4)),
        (fresh(tmp_path / "c", seed=1), dataset, FineTuning(1e-4, batch_size=4)),
        (fresh(tmp_path / "d"), dataset.select([0, 2, 1, 3]), FineTuning(1e-4, batch_size=4)),
    ):
        with pytest.raises(ValueError, match="another run"):
            finetune_verifier(verifier, data, settings, tmp_path / "work")


def test_what_is_damaged_in_a_training_folder_is_named_or_made_again(tmp_path):
    dataset, work, settings = conversations(4)[0], tmp_path / "work", FineTuning(1e-4, batch_size=4)
    _, log = finetune_verifier(fresh(tmp_path / "a"), dataset, settings, work)
    for damaged in (b"", b"\xff\xfe", b"nan"):
        (work / "seconds.txt").write_bytes(damaged)
        _, again = finetune_verifier(fresh(tmp_path / "b"), dataset, settings, work)
        assert again.losses == log.losses and again.seconds == float((work / "seconds.txt").read_text()) >= 0
    (work / "checkpoint-7").write_text("a file")
    with pytest.raises(ValueError, match=r"checkpoint-7 must be a folder, .*: delete it"):
        finetune_verifier(fresh(tmp_path / "c"), dataset, settings, work)
    (work / "checkpoint-7").unlink()
    (work / "run.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"run\.txt is damaged, .*: delete that folder"):
        finetune_verifier(fresh(tmp_path / "d"), dataset, settings, work)


def test_a_full_disk_is_called_so(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    dataset, settings = conversations(8)[0], FineTuning(1e-4, batch_size=4, save_steps=1, warmup=0)
    for full, kind, said in (
        (False, RuntimeError, "unexpected pos"),
        (True, OSError, r"No space left for .*work, the"),
    ):
        verifier = fresh(tmp_path / "model")
        with monkeypatch.context() as patched:
            patched.setattr(torch, "save", fail)
            patched.setattr(training, "disk_is_full", lambda *_, full=full: full)
            with pytest.raises(kind, match=said):
                finetune_verifier(verifier, dataset, settings, tmp_path / "work")
    with pytest.raises(ValueError, match="load its model afresh"):
        finetune_verifier(verifier, dataset, settings, tmp_path / "work")
    _, log = finetune_verifier(fresh(tmp_path / "model"), dataset, settings, tmp_path / "work")
    assert log.steps == 2


def other_images(dataset: Dataset) -> Dataset:
    """The same words, each image with one pixel changed."""
    rows = []
    for row in dataset:
        image = np.array(row["images"][0])
        image[3, 3, 0] ^= 1
        rows.append(row | {"images": [Image.fromarray(image)]})
    return Dataset.from_list(rows)


@pytest.mark.parametrize("stored", ["bytes", "paths"])
def test_images_tell_runs_apart(tmp_path, stored):
    dataset, settings = conversations(4)[0], FineTuning(1e-4, batch_size=4)
    if stored == "paths":
        rows = []
        for number, row in enumerate(dataset):
            row["images"][0].save(tmp_path / f"{number}.png")
            rows.append(row | {"images": [str(tmp_path / f"{number}.png")]})
        dataset = Dataset.from_list(rows).cast_column("images", List(ImageFeature()))
    _, log = finetune_verifier(fresh(tmp_path / "a"), dataset, settings, tmp_path / "work")
    _, again = finetune_verifier(fresh(tmp_path / "b"), dataset, settings, tmp_path / "work")
    assert again.losses == log.losses
    if stored == "paths":  # another picture under the old name
        Image.fromarray(np.array(dataset[1]["images"][0]) // 2).save(tmp_path / "1.png")
        other = dataset
    else:
        other = other_images(dataset)
    with pytest.raises(ValueError, match="another run"):
        finetune_verifier(fresh(tmp_path / "c"), other, settings, tmp_path / "work")


def test_what_a_transform_makes_of_the_data_tells_runs_apart(tmp_path):
    dataset, settings = conversations(4)[0], FineTuning(1e-4, batch_size=4)

    def darkened(by: int) -> Dataset:
        def read(batch: dict[str, list]) -> dict[str, list]:
            images = [[Image.fromarray(np.array(image) // by) for image in one] for one in batch["images"]]
            return batch | {"images": images}

        return dataset.with_transform(read)

    finetune_verifier(fresh(tmp_path / "a"), darkened(1), settings, tmp_path / "work")
    with pytest.raises(ValueError, match="another run"):
        finetune_verifier(fresh(tmp_path / "b"), darkened(2), settings, tmp_path / "work")


def test_every_row_that_a_transform_makes_tells_runs_apart(tmp_path):
    settings = FineTuning(1e-4, batch_size=4)

    def grey(*levels: int) -> Dataset:
        words = conversations(1)[0][0]["messages"]

        def read(batch: dict[str, list]) -> dict[str, list]:
            images = [[Image.new("RGB", (64, 64), (levels[row],) * 3)] for row in batch["row"]]
            return {"messages": [words] * len(images), "images": images}

        return Dataset.from_dict({"row": list(range(len(levels)))}).with_transform(read)

    finetune_verifier(fresh(tmp_path / "a"), grey(1, 2, 3), settings, tmp_path / "work")
    finetune_verifier(fresh(tmp_path / "b"), grey(1, 2, 3), settings, tmp_path / "work")
    with pytest.raises(ValueError, match="another run"):
        finetune_verifier(fresh(tmp_path / "c"), grey(1, 200, 3), settings, tmp_path / "work")


def turns(question: str, *answers: str) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    return [asked, *({"role": "assistant", "content": [{"type": "text", "text": answer}]} for answer in answers)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": turns("a cat <image>", "yes")}, "holds '<image>', which the model would obey"),
        ({"messages": turns("a cat", "yes <|endoftext|>")}, r"holds '<\|endoftext\|>'"),
        ({"messages": turns("a zebra", "yes")}, "do not know 'zebra'"),
        ({"messages": turns("a cat", " ")}, "an answer is empty"),
        ({"messages": turns("a cat")}, "there is no answer"),
        ({"messages": []}, "there is no answer"),
        ({"messages": None}, "its messages must be as"),
        ({"messages": turns("a cat " * 300, "yes")}, "take .* tokens; this verifier reads at most 512"),
        ({"images": []}, "images must be a list of one image"),
        ({"images": None}, "images must be a list of one image"),
        ({"images": [Image.new("RGB", (64, 64))] * 2}, "images must be a list of one image"),
        ({"images": [Image.new("L", (64, 64))]}, r"in RGB, as .* makes it, got .*mode=L"),
        ({"images": [Image.new("RGB", (32, 64))]}, "reads images of 64 x 64 pixels, got one of 32 x 64"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named(tmp_path, change: dict[str, Any], said: str):
    rows = list(conversations(3)[0])
    rows[1] |= change
    with pytest.raises(ValueError, match=f"^Row 1 of the dataset cannot be learned from: .*{said}"):
        finetune_verifier(fresh(tmp_path / "a"), Dataset.from_list(rows), FineTuning(1e-4), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_the_same_adapter_settings_serve_twice_and_others_are_another_run(tmp_path):
    dataset, settings = conversations(4)[0], FineTuning(1e-3, batch_size=4)
    given = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    before = copy.deepcopy(given)
    _, log = finetune_verifier(fresh(tmp_path / "a"), dataset, settings, tmp_path / "work", given)
    assert given == before
    _, again = finetune_verifier(fresh(tmp_path / "b"), dataset, settings, tmp_path / "work", given)
    assert again.losses == log.losses
    for other in (LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]), None):
        with pytest.raises(ValueError, match="another run"):
            finetune_verifier(fresh(tmp_path / "c"), dataset, settings, tmp_path / "work", other)


def test_a_training_that_diverges_is_stopped(tmp_path):
    with pytest.raises(ValueError, match=r"Training diverged at step \d+"):
        finetune_verifier(fresh(tmp_path / "a"), conversations(16)[0], FineTuning(1e9, batch_size=4), tmp_path / "work")
    assert all(training.is_whole(checkpoint) for checkpoint in (tmp_path / "work").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verifier": "orm"}, "verifier must be a Verifier"),
        ({"dataset": [{"messages": [], "images": []}]}, "dataset must be a Dataset"),
        ({"dataset": None}, "dataset must be a Dataset"),
        ({"dataset": Dataset.from_list([{"text": "a photo of a cat"}])}, "must have lists messages and images"),
        ({"dataset": Dataset.from_list([{"messages": "yes", "images": []}])}, "must have lists messages"),
        ({"settings": 1e-4}, "settings must be a FineTuning"),
        ({"settings": {"learning_rate": 1e-4}}, "settings must be a FineTuning"),
        ({"lora": {"r": 4}}, "lora must be a LoraConfig"),
        ({"work_dir": 5}, "work_dir must be"),
    ],
)
def test_what_training_is_given_is_checked(tmp_path, change: dict[str, Any], said: str):
    given = {"verifier": fresh(tmp_path), "dataset": conversations(2)[0], "settings": FineTuning(1e-4)}
    with pytest.raises(ValueError, match=said):
        finetune_verifier(**(given | change))


def test_answers_stand_where_they_are_read(tmp_path):
    verifier = fresh(tmp_path / "model")
    template = verifier.processor.chat_template
    verifier.processor.chat_template = template.replace(
        "<|assistant|>{% generation %}", "<|assistant|> {% generation %}"
    )
    with pytest.raises(ValueError, match="right after its generation prompt"):
        finetune_verifier(verifier, conversations(2)[0], FineTuning(1e-4), tmp_path / "work")


def test_what_cannot_be_learned_from_is_explained(tmp_path):
    verifier = fresh(tmp_path / "model")
    with pytest.raises(ValueError, match="no rows"):
        finetune_verifier(verifier, Dataset.from_list([]), FineTuning(1e-4), tmp_path / "work")
    verifier.processor.chat_template = "{{ messages }}"
    with pytest.raises(ValueError, match=r"\{% generation %\}"):
        finetune_verifier(verifier, conversations(2)[0], FineTuning(1e-4), tmp_path / "work")
