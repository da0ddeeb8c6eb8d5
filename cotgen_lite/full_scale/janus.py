"""Janus-Pro through transformers, drawn run by run.

At full scale: "deepseek-community/Janus-Pro-1B" or "-7B", 24x24 codes, guidance 4 (its own scale 5), 16 runs of 36.
Facts: transformers' models/janus, DeepSeek's code (MIT, github.com/deepseek-ai/Janus), arXiv 2501.17811.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cotgen_lite.generate.autoregressive import AutoregressiveConfig, AutoregressiveSettings, NextTokenGenerator
from cotgen_lite.generate.vq import VqTokenizer
from cotgen_lite.inputs import of_kind
from cotgen_lite.loading import chosen_device, load_exactly, read_whole
from cotgen_lite.prompts import encode_text

REQUEST = "<|User|>: {}\n\n<|Assistant|>:"  # Janus's chat template around a prompt, without a system prompt
BEGIN_OF_IMAGE = "<begin_of_image>"


@dataclass(frozen=True)
class _CodeLlama:
    """Janus's language model, fed with image codes where it has words."""

    janus: JanusForConditionalGeneration

    def embed_tokens(self, codes: Tensor) -> Tensor:
        return self.janus.prepare_embeddings_for_image_generation(codes)

    def __call__(self, inputs_embeds: Tensor, position_ids: Tensor | None = None, **inputs: Any) -> Any:
        if position_ids is None:  # A prompt's. RoPE sees only distances: with the first code at 0, pads change nothing.
            position_ids = torch.arange(-inputs_embeds.shape[1], 0, device=inputs_embeds.device)[None]
        return self.janus.model.language_model(inputs_embeds=inputs_embeds, position_ids=position_ids, **inputs)


class JanusRuns(nn.Module):
    """Janus-Pro in the shape of `AutoregressiveModel` that drawing asks for."""

    def __init__(self, janus: JanusForConditionalGeneration) -> None:
        super().__init__()
        of_kind(janus, "janus", JanusForConditionalGeneration, "a JanusForConditionalGeneration")
        sizes = janus.config.vq_config
        # No caption length, for prompts end where the image begins, at place 0.
        self.config = AutoregressiveConfig(codebook_size=sizes.num_embeddings, grid=sizes.num_patches, text_length=0)
        self.janus, self.llama, self.head = janus, _CodeLlama(janus), janus.model.generation_head
        self.device = janus.device

    def embed(self, features: Tensor, visible: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and mask of prompts whose features they are already; `codes` are none yet."""
        return features, visible.long()


@dataclass(frozen=True)
class JanusGenerator(NextTokenGenerator):
    """Janus-Pro with its tokenizers; used like `pipeline.Generator`, at g = s - 1 of its own scale s."""

    model: JanusRuns

    @classmethod
    def from_pretrained(  # all parts lie in one folder
        cls,
        model: str | Path,
        settings: AutoregressiveSettings,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> "JanusGenerator":
        """Load a folder or hub name; "auto" takes a GPU if there is one.

        dtype: of all but the image tokenizer, which stays float32. ValueError as in `loading.load_exactly`, and if the
        tokenizer lacks what Janus needs.
        """
        of_kind(settings, "settings", AutoregressiveSettings, "AutoregressiveSettings")
        janus = load_exactly(JanusForConditionalGeneration.from_pretrained, model, "Janus model", dtype=dtype)
        # Its tokenizer.json as it stands: DeepSeek labels it a Llama tokenizer, which would lose the spaces.
        words = read_whole(PreTrainedTokenizerFast.from_pretrained, model, "Janus tokenizer")
        _special_ids(words, f"The tokenizer in {model}")
        runs = JanusRuns(janus.to(chosen_device(device))).eval()
        return cls(runs, words, VqTokenizer(janus.model.vqmodel.float()), settings)

    def encode(self, prompt: str) -> list[int]:
        """A prompt in Janus's chat template, as ids."""
        encode_text(self.text_tokenizer, prompt)  # alone, for the template's own control tokens are meant
        ids = self.text_tokenizer(REQUEST.format(prompt.strip()), add_special_tokens=False)["input_ids"]
        most = self.model.janus.config.text_config.max_position_embeddings - self.num_image_tokens - 2
        if len(ids) > most:
            raise ValueError(f"The prompt takes {len(ids)} tokens; this model reads at most {most}: shorten it.")
        return ids

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Features of Q prompts, of the same with every word between their ends a pad, and which are no pads."""
        start, image, pad = _special_ids(self.text_tokenizer)
        if not texts:
            raise ValueError("There is no prompt to read: give at least one.")
        longest = max(len(text) for text in texts) + 2
        rows = [[pad] * (longest - 2 - len(text)) + [start, *text, image] for text in texts]
        pads = torch.tensor([[longest - 2 - len(text)] for text in texts])
        ids, visible = torch.tensor(rows), torch.arange(longest) >= pads
        # As in transformers, the unguided prompt is as long, with pads that are seen in place of its words.
        blank = ids.where((ids == start) | (ids == image), pad)
        embed = self.model.janus.get_input_embeddings()
        features, nothing = embed(torch.cat([ids, blank]).to(self.model.device)).chunk(2)
        return features, nothing, visible.to(self.model.device)


def _special_ids(words: PreTrainedTokenizerBase, which: str = "This tokenizer") -> tuple[int, int, int]:
    """Ids of the start, of the beginning of an image and of pads; ValueError if the tokenizer lacks one."""
    ids = words.bos_token_id, words.convert_tokens_to_ids(BEGIN_OF_IMAGE), words.pad_token_id
    if None in ids or ids[1] == words.unk_token_id:
        raise ValueError(f"{which} lacks a start, a pad or {BEGIN_OF_IMAGE}: give the one of a Janus checkpoint.")
    return ids
