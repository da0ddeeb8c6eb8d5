"""What draws a picture: a masked-token model, the tokenizer of its text and the tokenizer of its images, together.

Paper: section 2.1. `ImageGenerator` says what every generator can do, and a search needs no more; `Generator` is
Show-o's kind; `generate_pool` draws many images, shard by shard on disk. Read next: autoregressive.py, the other kind.
"""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from cotgen_lite.generate.sampling import (
    MASKED,
    MOST_PATHS,
    Cost,
    DecodingState,
    SamplingSettings,
    Step,
    advance,
    encode_prompts,
    keep,
    predict,
    start,
)
from cotgen_lite.generate.showo import Showo, correction_prefix, text_prefix
from cotgen_lite.generate.vq import ImageTokenizer, Magvit, MagvitConfig
from cotgen_lite.geneval import Detector, judge
from cotgen_lite.hub import model_path
from cotgen_lite.identity import config_of, fingerprint, named_by
from cotgen_lite.inputs import all_whole, folder, of_kind, shaped, shown, text, texts, whole, with_methods, yes_or_no
from cotgen_lite.loading import chosen_device, load_tokenizer, read_config
from cotgen_lite.pools import SHARD, in_shards
from cotgen_lite.prompts import Prompt, each_prompt, encode_text

MOST_IMAGES = 100_000  # of one call, whose steps stay in memory: with 18 of 64 tokens, 350 MB

PAPER_SETTINGS = SamplingSettings()
# Guidance was chosen on the dev prompts (data/results/dev.json).
LITE_SETTINGS = SamplingSettings(guidance_scale=1.5, remasking="linear")


@dataclass(frozen=True)
class GeneratorOutput:
    """B = P·N images, prompt by prompt, and how they came into being.

    prompts: the B prompts; steps: int16 (B, T, L), the guess of each step; committed: bool (B, T, L), the positions
    that keep their token from that step on.
    """

    prompts: list[str]
    steps: Tensor
    committed: Tensor
    cost: Cost
    decode: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def tokens(self) -> Tensor:
        """Tokens int64 (B, L) of the finished images."""
        return self.steps[:, -1].long()

    @cached_property
    def images(self) -> Tensor:
        """The finished images, uint8 (B, 3, H, W), decoded when first asked for."""
        return self.decode(self.tokens)


class Paths(Protocol):
    """P unfinished images after `step` steps; never changed in place, so an old one can be resumed."""

    @property
    def step(self) -> int: ...


State = TypeVar("State", bound=Paths)


class ImageGenerator(Protocol[State]):
    """What every generator can do: be called, or be driven step by step by a search.

    The four methods without a body are each class's own. A search calls `begin`, then `advance` `settings.steps` times,
    and in between `keep` with the paths that are to go on; all of them are charged to the `cost` given to `begin`.
    A state belongs to the generator, with its settings, that began it.
    """

    text_tokenizer: PreTrainedTokenizerBase
    image_tokenizer: ImageTokenizer
    settings: SamplingSettings

    @property
    @abstractmethod
    def num_image_tokens(self) -> int: ...

    @abstractmethod
    def begin(self, prompts: Sequence[str], paths: Sequence[tuple[int, int]], seed: int, cost: Cost) -> State:
        """Paths without a token yet, one for each (row of `prompts`, candidate number); prompts are read once."""

    @abstractmethod
    def advance(self, state: State) -> tuple[State, Step]:
        """The next step of every path."""

    @abstractmethod
    def keep(self, state: State, paths: Sequence[int]) -> State:
        """The state with only these paths, in this order; the others cost nothing from here on."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens: any (..., L) becomes uint8 (B, 3, H, W), in row order, on the CPU."""

    def encode(self, prompt: str) -> list[int]:
        """A prompt as ids. ValueError for words that the model does not know."""
        return encode_text(self.text_tokenizer, text(prompt, "prompt"))

    def with_settings(self, **changes: Any) -> Self:
        """The same generator with other settings, e.g. `temperature=1.5`. ValueError for impossible ones."""
        known = [each.name for each in fields(self.settings) if each.init]
        if strange := sorted(changes.keys() - set(known)):
            raise ValueError(f"There is no setting {strange[0]!r}: this generator has {', '.join(known)}.")
        return replace(self, settings=replace(self.settings, **changes))  # type: ignore[type-var]

    def stream(self, state: State) -> Iterator[Step]:
        """All steps that are left, one at a time."""
        if not isinstance(getattr(state, "step", None), int):
            raise ValueError(f"state must be what this generator's `begin` gives, got {shown(state)}.")
        while state.step < self.settings.steps:
            state, step = self.advance(state)
            yield step

    def __call__(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        *,
        guidance_scale: float | None = None,
        steps: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        first_candidate: int = 0,
        batch_size: int = 20,
        progress_bar: bool = False,
    ) -> GeneratorOutput:
        """N images of one prompt, or of each of P; see `GeneratorOutput`.

        guidance_scale (Show-o's g, 0 for none: Janus', LlamaGen's and diffusers' scale is g + 1), steps, temperature:
        by default as in `settings`. Candidates are numbered from first_candidate; a prompt that is listed again gets
        the numbers that follow. Candidate k of a prompt has the same noise whatever N, batch_size (images at once) or
        the other prompts. seed: any whole number. N and batch_size: 1 to 10,000; at most 100,000 images. ValueError for
        others, no prompts, or one that the model cannot read, and if the model's logits are not finite.
        """
        given = {"guidance_scale": guidance_scale, "steps": steps, "temperature": temperature}
        one = self.with_settings(**{name: value for name, value in given.items() if value is not None})
        prompts, seed = texts(prompt, "prompt"), whole(seed, "seed")

        def begin(rows: Sequence[int], paths: Sequence[tuple[int, int]], cost: Cost) -> State:
            return one.begin([prompts[row] for row in rows], paths, seed, cost)

        keys = [tuple(one.encode(each)) for each in prompts]
        return _generate(one, prompts, keys, begin, num_images_per_prompt, first_candidate, batch_size, progress_bar)


def _generate(
    generator: ImageGenerator[State],
    prompts: Sequence[str],
    keys: Sequence[tuple[object, ...]],
    begin: Callable[[Sequence[int], Sequence[tuple[int, int]], Cost], State],
    n: int,
    first_candidate: int,
    batch_size: int,
    progress_bar: bool,
) -> GeneratorOutput:
    """N images of each prompt, decoded to the end, whole prompts together where they fit into a batch.

    keys: what tells prompts apart; begin: from rows of `prompts`, paths of them and a cost to a state.
    """
    n = whole(n, "num_images_per_prompt", 1, MOST_PATHS)
    batch_size, first_candidate = (
        whole(batch_size, "batch_size", 1, MOST_PATHS),
        whole(first_candidate, "first_candidate", 0),
    )
    yes_or_no(progress_bar, "progress_bar")
    if len(prompts) * n > MOST_IMAGES:
        raise ValueError(
            f"{len(prompts)} prompts of {n} images are more than {MOST_IMAGES} images, which one call keeps in memory: "
            "draw fewer, or let `generate_pool` keep them on disk."
        )
    cost, started = Cost(), time.perf_counter()
    firsts = _first_candidates(keys, n, first_candidate)
    together, guesses, committed = max(1, batch_size // n), [], []
    with tqdm(total=len(prompts) * n, desc="images", disable=not progress_bar) as bar:
        for at in range(0, len(prompts), together):
            rows = range(at, min(at + together, len(prompts)))
            paths = [(row - at, firsts[row] + k) for row in rows for k in range(n)]
            group = begin(rows, paths, cost)
            for first in range(0, len(paths), batch_size):
                batch = range(first, min(first + batch_size, len(paths)))
                steps = list(generator.stream(generator.keep(group, batch)))
                guesses.append(torch.stack([step.guess for step in steps], dim=1).to("cpu", torch.int16))
                committed.append(torch.stack([step.committed for step in steps], dim=1).cpu())
                bar.update(len(batch))
    cost.generator_seconds = time.perf_counter() - started
    listed = [prompt for prompt in prompts for _ in range(n)]
    return GeneratorOutput(listed, torch.cat(guesses), torch.cat(committed), cost, generator.decode)


def _first_candidates(keys: Sequence[tuple[object, ...]], n: int, first: int) -> list[int]:
    """The number of each entry's first candidate; where a key comes again, its candidates follow."""
    times, firsts = Counter[tuple[object, ...]](), []
    for key in keys:
        firsts.append(first + n * times[key])
        times[key] += 1
    return firsts


def check_tokens(tokens: Any, length: int, codes: int, masked: bool = False, name: str = "tokens") -> Tensor:
    """Tokens of B images as int64 (B, length), from a tensor of whole numbers (..., length) from 0 to codes - 1.

    masked: whether MASKED will do as well. ValueError for anything else, and for no image.
    """
    fits = isinstance(tokens, Tensor) and all_whole(tokens) and tokens.shape[-1:] == (length,)
    if not fits or not tokens.numel():
        found = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else shown(tokens)
        raise ValueError(
            f"{name} must be a tensor of whole numbers of shape (..., {length}), {length} for each of at least one "
            f"image, got {found}."
        )
    least, most = (int(end) for end in tokens.aminmax())
    if least < (MASKED if masked else 0) or most >= codes:
        also = "or be MASKED" if masked else "without MASKED"
        raise ValueError(
            f"{name} must lie between 0 and {codes - 1}, {also}, got {least} to {most}: give tokens as generated, not "
            "as ids of the model's vocabulary."
        )
    return tokens.reshape(-1, length).long()


def check_begun_with(settings: SamplingSettings, state: Any) -> None:
    """ValueError if a state was begun with other settings than a generator's, or has been drawn to its end."""
    if state.settings != settings:
        raise ValueError(
            f"This state was begun with {state.settings}, not with {settings}: go on with the generator that began it."
        )
    if state.step >= settings.steps:
        raise ValueError(f"All {settings.steps} steps are done: begin anew, or go on from an earlier state.")


def check_parts(ours: Any, theirs: Any, model: str | Path, image_tokenizer: str | Path) -> None:
    """ValueError unless a generator draws the tokens that an image tokenizer reads, by the configs of both."""
    if (ours.codebook_size, ours.num_image_tokens) != (theirs.codebook_size, theirs.length):
        raise ValueError(
            f"{model} draws {ours.num_image_tokens} tokens of {ours.codebook_size} codes, but {image_tokenizer} reads "
            f"{theirs.length} of {theirs.codebook_size}: give the tokenizer that the generator was trained with."
        )


def check_text_tokenizer(text_tokenizer: Any) -> None:
    """ValueError unless the first can be a tokenizer of texts, as it is not if parts come in another order."""
    if not callable(text_tokenizer) or isinstance(text_tokenizer, nn.Module):
        raise ValueError(f"text_tokenizer must be a tokenizer of texts, got {shown(text_tokenizer)}.")


@dataclass(frozen=True)
class Generator(ImageGenerator[DecodingState]):
    """Show-o with its tokenizers, and how it samples; lite and full alike."""

    model: Showo
    text_tokenizer: PreTrainedTokenizerBase
    image_tokenizer: Magvit
    settings: SamplingSettings

    def __post_init__(self) -> None:
        of_kind(self.model, "model", Showo, "a Showo model")
        check_text_tokenizer(self.text_tokenizer)
        if type(self.settings) is not SamplingSettings:  # not those of next-token generators either
            raise ValueError(f"settings must be SamplingSettings, got {shown(self.settings)}.")

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        text_tokenizer: str | Path,
        image_tokenizer: str | Path,
        settings: SamplingSettings = PAPER_SETTINGS,
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
        reads = Magvit.from_pretrained(image_tokenizer).to(chosen)
        if "image_size" not in read_config(image_tokenizer, "image tokenizer", [MagvitConfig.model_type]):
            reads.config.image_size = isqrt(draws.config.num_image_tokens) * reads.config.patch_size
        check_parts(draws.config, reads.config, model, image_tokenizer)
        return cls(draws, load_tokenizer(text_tokenizer), reads, settings)

    @property
    def num_image_tokens(self) -> int:
        return self.model.config.num_image_tokens

    def begin(self, prompts: Sequence[str], paths: Sequence[tuple[int, int]], seed: int, cost: Cost) -> DecodingState:
        prefixes = [text_prefix(self.model.config, self.encode(prompt)) for prompt in texts(prompts, "prompts")]
        return start(self.model, encode_prompts(self.model, prefixes, cost), paths, self.settings, seed, cost)

    def advance(self, state: DecodingState) -> tuple[DecodingState, Step]:
        check_begun_with(self.settings, of_kind(state, "state", DecodingState, "what this generator's `begin` gives"))
        return advance(state, predict(self.model, state))

    def keep(self, state: DecodingState, paths: Sequence[int]) -> DecodingState:
        return keep(state, paths)

    def decode(self, tokens: Tensor) -> Tensor:
        tokens = check_tokens(tokens, self.num_image_tokens, self.model.config.codebook_size)
        return self.image_tokenizer.decode(tokens).cpu()

    def correct(
        self,
        prompt: str | Sequence[str],
        tokens: Tensor,
        reasons: str | Sequence[str],
        num_images_per_prompt: int = 1,
        *,
        seed: int = 0,
        batch_size: int = 20,
        progress_bar: bool = False,
    ) -> GeneratorOutput:
        """N images of every prompt that make good what is wrong with another image of it; for generators taught to.

        tokens: those images', (P, L); reasons: what is wrong with each, "" for no word about it; a single text serves
        all. Guidance holds what the text asks for against the image alone: against nothing at all it would mostly
        strengthen what is there. The rest is as in a call. ValueError for a text that the model cannot read.
        Paper: section 5.
        """
        config, seed = self.model.config, whole(seed, "seed")
        images = check_tokens(tokens, self.num_image_tokens, config.codebook_size).tolist()
        prompts, why = (
            texts(given, name) * (len(images) if isinstance(given, str) else 1)
            for given, name in ((prompt, "prompt"), (reasons, "reasons"))
        )
        if not len(images) == len(prompts) == len(why):
            raise ValueError(
                f"{len(images)} images came with {len(prompts)} prompts and {len(why)} reasons: "
                "give one of both for each image."
            )
        prefixes = [
            correction_prefix(config, self.encode(each), self.encode(reason), image)
            for each, reason, image in zip(prompts, why, images, strict=True)
        ]
        unguided = [correction_prefix(config, [], [], image) for image in images]

        def begin(rows: Sequence[int], paths: Sequence[tuple[int, int]], cost: Cost) -> DecodingState:
            cache = encode_prompts(self.model, [prefixes[r] for r in rows], cost, [unguided[r] for r in rows])
            return start(self.model, cache, paths, self.settings, seed, cost)

        keys = [tuple(prefix) for prefix in prefixes]
        return _generate(self, prompts, keys, begin, num_images_per_prompt, 0, batch_size, progress_bar)


def load_generator(name: str = "generator", device: str = "auto", models: Path | None = None) -> Generator:
    """A shipped lite generator with its tokenizers, e.g. "generator", "dpo" or "it-dpo".

    models: as in `hub.model_path`. ValueError if a file is damaged, FileNotFoundError if one is missing.
    """
    return Generator.from_pretrained(*lite_parts(name, models), LITE_SETTINGS, device)


def lite_parts(name: str, models: Path | None = None) -> tuple[Path, Path, Path]:
    """The folders of a lite generator, of its words and of its image tokenizer; errors as in `hub.model_path`."""
    logging.disable_progress_bar()  # lite models load at once; a bar for each would clutter the notebooks
    models = None if models is None else folder(models, "models")
    parts = model_path(text(name, "name"), models), model_path("words", models), model_path("tokenizer", models)
    for part in parts:
        if not part.is_dir():  # which would be taken for the name of a model on the hub
            raise FileNotFoundError(f"{part} is missing: build it, or give the folder that holds the models.")
    return parts


class GeneratedPool(NamedTuple):
    """Candidates of P prompts, N each, as `generate_pool` draws them.

    steps: int16 (P, N, T, L), the guess of every step, or of the last alone; committed_at: (P, N, L), the step at
    which each position got its final token, uint8, of more than 256 steps int16; cost: of earlier calls and other
    processes too.
    """

    steps: Tensor
    committed_at: Tensor
    cost: Cost

    @property
    def tokens(self) -> Tensor:
        """Tokens int16 (P, N, L) of the finished images."""
        return self.steps[:, :, -1].contiguous()


def generate_pool(
    generator: ImageGenerator[State],
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    work_dir: Path,
    final_only: bool = False,
    **settings: Any,
) -> GeneratedPool:
    """N candidates for every entry of `prompts`; equal neighbours are pools of one prompt, with their own candidates.

    (Equal entries that are no neighbours may get the same ones.) Resumes from the shards in `work_dir`, kept apart by
    weights, settings, prompts, n and seed. final_only: keep the last step's guess alone, T = 1, where no other is
    needed. settings: of this pool alone, e.g. `temperature=1.5`. ValueError for n outside 1 to 10,000 or a prompt that
    the generator cannot read.
    """
    with_methods(generator, "generator", ("begin", "with_settings"), "a generator, such as `load_generator` gives")
    generator, prompts = generator.with_settings(**settings), each_prompt(prompts, none=False)
    n, seed, work_dir = whole(n, "n", 1, MOST_PATHS), whole(seed, "seed"), folder(work_dir, "work_dir")
    yes_or_no(final_only, "final_only")
    shards: list[list[Prompt]] = [[]]
    for _, same in groupby(prompts):
        if len(shards[-1]) >= SHARD:
            shards.append([])
        shards[-1] += same
    # The image tokenizer does not shape the tokens; every other network that a generator holds does, as LlamaGen's T5.
    networks = [
        part for name, part in vars(generator).items() if name != "image_tokenizer" and hasattr(part, "parameters")
    ]
    ids = [generator.encode(prompt.text) for prompt in prompts]  # what a model draws from, whatever the words mean
    kind, configs = type(generator).__name__, list(map(config_of, networks))
    name = fingerprint(networks, kind, configs, generator.settings, ids, list(map(len, shards)), n, seed)
    fits = torch.uint8 if generator.settings.steps <= 256 else torch.int16  # steps are counted from 0
    place, kept = work_dir / (f"{name}-final" if final_only else name), slice(-1 if final_only else 0, None)

    def draw(shard: list[Prompt]) -> dict[str, Tensor]:
        out = generator([prompt.text for prompt in shard], n, seed=seed)
        guesses, committed = (whole.unflatten(0, (len(shard), n)) for whole in (out.steps, out.committed))
        spent = out.cost
        return {
            "guesses": guesses[:, :, kept].contiguous(),
            "committed_at": committed.to(torch.uint8).argmax(dim=2).to(fits),
            "cost": torch.tensor([spent.generator_passes, spent.tokens, spent.generator_seconds], dtype=torch.float64),
        }

    parts = in_shards(shards, draw, place, "pool")
    passes, tokens, seconds = torch.stack([part["cost"] for part in parts]).sum(0).tolist()
    cost = Cost(generator_passes=round(passes), tokens=round(tokens), generator_seconds=seconds)
    guesses, committed_at = (torch.cat([part[key] for part in parts]) for key in ("guesses", "committed_at"))
    return GeneratedPool(guesses, committed_at, cost)


def judge_tokens(
    generator: ImageGenerator[State], tokens: Tensor, prompts: Sequence[Prompt], detector: Detector
) -> npt.NDArray[np.bool_]:
    """A judge's verdicts on a pool's finished images; tokens (P, N, L), returns bool (P, N).

    ValueError for tokens that are none of this generator's, or that are not as many pools as there are prompts.
    """
    prompts, tokens = _check_judging(generator, tokens, prompts, detector)
    rows = list(zip(prompts, tokens, strict=True))
    bar = tqdm(rows, desc=f"judge {type(detector).__name__}", disable=len(rows) <= SHARD)
    return np.stack([judge(detector, generator.decode(row), [prompt] * len(row)) for prompt, row in bar])


def label_tokens(
    generator: ImageGenerator[State], tokens: Tensor, prompts: Sequence[Prompt], detector: Detector, work_dir: Path
) -> tuple[npt.NDArray[np.bool_], float]:
    """`judge_tokens` shard by shard, for more images than are judged in one go; and how long it took.

    Verdicts are kept in `work_dir`, by detector (its weights, and what plain data it holds), images and prompts.
    Returns bool (P, N), and seconds, of earlier calls and other processes too. ValueError as in `judge_tokens`.
    """
    prompts, tokens = _check_judging(generator, tokens, prompts, detector)
    work_dir = folder(work_dir, "work_dir")

    def verdicts(rows: slice) -> dict[str, Tensor]:
        started = time.perf_counter()
        right = torch.from_numpy(judge_tokens(generator, tokens[rows], prompts[rows], detector))
        return {"right": right, "seconds": torch.tensor(time.perf_counter() - started, dtype=torch.float64)}

    networks, told = named_by(detector, generator.image_tokenizer)
    place = work_dir / fingerprint(networks, told, prompts, tokens, SHARD)
    rows = [slice(at, at + SHARD) for at in range(0, len(prompts), SHARD)]
    parts = in_shards(rows, verdicts, place, type(detector).__name__)
    return torch.cat([part["right"] for part in parts]).numpy(), sum(float(part["seconds"]) for part in parts)


def _check_judging(generator: Any, tokens: Any, prompts: Any, detector: Any) -> tuple[tuple[Prompt, ...], Tensor]:
    with_methods(generator, "generator", ("begin",), "a generator, such as `load_generator` gives")
    with_methods(detector, "detector", ("detect",), "a judge with a method `detect`, such as `load_judge` gives")
    prompts = each_prompt(prompts, none=False)
    of_kind(tokens, "tokens", Tensor, "a tensor of whole numbers")
    return prompts, shaped(tokens, "tokens", (len(prompts), "N", generator.num_image_tokens))
