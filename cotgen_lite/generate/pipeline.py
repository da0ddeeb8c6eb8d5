"""What draws a picture: a masked-token model, the tokenizer of its words and the tokenizer of its pixels, together."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from cotgen_lite.generate.memory import DrawingPlan, free_bytes, plan_drawing
from cotgen_lite.generate.sampling import (
    DecodingState,
    Ledger,
    SamplingSettings,
    Step,
    Trajectory,
    advance,
    encode_prompts,
    keep,
    predict,
    sample,
    start,
)
from cotgen_lite.generate.showo import Showo, correction_prefix, text_prefix
from cotgen_lite.generate.vq import Magvit, MagvitConfig
from cotgen_lite.hub import chosen_device, model_path
from cotgen_lite.prompts import encode_text


def check_parts(ours: Any, theirs: Any, model: str | Path, image_tokenizer: str | Path) -> None:
    """ValueError unless a generator draws the codes that an image tokenizer reads; by their configs, named by paths."""
    if (ours.codebook_size, ours.num_image_tokens) != (theirs.codebook_size, theirs.length):
        raise ValueError(
            f"{model} draws {ours.num_image_tokens} tokens of {ours.codebook_size} codes, but {image_tokenizer} reads "
            f"{theirs.length} of {theirs.codebook_size}: give the tokenizer that the generator was trained with."
        )


@dataclass(frozen=True)
class Generator:
    """The three parts of a text-to-image generator, and how it samples; lite and full alike."""

    model: Showo
    text_tokenizer: PreTrainedTokenizerBase
    image_tokenizer: Magvit
    settings: SamplingSettings

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        text_tokenizer: str | Path,
        image_tokenizer: str | Path,
        settings: SamplingSettings,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> "Generator":
        """Load the parts from folders or hub names.

        At full scale these are "showlab/show-o" or "showlab/show-o-512x512", "microsoft/phi-1_5" and
        "showlab/magvitv2". Its config names no size of pictures: they are as large as the model has codes for.
        device: "auto" takes a GPU if there is one. dtype: of the model; torch.bfloat16 halves its weights and caches,
        while probabilities are computed from its logits in float32. The image tokenizer stays float32: it has little to
        save, and in bfloat16, whose steps are about as coarse as a pixel's, the lite one's move by up to 3 of 255.
        ValueError if the parts do not belong together.
        """
        chosen = chosen_device(device)
        draws = Showo.from_pretrained(model, dtype=dtype).to(chosen)
        config = MagvitConfig.from_pretrained(image_tokenizer)
        if "image_size" not in MagvitConfig.get_config_dict(image_tokenizer)[0]:
            config.image_size = isqrt(draws.config.num_image_tokens) * config.patch_size
        reads = Magvit.from_pretrained(image_tokenizer, config=config).to(chosen)
        check_parts(draws.config, config, model, image_tokenizer)
        return cls(draws, AutoTokenizer.from_pretrained(text_tokenizer), reads, settings)

    def draw(
        self,
        prompts: Sequence[str],
        n: int,
        seed: int,
        first_candidate: int = 0,
        batch_size: int | None = 20,
        ledger: Ledger | None = None,
        progress: bool = False,
    ) -> list[list[Trajectory]]:
        """N candidates of every prompt, each a `Trajectory` of all steps; see `sampling.sample`.

        batch_size: candidates at once, None for as many as fit in memory, by `plan`. The images do not depend on it, up
        to rounding; the ledger's passes do a little, since candidates that start together share their first.
        """
        if batch_size is None:
            batch_size = self.plan(prompts, n).at_once
        return sample(
            self.model,
            self.text_tokenizer,
            prompts,
            n,
            self.settings,
            seed,
            first_candidate,
            batch_size,
            ledger,
            progress,
        )

    def plan(self, prompts: Sequence[str], n: int) -> DrawingPlan:
        """How many candidates `draw` with batch_size None would draw at once in the memory that is free now.

        Printed, it is one line to read before hours of drawing. ValueError if not even one fits, or as in `encode`.
        """
        prefixes = [text_prefix(self.model.config, encode_text(self.text_tokenizer, prompt)) for prompt in prompts]
        return self._plan(prefixes, n)

    def _plan(self, prefixes: Sequence[Sequence[int]], n: int) -> DrawingPlan:
        return plan_drawing(
            self.model.config,
            self.image_tokenizer.config,
            len(prefixes),
            n,
            max(map(len, prefixes), default=0),
            self.settings.guidance_scale > 0,
            self.model.dtype,
            free_bytes(self.model.device),
        )

    def encode(self, prompt: str) -> list[int]:
        """A prompt as the ids that `begin` reads. ValueError for words that the model does not know."""
        return encode_text(self.text_tokenizer, prompt)

    def begin(
        self, texts: Sequence[Sequence[int]], paths: Sequence[tuple[int, int]], seed: int, ledger: Ledger
    ) -> DecodingState:
        """Paths without a code yet, one for each (row of `texts`, candidate number)."""
        prefixes = [text_prefix(self.model.config, text) for text in texts]
        return start(self.model, encode_prompts(self.model, prefixes, ledger), paths, self.settings, seed, ledger)

    def advance(self, state: DecodingState) -> tuple[DecodingState, Step]:
        """The next step of every path."""
        return advance(state, predict(self.model, state))

    def keep(self, state: DecodingState, paths: Sequence[int]) -> DecodingState:
        """The state with only these paths, in this order."""
        return keep(state, paths)

    def correct(
        self,
        prompts: Sequence[str],
        codes: Tensor,
        reasons: Sequence[str],
        n: int,
        seed: int,
        batch_size: int | None = 20,
        ledger: Ledger | None = None,
    ) -> list[list[Trajectory]]:
        """N images of every prompt that make good what is wrong with another image of it; for generators taught to.

        codes: those images', (P, L); reasons: what is wrong with each, "" for no word about it. Guidance holds what the
        words ask for against the image alone: against nothing at all it would mostly strengthen what is there.
        batch_size: as in `draw`. ValueError for a text that the model cannot read. Paper: section 5.
        """
        said, why = ([encode_text(self.text_tokenizer, text) for text in texts] for texts in (prompts, reasons))
        prefixes = [
            correction_prefix(self.model.config, text, reason, image.tolist())
            for text, reason, image in zip(said, why, codes, strict=True)
        ]
        unguided = [correction_prefix(self.model.config, [], [], image.tolist()) for image in codes]
        return sample(
            self.model,
            self.text_tokenizer,
            prompts,
            n,
            self.settings,
            seed,
            batch_size=self._plan(prefixes, n).at_once if batch_size is None else batch_size,
            ledger=ledger,
            prefixes=prefixes,
            unguided=unguided,
        )

    def decode(self, tokens: Tensor) -> Tensor:
        """Pictures of tokens: any (..., L) becomes uint8 images (B, 3, H, W), in row order, on the CPU."""
        return self.image_tokenizer.decode(tokens.reshape(-1, tokens.shape[-1]).long()).cpu()


# Guidance was chosen on the dev prompts (data/results/dev.json).
LITE_SETTINGS = SamplingSettings(guidance_scale=1.5)


def load_generator(name: str = "generator", device: str = "auto", models: Path | None = None) -> Generator:
    """A shipped lite generator with its tokenizers, e.g. "generator", "dpo" or "it-dpo".

    models: as in `hub.model_path`. ValueError if a file is damaged, FileNotFoundError if one is missing.
    """
    logging.disable_progress_bar()  # lite models load at once; a bar for each would clutter the notebooks
    model, words, pictures = (model_path(part, models) for part in (name, "words", "tokenizer"))
    return Generator.from_pretrained(model, words, pictures, LITE_SETTINGS, device)
