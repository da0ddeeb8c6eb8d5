"""Supervised fine-tuning of verifiers with trl: the lite LLaVA, and real ones in full or through LoRA.

Paper: section 3.2 (ORM and PRM: one epoch, batches of 8). What is learned from is made in training_data.py; what
a tuned verifier is for stands in search.py. Read next: reasons.py.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cotgen_lite.hub import work_folder
from cotgen_lite.identity import check_same_run, fingerprint, identity
from cotgen_lite.inputs import of_kind
from cotgen_lite.training import TrainerSettings, TrainingLog, run_trainer, trainer_arguments
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

    dataset: rows of `messages` and `images`, as `as_dataset` makes them. work_dir: for checkpoints, from the last of
    which an interrupted call goes on; without one, none are kept. lora: train a low-rank adapter instead of all
    weights, and merge it into them at the end.
    Returns the fine-tuned verifier and its log: the loss of every step, and the seconds (after an interrupt, what all
    steps take at the pace of the last). ValueError for a dataset that is empty or of another form, a chat template that
    does not mark answers or writes them elsewhere than where P(yes) is read, a `work_dir` that holds another run (other
    weights, settings, words or images), or if training diverges. Paper: section 3.2.
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
    with work_folder(work_dir) as folder:
        check_same_run(folder, fingerprint((verifier.model,), settings, lora, list(_contents(dataset, verifier))))
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
    """What tells datasets apart: all that is stored, images by their bytes, and how two rows of it are read.

    A dataset's transform may decode images anew whenever they are read, which takes as long as to train on them: so
    only of the first and the last row the messages, and what the processor makes of the images.
    """
    from datasets.table import embed_table_storage  # of images that are stored as paths

    stored = dataset.with_format("arrow")
    for at in range(0, len(dataset), 1000):
        yield identity(embed_table_storage(stored[at : at + 1000]).to_pylist())
    for row in (dataset[0], dataset[len(dataset) - 1]):
        pixels = [np.asarray(image) for image in row["images"]]
        yield row["messages"], pixels, verifier.processor.image_processor(row["images"], return_tensors="np")
    yield verifier.processor.chat_template, verifier.processor.tokenizer.get_vocab()


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
