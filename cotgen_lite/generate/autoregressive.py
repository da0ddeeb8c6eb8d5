"""The next-token generator: LlamaGen, a Llama that reads a caption and writes the tokens of an image one by one.

A sequence is the caption's features, padded at the left to a fixed length, and behind them the tokens in raster order.
Positions turn (RoPE) by row and column. LlamaGen: arXiv 2406.06525; chapter 09 compares it with Show-o. Read next:
memory.py, or verify/search.py, which drives this generator as it drives Show-o.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutput

from cotgen_lite.generate.pipeline import (
    ImageGenerator,
    check_begun_with,
    check_parts,
    check_text_tokenizer,
    check_tokens,
    lite_parts,
)
from cotgen_lite.generate.sampling import (
    MASKED,
    Cost,
    Remasking,
    SamplingSettings,
    Step,
    check_logits,
    check_paths,
    check_rows,
    path_noise,
)
from cotgen_lite.generate.vq import ImageTokenizer, Magvit
from cotgen_lite.inputs import number, of_kind, one_of, settle, shown, texts, whole
from cotgen_lite.loading import chosen_device, load_exactly, load_tokenizer


class AutoregressiveConfig(PretrainedConfig):
    """Sizes of a next-token generator; the defaults are those of LlamaGen's released text-to-image model (GPT-XL).

    Ids: image codes 0..K-1, then the words of the caption. grid: tokens along one side. text_length: positions for the
    caption; text_width: width of its features. text_vocab_size: of the words, whose features are learned here; 0 if
    they come from another model (LlamaGen's from T5). text_cosine: how the caption's positions are turned. LlamaGen's
    table holds zeros there, which leaves them queries and keys of 0: an image position cannot choose among the words,
    only take their mean. 1 leaves them as they are.
    """

    model_type = "sequential"

    codebook_size: int = 16384
    grid: int = 16
    text_length: int = 120
    text_width: int = 2048
    text_vocab_size: int = 0
    text_pad_id: int = 0
    text_cosine: float = 0.0
    hidden_size: int = 1280
    num_hidden_layers: int = 36
    num_attention_heads: int = 20
    intermediate_size: int = 3584

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("text_vocab_size", "text_pad_id", "text_length"):
            setattr(self, name, whole(getattr(self, name), name, 0, 2**20))
        for name in ("codebook_size", "text_width", "hidden_size", "intermediate_size"):
            setattr(self, name, whole(getattr(self, name), name, 1, 2**20))
        for name in ("grid", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, whole(getattr(self, name), name, 1, 1000))
        self.text_cosine = number(self.text_cosine, "text_cosine", 0, 1)
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 4 x {self.num_attention_heads} heads, each of "
                "which turns by row and column."
            )
        super().__post_init__(**kwargs)

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


def lite_autoregressive_config(text_vocab_size: int, text_pad_id: int, grid: int = 8) -> AutoregressiveConfig:
    """Sizes of the lite next-token generator: 8x8 tokens of 1,024 codes by default, at most 1.2 M parameters.

    text_vocab_size is `len(tokenizer)`, text_pad_id the tokenizer's.
    """
    text_vocab_size = whole(text_vocab_size, "text_vocab_size", 1, 2**20)
    text_pad_id = whole(text_pad_id, "text_pad_id", 0, text_vocab_size - 1)
    return AutoregressiveConfig(
        codebook_size=1024,
        grid=whole(grid, "grid", 1, 64),
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

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.text_length, self.grid, self.text_cosine = config.text_length, config.grid, config.text_cosine
        self.quarter = config.hidden_size // config.num_attention_heads // 4

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        position = (position_ids - self.text_length)[..., None]
        speed = 10000.0 ** (-torch.arange(self.quarter, device=x.device) / self.quarter)
        turns = torch.cat([position // self.grid * speed, position % self.grid * speed], dim=-1)
        turns = torch.cat([turns, turns], dim=-1)
        cosine, sine = turns.cos().where(position >= 0, self.text_cosine), turns.sin().where(position >= 0, 0.0)
        return cosine.to(x.dtype), sine.to(x.dtype)


class AutoregressiveModel(PreTrainedModel):
    """LlamaGen on transformers' Llama.

    llama: the language model over codes; head: to the next code; project: from caption features to its width; nothing:
    the features that stand for no caption, (text_length, text_width); words: features of words, if they are its own.
    """

    config: AutoregressiveConfig
    config_class = AutoregressiveConfig
    base_model_prefix = "llama"
    _supports_sdpa = True

    def __init__(self, config: AutoregressiveConfig) -> None:
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
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "AutoregressiveModel":
        """Load config and weights from a folder; errors as in `loading.load_exactly`."""
        return load_exactly(super().from_pretrained, folder, "next-token generator", **kwargs)

    def read(self, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, text_length, text_width) of padded word ids (B, text_length), and which are no pads, bool."""
        if self.words is None:
            raise ValueError("This generator has no words of its own: give the features of its text model (T5).")
        return self.words(text_ids), text_ids != self.config.text_pad_id

    def embed(self, features: Tensor, visible: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, text_length + C, hidden_size) of captions and the tokens (B, C) behind them, and their mask."""
        texts = self.project(features * visible[..., None])
        seen = F.pad(visible, (0, tokens.shape[1]), value=True)
        return torch.cat([texts, self.llama.embed_tokens(tokens)], dim=1), seen.long()

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


def pad_texts(config: AutoregressiveConfig, texts: Sequence[Sequence[int]]) -> Tensor:
    """Word ids of B captions as (B, text_length), pads at the left. ValueError if too long, or no word ids."""
    most = config.text_vocab_size - 1
    try:
        texts = [[whole(each, "each id of a caption", 0, most) for each in text] for text in texts]
    except TypeError:
        raise ValueError(f"texts must be lists of word ids, got {shown(texts)}.") from None
    for text in texts:
        if len(text) > config.text_length:
            raise ValueError(f"A caption of {len(text)} words is too long: at most {config.text_length} can be read.")
    return torch.tensor([[config.text_pad_id] * (config.text_length - len(text)) + list(text) for text in texts])


def sequence_ids(config: AutoregressiveConfig, text: Sequence[int]) -> list[int]:
    """A caption as the ids before its image's codes in `AutoregressiveModel.forward`. ValueError if too long."""
    return (pad_texts(config, [text])[0] + config.codebook_size).tolist()


def next_token_loss(
    model: AutoregressiveModel,
    texts: Sequence[Sequence[int]],
    tokens: Tensor,
    generator: torch.Generator,
    dropout: float = 0.1,
) -> Tensor:
    """Mean cross-entropy of every token of images (B, L) given their captions' word ids and the tokens before it.

    dropout: share of captions replaced by nothing, which guidance needs; drawn from a CPU generator. Returns a scalar.
    ValueError if captions and images do not go together, or for tokens that are none of the model's.
    """
    of_kind(generator, "generator", torch.Generator, "a torch.Generator")
    config, dropout = (
        of_kind(model, "model", AutoregressiveModel, "an AutoregressiveModel").config,
        number(dropout, "dropout", 0, 1),
    )
    tokens = check_tokens(tokens, config.num_image_tokens, config.codebook_size)
    if len(texts) != len(tokens):
        raise ValueError(f"{len(texts)} captions for {len(tokens)} images: give one for each.")
    features, visible = model.read(pad_texts(model.config, texts).to(model.device))
    dropped = (torch.rand(len(texts), generator=generator) < dropout).to(model.device)
    features = torch.where(dropped[:, None, None], model.nothing, features)
    tokens = tokens.to(model.device)
    inputs, seen = model.embed(features, visible, tokens[:, :-1])
    hidden = model.llama(inputs_embeds=inputs, attention_mask=seen).last_hidden_state
    return F.cross_entropy(model.head(hidden[:, model.config.text_length - 1 :]).transpose(1, 2), tokens)


GREY = 128  # of positions without a token, in 0..255
Fill = Literal["grey", "likeliest"]
KeysAndValues = tuple[tuple[Tensor, Tensor], ...]  # of each layer


@dataclass(frozen=True)
class AutoregressiveSettings(SamplingSettings):
    """How images are drawn; LlamaGen's own values are guidance 6.5 (its scale 7.5), top-k 1000.

    guidance_scale: by default Show-o's. steps: runs of tokens, of equal length. top_k: tokens that may be drawn, 0 for
    all. fill: what an unfinished image shows where no token is yet. ValueError for impossible ones, and as in
    `SamplingSettings`.
    """

    steps: int = 16
    remasking: Remasking = field(default="linear", init=False, repr=False)  # nothing is masked again here
    top_k: int = 0
    fill: Fill = "grey"

    def __post_init__(self) -> None:
        super().__post_init__()
        top_k = whole(self.top_k, "top_k (0 for all tokens)", 0)
        settle(self, top_k=top_k, fill=one_of(self.fill, "fill", get_args(Fill)))


@dataclass(frozen=True)
class AutoregressiveState:
    """P paths after `step` runs; never changed in place, so an old one can be resumed.

    visible: (P, S), which positions of each path's caption are no pads; tokens: (P, C) so far; logits: guided, of the
    next token (P, K); past: keys and values of P rows with captions, then of P without if there is guidance; before the
    first token, when paths of a prompt share its own, `rows` says which are whose. noise: uniforms (P, L).
    """

    visible: Tensor
    tokens: Tensor
    logits: Tensor
    past: KeysAndValues = field(repr=False)
    rows: Tensor | None
    noise: Tensor
    cost: Cost
    settings: AutoregressiveSettings
    step: int = 0


@dataclass(frozen=True)
class NextTokenGenerator(ImageGenerator[AutoregressiveState]):
    """How next-token generators draw, whatever model they hold and however it reads captions (`read`)."""

    model: Any  # an `AutoregressiveModel`, or one in its shape
    text_tokenizer: PreTrainedTokenizerBase
    image_tokenizer: ImageTokenizer
    settings: AutoregressiveSettings

    def __post_init__(self) -> None:
        check_text_tokenizer(self.text_tokenizer)
        of_kind(self.settings, "settings", AutoregressiveSettings, "AutoregressiveSettings")

    @property
    def num_image_tokens(self) -> int:
        return self.model.config.num_image_tokens

    def read(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Features (Q, S, D) of Q texts' ids, of what they are guided against, and which are no pads, bool (Q, S)."""
        raise NotImplementedError

    @torch.inference_mode()
    def begin(
        self, prompts: Sequence[str], paths: Sequence[tuple[int, int]], seed: int, cost: Cost
    ) -> AutoregressiveState:
        """As in `ImageGenerator`. ValueError if the image cannot be cut into that many equal runs."""
        model, settings, length = self.model, self.settings, self.num_image_tokens
        if length % (runs := settings.steps):
            raise ValueError(f"{length} tokens cannot be cut into {runs} equal runs: take a divisor of {length}.")
        of_kind(cost, "cost", Cost, "a Cost")
        ids, seed = [self.encode(prompt) for prompt in texts(prompts, "prompts")], whole(seed, "seed")
        paths = check_paths(paths, len(ids))
        features, nothing, visible = self.read(ids)
        both = torch.cat([features, nothing.expand_as(features)]) if settings.guidance_scale else features
        seen = visible.repeat(len(both) // len(ids), 1)
        inputs, mask = model.embed(both, seen, torch.empty(len(both), 0, dtype=torch.long, device=model.device))
        output = model.llama(inputs_embeds=inputs, attention_mask=mask, use_cache=True, past_key_values=DynamicCache())
        cost.generator_passes += len(both)
        cost.tokens += inputs.shape[0] * inputs.shape[1]
        rows = torch.tensor([row for row, _ in paths], device=model.device)
        every = torch.cat([rows, rows + len(ids)]) if settings.guidance_scale else rows
        keys = [(seed, tuple(ids[row]), candidate) for row, candidate in paths]
        return AutoregressiveState(
            visible[rows],
            rows.new_empty(len(paths), 0),
            guided(model.head(output.last_hidden_state[every, -1]), settings.guidance_scale),
            tuple((layer.keys, layer.values) for layer in output.past_key_values.layers),
            every,
            torch.stack([path_noise(key, 1, length)[0, 0] for key in keys]),
            cost,
            settings,
        )

    @torch.inference_mode()
    def advance(self, state: AutoregressiveState) -> tuple[AutoregressiveState, Step]:
        """The next run of every path; open positions of its guess are MASKED if they are to be grey."""
        self._check(state)
        check_begun_with(self.settings, state)
        length = self.num_image_tokens
        for _ in range(length // self.settings.steps):
            noise = state.noise[:, state.tokens.shape[1]].to(state.logits.device)
            state = self._append(state, _draw(state.logits, self.settings, noise))
        done, whole = state.tokens.shape[1], state
        if self.settings.fill == "likeliest":
            while whole.tokens.shape[1] < length:
                whole = self._append(whole, whole.logits.argmax(dim=1))
        guess = F.pad(whole.tokens, (0, length - whole.tokens.shape[1]), value=MASKED)
        committed = (torch.arange(length, device=guess.device) < done).expand_as(guess)
        return replace(state, step=state.step + 1), Step(state.step, guess, committed)

    def keep(self, state: AutoregressiveState, paths: Sequence[int]) -> AutoregressiveState:
        self._check(state)
        chosen = check_rows(paths, among := len(state.tokens))
        rows = chosen + [among + path for path in chosen] if self.settings.guidance_scale else chosen
        return replace(
            state,
            visible=state.visible[chosen],
            tokens=state.tokens[chosen],
            logits=state.logits[chosen],
            past=state.past if state.rows is not None else _rows_of(state.past, rows),
            rows=state.rows if state.rows is None else state.rows[rows],
            noise=state.noise[chosen],
        )

    def _check(self, state: AutoregressiveState) -> None:
        of_kind(state, "state", AutoregressiveState, "what this generator's `begin` gives")

    def _append(self, state: AutoregressiveState, token: Tensor) -> AutoregressiveState:
        """The state behind one more token (P,) of each path; the last token of an image needs no pass."""
        new = torch.cat([state.tokens, token[:, None]], dim=1)
        if new.shape[1] == self.num_image_tokens:
            return replace(state, tokens=new)
        model, twice = self.model, 2 if self.settings.guidance_scale else 1
        cache = DynamicCache(state.past if state.rows is None else _rows_of(state.past, state.rows))
        output = model.llama(
            inputs_embeds=model.llama.embed_tokens(token.repeat(twice))[:, None],
            attention_mask=F.pad(state.visible, (0, new.shape[1]), value=True).repeat(twice, 1).long(),
            position_ids=torch.full((1, 1), model.config.text_length + new.shape[1] - 1, device=token.device),
            past_key_values=cache,
            use_cache=True,
        )
        state.cost.generator_passes += twice * len(token)
        state.cost.tokens += twice * len(token)
        logits = guided(model.head(output.last_hidden_state[:, 0]), self.settings.guidance_scale)
        past = tuple((layer.keys, layer.values) for layer in cache.layers)
        return replace(state, tokens=new, logits=logits, past=past, rows=None)

    def decode(self, tokens: Tensor) -> Tensor:
        """As in `ImageGenerator`; MASKED positions are grey."""
        tokens = check_tokens(tokens, self.num_image_tokens, self.model.config.codebook_size, masked=True)
        side, masked = self.model.config.grid, tokens == MASKED
        if bool(masked.any()):  # decoded as grey too, since the decoder looks beyond a token's own position
            size = self.image_tokenizer.config.image_size
            grey = self.image_tokenizer.encode(torch.full((1, 3, size, size), GREY, dtype=torch.uint8)).to(tokens)
            tokens = torch.where(masked, grey, tokens)
        images = self.image_tokenizer.decode(tokens).cpu()
        hidden = masked.cpu().view(-1, 1, side, side).repeat_interleave(images.shape[-1] // side, 2)
        return images.masked_fill(hidden.repeat_interleave(images.shape[-1] // side, 3), GREY)


@dataclass(frozen=True)
class AutoregressiveGenerator(NextTokenGenerator):
    """LlamaGen's kind with its tokenizers; used like `pipeline.Generator`."""

    model: AutoregressiveModel

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        text_tokenizer: str | Path,
        image_tokenizer: str | Path,
        settings: AutoregressiveSettings,
        device: str = "auto",
    ) -> "AutoregressiveGenerator":
        """Load the parts from folders. device: "auto" takes a GPU if there is one. ValueError if they do not fit."""
        chosen = chosen_device(device)
        draws = AutoregressiveModel.from_pretrained(model).to(chosen)
        reads = Magvit.from_pretrained(image_tokenizer).to(chosen)
        check_parts(draws.config, reads.config, model, image_tokenizer)
        return cls(draws, load_tokenizer(text_tokenizer), reads, settings)

    def read(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        features, visible = self.model.read(pad_texts(self.model.config, texts).to(self.model.device))
        return features, self.model.nothing, visible


def _rows_of(past: KeysAndValues, rows: Tensor | list[int]) -> KeysAndValues:
    return tuple((keys[rows], values[rows]) for keys, values in past)


def guided(logits: Tensor, guidance_scale: float) -> Tensor:
    """(1+g)·conditional − g·unconditional of logits (2P, K), conditional ones first; for g = 0 they are (P, K)."""
    if not guidance_scale:
        return logits.float()
    conditional, unconditional = logits.float().chunk(2)
    return (1 + guidance_scale) * conditional - guidance_scale * unconditional


def _draw(logits: Tensor, settings: AutoregressiveSettings, noise: Tensor) -> Tensor:
    """One token of each row of logits (P, K), by its uniform number (P,)."""
    if settings.top_k:
        least = logits.topk(min(settings.top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    cumulative = (logits / settings.temperature).softmax(dim=1).cumsum(dim=1)
    check_logits(cumulative[:, -1])
    token = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return token.clamp(max=logits.shape[1] - 1)


# Guidance, top-k and fill were chosen on the dev prompts as well (data/results/sequential.json).
AUTOREGRESSIVE_SETTINGS = AutoregressiveSettings(guidance_scale=0.5)


def load_autoregressive(
    name: str = "sequential", device: str = "auto", models: Path | None = None
) -> AutoregressiveGenerator:
    """A shipped lite next-token generator with its tokenizers; arguments and errors as in `load_generator`."""
    return AutoregressiveGenerator.from_pretrained(*lite_parts(name, models), AUTOREGRESSIVE_SETTINGS, device)
