"""The course's own models: shipped ones with checksums verified, those of a folder being built, and saving them."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import logging

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import SamplingSettings
from cotgen_lite.generate.sequential_sampling import RunSettings, SequentialGenerator
from cotgen_lite.geneval import Detector
from cotgen_lite.hub import MANIFEST, file_sha256, model_path, write_json
from cotgen_lite.lite.judges import LearnedJudge, TemplateJudge
from cotgen_lite.lite.verifier import save_verifier
from cotgen_lite.verify.verifier import Verifier

logging.disable_progress_bar()  # lite models load at once; a bar for each would clutter the notebooks
# Guidance was chosen on the dev prompts (data/results/dev.json).
LITE_SETTINGS = SamplingSettings(guidance_scale=1.5)
# Guidance, top-k and fill were chosen on the dev prompts as well (data/results/sequential.json).
SEQUENTIAL_SETTINGS = RunSettings(guidance_scale=0.5)


def load_generator(name: str = "generator", device: str = "auto") -> Generator:
    """A shipped lite generator with its tokenizers; ValueError if a file is damaged, FileNotFoundError if missing."""
    parts = (model_path(name), model_path("words"), model_path("tokenizer"))
    return Generator.from_pretrained(*parts, LITE_SETTINGS, device)


def load_sequential(name: str = "sequential", device: str = "auto") -> SequentialGenerator:
    """A shipped lite next-token generator with its tokenizers; errors as in `load_generator`."""
    parts = (model_path(name), model_path("words"), model_path("tokenizer"))
    return SequentialGenerator.from_pretrained(*parts, SEQUENTIAL_SETTINGS, device)


def load_verifier(name: str = "verifier", device: str = "auto") -> Verifier:
    """A shipped lite verifier; errors as in `load_generator`."""
    return Verifier.from_pretrained(model_path(name), device=device)


def load_judge() -> LearnedJudge:
    """The learned judge, which reports; the template judge needs no files. Errors as in `load_generator`."""
    return LearnedJudge.from_pretrained(model_path("judge"))


def built_generator(models: Path, name: str = "generator") -> Generator:
    """A lite generator of a folder of models that is being built; OSError if one is missing."""
    return Generator.from_pretrained(models / name, models / "words", models / "tokenizer", LITE_SETTINGS)


def built_sequential(models: Path, name: str = "sequential") -> SequentialGenerator:
    """A lite next-token generator of a folder of models that is being built; ValueError if one is missing."""
    parts = (models / name, models / "words", models / "tokenizer")
    return SequentialGenerator.from_pretrained(*parts, SEQUENTIAL_SETTINGS)


def built_judges(models: Path) -> dict[str, Detector]:
    """Both judges of a folder of models that is being built: "learned", which reports, and "template", which labels."""
    return {"learned": LearnedJudge.from_pretrained(models / "judge"), "template": TemplateJudge()}


def publish(model: PreTrainedModel, folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Save a model's weights as fp16 safetensors, and the manifest that says how it was made."""
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    write_manifest(folder, settings, seconds)


def publish_verifier(verifier: Verifier, folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Save a fine-tuned lite verifier as fp16 safetensors with its processor, and its manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    save_verifier(verifier.model, verifier.processor.tokenizer, folder)
    write_manifest(folder, settings, seconds)


def write_manifest(folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Record settings, seconds of training and every file's checksum; its presence says that the model is whole."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    sums = {path.name: file_sha256(path) for path in files}
    manifest = {"settings": settings, "seconds": round(seconds), "sha256": sums}
    write_json(folder / MANIFEST, manifest)
