"""Supervised fine-tuning of verifiers with trl: the lite LLaVA, and real ones in full or through LoRA.

Paper: section 3.2 (ORM and PRM: one epoch, batches of 8). What is learned from is made in training_data.py; what
a tuned verifier is for stands in search.py. Read next: reasons.py.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from cotgen_lite.hub import work_folder
from cotgen_lite.identity import check_same_run, fingerprint, identity
from cotgen_lite.inputs import of_kind, shown
from cotgen_lite.prompts import encode_text
from cotgen_lite.training import TrainerSettings, TrainingLog, run_trainer, trainer_arguments
from cotgen_lite.verify.training_data import DecodedExamples, as_messages
from cotgen_lite.verify.verifier import Verifier

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig


@dataclass(frozen=True)
class FineTuning(TrainerSettings):
    """How a verifier is fine-tuned; the paper's are 1 epoch, batches of 8 and a learning rate of 1e-5 for 7 B."""


def finetune_verifier(
    verifier: Verifier,
    dataset: "Dataset",
    settings: FineTuning,
    work_dir: str | Path | None = None,
    lora: "LoraConfig | None" = None,
) -> tuple[Verifier, TrainingLog]:
    """Teach a verifier the answers of a dataset of conversations, its model in place; the loss is on answers alone.

    dataset: rows of `messages` and `images`, as `as_dataset` makes them; all are looked at first. work_dir: for
    checkpoints, from the last of which an interrupted call goes on, with the verifier loaded afresh; without one, none
    are kept. lora: train a low-rank adapter instead of all weights, and merge it into them at the end.
    Returns the fine-tuned verifier and its log: the loss of every step, and the seconds (after an interrupt, what all
    steps take at the pace of the last). ValueError for a dataset that is empty or of another form, a row that cannot be
    learned from or that `score` would not read, a chat template that does not mark answers or writes them elsewhere
    than where P(yes) is read, a `work_dir` that holds another run (other weights, settings, words or images), or if
    training diverges. Paper: section 3.2.
    """
    from datasets import Dataset
    from trl import SFTConfig

    of_kind(verifier, "verifier", Verifier, "a Verifier")
    of_kind(settings, "settings", FineTuning, "a FineTuning")
    if lora is not None:
        from peft import LoraConfig  # comes with an extra of the package

        of_kind(lora, "lora", LoraConfig, "a LoraConfig of peft, or None")
    if len(of_kind(dataset, "dataset", Dataset, "a Dataset of rows, as `as_dataset` makes it")) == 0:
        raise ValueError("There is nothing to learn from: the dataset has no rows.")
    if lacking := [name for name in ("messages", "images") if not isinstance(dataset[0].get(name), list)]:
        raise ValueError(f"Each row of the dataset must have lists {' and '.join(lacking)}: see `as_dataset`.")
    if "{% generation %}" not in verifier.processor.chat_template:
        raise ValueError(
            "The chat template does not mark answers, so the loss cannot be put on them alone: write "
            "{% generation %} before and {% endgeneration %} after an answer in processor.chat_template."
        )
    _check_where_answers_stand(verifier.processor)
    contents = list(_contents(dataset, verifier))
    with work_folder(work_dir) as folder:
        check_same_run(folder, fingerprint((verifier.model,), settings, lora, contents))
        arguments = SFTConfig(
            **trainer_arguments(settings, len(dataset), folder, verifier.model.device),
            remove_unused_columns=False,
            assistant_only_loss=True,
            max_length=None,
            activation_checkpointing=verifier.model.device.type == "cuda",
        )
        trainer = _answer_trainer()(
            model=verifier.model,
            args=arguments,
            train_dataset=dataset,
            processing_class=verifier.processor,
            peft_config=copy.deepcopy(lora),  # which peft changes, and a run is named by it
        )
        model, log = run_trainer(trainer, "fine-tuning")
    return Verifier(model.merge_and_unload() if lora is not None else model, verifier.processor), log


def _contents(dataset: "Dataset", verifier: Verifier) -> Iterator[object]:
    """What tells datasets apart, each row by its words and pixels, and how two of them are processed.

    Of `as_dataset`'s rows tokens stand for pixels, except in the first and the last: to decode them all would take as
    long as to train on them. ValueError names a row that cannot be learned from.
    """
    stored = isinstance(dataset.format["format_kwargs"].get("transform"), DecodedExamples)
    known, longest, most = dict[str, int](), 0, 0
    for number, row in enumerate(dataset.with_format(None) if stored else dataset):
        with _row_named(number):
            messages = as_messages(row["turns"]) if stored else row.get("messages")
            tokens = _count_tokens(messages, verifier, known)
            pixels = row["tokens"] if stored else _pixels(row.get("images"), verifier)
        longest, most = (number, tokens) if tokens > most else (longest, most)
        yield identity(messages, pixels)
    for row in (dataset[0], dataset[len(dataset) - 1]):
        yield _pixels(row["images"], verifier), verifier.processor.image_processor(row["images"], return_tensors="np")
    with _row_named(longest):
        row = dataset[longest]
        written = verifier.processor.apply_chat_template(row["messages"])
        verifier._check_length(len(verifier.processor(images=row["images"], text=[written])["input_ids"][0]))
    yield verifier.processor.chat_template, verifier.processor.tokenizer.get_vocab()


@contextmanager
def _row_named(number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        said = str(error)
        raise ValueError(f"Row {number} of the dataset cannot be learned from: {said[:1].lower()}{said[1:]}") from None


def _count_tokens(messages: Any, verifier: Verifier, known: dict[str, int]) -> int:
    """How many tokens the words of a conversation take; known: of texts read before.

    ValueError for words that the verifier cannot read, another form, no answer or an empty one.
    """
    tokens, answers = 0, 0
    try:
        for turn in messages:
            said = [part["text"] for part in turn["content"] if part["type"] == "text"]
            for words in said:
                if words not in known:
                    known[words] = len(encode_text(verifier.processor.tokenizer, words))
                tokens += known[words]
            if turn["role"] == "assistant" and not "".join(said).strip():
                raise ValueError("an answer is empty: say what the verifier is to learn to say.")
            answers += turn["role"] == "assistant"
    except (TypeError, KeyError):
        raise ValueError(f"its messages must be as `as_dataset` makes them, got {shown(messages)}.") from None
    if not answers:
        raise ValueError("there is no answer to learn, a turn whose role is assistant.")
    return tokens


def _pixels(images: Any, verifier: Verifier) -> np.ndarray:
    """The pixels of a row's image; ValueError unless there is one that the verifier reads."""
    if not isinstance(images, list) or len(images) != 1:
        raise ValueError(f"images must be a list of one image, got {shown(images)}.")
    image, reads = images[0], verifier.processor.image_processor
    if not isinstance(image, Image) or image.mode != "RGB":
        raise ValueError(
            f'its image must be one of Pillow\'s in RGB, as `convert("RGB")` makes it, got {shown(image)}.'
        )
    if not getattr(reads, "do_resize", True) and image.size != (reads.size["width"], reads.size["height"]):
        wanted, got = f"{reads.size['width']} x {reads.size['height']}", "{} x {}".format(*image.size)
        raise ValueError(f"this verifier reads images of {wanted} pixels, got one of {got}: resize it.")
    return np.asarray(image)


def _check_where_answers_stand(processor: Any) -> None:
    """ValueError if what stands before an answer in training is not what stands there when P(yes) is read."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "question"}]}]
    told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    scored = processor.apply_chat_template(asked, add_generation_prompt=True)
    if not processor.apply_chat_template(told).startswith(f"{scored}yes"):
        raise ValueError(
            "The chat template writes answers elsewhere than right after its generation prompt, where P(yes) is read: "
            f"use one in which a conversation goes on as {scored + 'yes'!r}."
        )


def _answer_trainer() -> Any:
    """Trl's trainer, except that it finds the weights again when it goes on from a checkpoint."""
    from trl import SFTTrainer

    class AnswerTrainer(SFTTrainer):
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            # `save_pretrained` writes LLaVA's weights under the names of older files. The library's own method looks
            # for today's names, finds none, warns, and goes on with the weights that it was given.
            target = self.model if model is None else model
            if hasattr(target, "peft_config"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                target.load_state_dict(type(target).from_pretrained(resume_from_checkpoint).state_dict())

    return AnswerTrainer
