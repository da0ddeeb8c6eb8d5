"""The next-token generator: LlamaGen, a Llama that reads a caption and writes the codes of an image one by one.

A sequence is the caption's features, padded at the left to a fixed length, and behind them the codes in raster order.
Turning (RoPE) is in two dimensions, by row and column. LlamaGen: arXiv 2406.06525.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from cotgen_lite.hub import first_line


class SequentialConfig(PretrainedConfig):
    """Sizes of a next-token generator; the defaults are those of LlamaGen's released text-to-image model (GPT-XL).

    Ids: image codes 0..K-1, then the words of the caption. grid: tokens along one side. text_length: places for the
    caption; text_width: width of its features. text_vocab_size: of the words, whose features are learned here; 0 if
    they come from another model (LlamaGen's from T5). text_cosine: how the caption's places are turned. LlamaGen's
    table holds zeros there, which leaves them queries and keys of 0: an image place cannot choose among the words, only
    take their mean. 1 leaves them as they are.
    """

    model_type = "sequential"

    def __init__(
        self,
        codebook_size: int = 16384,
        grid: int = 16,
        text_length: int = 120,
        text_width: int = 2048,
        text_vocab_size: int = 0,
        text_pad_id: int = 0,
        text_cosine: float = 0.0,
        hidden_size: int = 1280,
        num_hidden_layers: int = 36,
        num_attention_heads: int = 20,
        intermediate_size: int = 3584,
        **kwargs: Any,
    ) -> None:
        self.codebook_size = codebook_size
        self.grid = grid
        self.text_length = text_length
        self.text_width = text_width
        self.text_vocab_size = text_vocab_size
        self.text_pad_id = text_pad_id
        self.text_cosine = text_cosine
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        super().__init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        return self.grid**2

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + self.text_vocab_size

    def llama_config(self) -> LlamaConfig:
        """The config of the language model inside."""
        return LlamaConfig(
            vocab_size=self.codebook_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.text_length + self.num_image_tokens,
            rms_norm_eps=1e-5,
            attn_implementation="sdpa",
        )


def lite_sequential_config(text_vocab_size: int, text_pad_id: int) -> SequentialConfig:
    """Sizes of the lite next-token generator: 8x8 tokens of 1,024 codes, at most 1.2 M parameters.

    text_vocab_size is `len(tokenizer)`, text_pad_id the tokenizer's.
    """
    return SequentialConfig(
        codebook_size=1024,
        grid=8,
        text_length=16,
        text_width=128,
        text_vocab_size=text_vocab_size,
        text_pad_id=text_pad_id,
        text_cosine=1.0,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=352,
    )


class _GridTurning(nn.Module):
    """RoPE by row and column of the image; takes the place of Llama's own."""

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        self.text_length, self.grid, self.text_cosine = config.text_length, config.grid, config.text_cosine
        self.quarter = config.hidden_size // config.num_attention_heads // 4

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        place = (position_ids - self.text_length)[..., None]
        speed = 10000.0 ** (-torch.arange(self.quarter, device=x.device) / self.quarter)
        turns = torch.cat([place // self.grid * speed, place % self.grid * speed], dim=-1)
        turns = torch.cat([turns, turns], dim=-1)
        cosine, sine = turns.cos().where(place >= 0, self.text_cosine), turns.sin().where(place >= 0, 0.0)
        return cosine.to(x.dtype), sine.to(x.dtype)


class Sequential(PreTrainedModel):
    """LlamaGen on transformers' Llama.

    llama: the language model over codes; head: to the next code; project: from caption features to its width; nothing:
    the features that stand for no caption, (text_length, text_width); words: features of words, if they are its own.
    """

    config: SequentialConfig
    config_class = SequentialConfig
    base_model_prefix = "llama"
    _supports_sdpa = True

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__(config)
        self.llama = LlamaModel(config.llama_config())
        self.llama.rotary_emb = _GridTurning(config)
        self.head = nn.Linear(config.hidden_size, config.codebook_size, bias=False)
        self.project = nn.Sequential(
            nn.Linear(config.text_width, config.hidden_size, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.hidden_size, config.hidden_size, bias=False),
        )
        self.nothing = nn.Parameter(torch.randn(config.text_length, config.text_width) / config.text_width**0.5)
        self.words = nn.Embedding(config.text_vocab_size, config.text_width) if config.text_vocab_size else None
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "Sequential":
        """Load config and weights from a folder, in float32 unless `dtype` says otherwise, in eval mode.

        ValueError if files are missing or damaged, or if the weights are not exactly the model's.
        """
        kwargs.setdefault("dtype", torch.float32)
        try:
            model, info = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        except (OSError, EOFError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"No next-token generator can be read from {folder} ({first_line(error)}): it needs "
                "an intact config.json and model.safetensors; build or convert it again."
            ) from error
        wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
        if wrong:
            raise ValueError(f"The weights in {folder} do not fit: {len(wrong)} names differ, {wrong[0]} first.")
        return model.eval()

    def read(self, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, text_length, text_width) of padded word ids (B, text_length), and which are no pads, bool."""
        if self.words is None:
            raise ValueError("This generator has no words of its own: give the features of its text model (T5).")
        return self.words(text_ids), text_ids != self.config.text_pad_id

    def embed(self, features: Tensor, visible: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, text_length + C, hidden_size) of captions and the codes (B, C) behind them, and their mask."""
        texts = self.project(features * visible[..., None])
        seen = F.pad(visible, (0, codes.shape[1]), value=True)
        return torch.cat([texts, self.llama.embed_tokens(codes)], dim=1), seen.long()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        """Logits over codes (B, S, K) of whole sequences, in the form in which trl trains models.

        input_ids: (B, text_length + C), word ids shifted by K and padded at the left (`sequence_ids`), then codes.
        """
        return CausalLMOutput(logits=self.head(self.base_model(input_ids).last_hidden_state))

    @property
    def base_model(self) -> Any:
        """All but the head: trl asks it for hidden states, and scores their codes through the head piece by piece."""
        return self._hidden_states

    def _hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        length, size = self.config.text_length, self.config.codebook_size
        features, visible = self.read(input_ids[:, :length] - size)
        inputs, seen = self.embed(features, visible, input_ids[:, length:])
        return self.llama(inputs_embeds=inputs, attention_mask=seen)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of codes."""
        return self.llama.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head, through which trl scores hidden states."""
        return self.head


def pad_texts(config: SequentialConfig, texts: Sequence[Sequence[int]]) -> Tensor:
    """Word ids of B captions as (B, text_length), pads at the left. ValueError for one that is too long."""
    for text in texts:
        if len(text) > config.text_length:
            raise ValueError(f"A caption of {len(text)} words is too long: at most {config.text_length} can be read.")
    return torch.tensor([[config.text_pad_id] * (config.text_length - len(text)) + list(text) for text in texts])


def sequence_ids(config: SequentialConfig, text: Sequence[int]) -> list[int]:
    """A caption as the ids that stand before its image's codes in `Sequential.forward`. ValueError if too long."""
    return (pad_texts(config, [text])[0] + config.codebook_size).tolist()


def next_token_loss(
    model: Sequential, texts: Sequence[Sequence[int]], codes: Tensor, generator: torch.Generator, dropout: float = 0.1
) -> Tensor:
    """Mean cross-entropy of every code of images (B, L) given their captions' word ids and the codes before it.

    dropout: share of captions replaced by nothing, which guidance needs; drawn from a CPU generator. Returns a scalar.
    """
    features, visible = model.read(pad_texts(model.config, texts).to(model.device))
    dropped = (torch.rand(len(texts), generator=generator) < dropout).to(model.device)
    features = torch.where(dropped[:, None, None], model.nothing, features)
    codes = codes.to(model.device)
    inputs, seen = model.embed(features, visible, codes[:, :-1])
    hidden = model.llama(inputs_embeds=inputs, attention_mask=seen).last_hidden_state
    return F.cross_entropy(model.head(hidden[:, model.config.text_length - 1 :]).transpose(1, 2), codes)
