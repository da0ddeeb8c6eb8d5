"""The course's own models: the shipped ones with their checksums verified, and those of a folder being built."""

from pathlib import Path

from transformers.utils import logging

from cotgen_lite.files import model_path
from cotgen_lite.generator import Generator
from cotgen_lite.geneval import Detector
from cotgen_lite.judges import LearnedJudge, TemplateJudge
from cotgen_lite.sampling import SamplingSettings
from cotgen_lite.verifier import Verifier

logging.disable_progress_bar()  # lite models load at once; a bar for each would clutter the notebooks
# Guidance was chosen on the dev prompts (data/results/dev.json).
LITE_SETTINGS = SamplingSettings(guidance_scale=1.5)


def load_generator(name: str = "generator", device: str = "auto") -> Generator:
    """A shipped lite generator with its tokenizers; ValueError if a file is damaged, FileNotFoundError if missing."""
    parts = (model_path(name), model_path("words"), model_path("tokenizer"))
    return Generator.from_pretrained(*parts, LITE_SETTINGS, device)


def load_verifier(name: str = "verifier", device: str = "auto") -> Verifier:
    """A shipped lite verifier; errors as in `load_generator`."""
    return Verifier.from_pretrained(model_path(name), device=device)


def load_judge() -> LearnedJudge:
    """The learned judge, which reports; the template judge needs no files. Errors as in `load_generator`."""
    return LearnedJudge.from_pretrained(model_path("judge"))


def built_generator(models: Path) -> Generator:
    """The lite generator of a folder of models that is being built; OSError if one is missing."""
    return Generator.from_pretrained(models / "generator", models / "words", models / "tokenizer", LITE_SETTINGS)


def built_judges(models: Path) -> dict[str, Detector]:
    """Both judges of a folder of models that is being built: "learned", which reports, and "template", which labels."""
    return {"learned": LearnedJudge.from_pretrained(models / "judge"), "template": TemplateJudge()}
