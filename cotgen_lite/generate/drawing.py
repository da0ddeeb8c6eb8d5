"""Drawing and judging many images: shard by shard on disk, so that an interrupted run goes on where it was."""

import hashlib
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cotgen_lite.generate.autoregressive import AnyGenerator
from cotgen_lite.generate.sampling import Ledger
from cotgen_lite.geneval import Detector, judge
from cotgen_lite.pools import SHARD, in_shards
from cotgen_lite.prompts import Prompt
from cotgen_lite.training import fingerprint


def draw_pool(
    generator: AnyGenerator, prompts: Sequence[Prompt], n: int, seed: int, work_dir: Path, final_only: bool = False
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """N candidates for every entry of `prompts`; equal neighbours are pools of one prompt, with their own candidates.

    (Equal entries that are no neighbours may get the same ones.) Resumes from the shards in `work_dir`, kept apart by
    weights, settings, prompts, n and seed. Returns the guess of every step int16 (P, N, T, L), the step at which each
    place got its final code uint8 (P, N, L), and the cost: generator passes, sequence places and seconds, of earlier
    calls and other processes too. final_only: keep the last step's guess alone, T = 1, where no other is needed.
    ValueError for n < 1 or a prompt that the generator cannot read.
    """
    shards: list[list[Prompt]] = [[]]
    for _, same in groupby(prompts):
        if len(shards[-1]) >= SHARD:
            shards.append([])
        shards[-1] += same
    texts = [prompt.text for prompt in prompts]
    # Pixels do not shape the codes; whatever other network a generator holds does, as LlamaGen's T5.
    others = [part for name, part in vars(generator).items() if name not in ("model", "image_tokenizer")]
    networks = (generator.model, *(part for part in others if isinstance(part, nn.Module)))
    name = fingerprint(networks, generator.settings, texts, n, seed, SHARD)
    folder, kept = work_dir / (f"{name}-final" if final_only else name), slice(-1 if final_only else 0, None)

    def draw(shard: list[Prompt]) -> dict[str, Tensor]:
        return _draw_shard(generator, [prompt.text for prompt in shard], n, seed, kept)

    parts = in_shards(shards, draw, folder, "pool")
    passes, places, seconds = torch.stack([part["cost"] for part in parts]).sum(0).tolist()
    cost = {"generator_passes": passes, "tokens": places, "seconds": seconds}
    return torch.cat([part["guesses"] for part in parts]), torch.cat([part["committed_at"] for part in parts]), cost


def judge_tokens(
    generator: AnyGenerator, tokens: Tensor, prompts: Sequence[Prompt], detector: Detector, work_dir: Path | None = None
) -> npt.NDArray:
    """A judge's verdicts on a pool's finished images; tokens (P, N, L), returns bool (P, N).

    With a `work_dir` verdicts are kept there in shards, as `label_tokens` does.
    """
    if work_dir is not None:
        return label_tokens(generator, tokens, prompts, detector, work_dir)[0]
    rows = tqdm(list(zip(prompts, tokens, strict=True)), desc=f"judge {type(detector).__name__}")
    return np.stack([judge(detector, generator.decode(codes), [prompt] * len(codes)) for prompt, codes in rows])


def label_tokens(
    generator: AnyGenerator, tokens: Tensor, prompts: Sequence[Prompt], detector: Detector, work_dir: Path
) -> tuple[npt.NDArray, float]:
    """`judge_tokens` shard by shard, for more images than are judged in one go; and how long it took.

    Verdicts are kept in `work_dir`, by detector, images and prompts; a detector's weights count, its settings do not.
    Returns bool (P, N), and seconds, of earlier calls and other processes too.
    """
    rows = list(zip(prompts, tokens, strict=True))

    def verdicts(some: Sequence[tuple[Prompt, Tensor]]) -> dict[str, Tensor]:
        started = time.perf_counter()
        right = [judge(detector, generator.decode(codes), [prompt] * len(codes)) for prompt, codes in some]
        seconds = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
        return {"right": torch.from_numpy(np.stack(right)), "seconds": seconds}

    name = type(detector).__name__
    networks = [part for part in (detector, *getattr(detector, "__dict__", {}).values()) if isinstance(part, nn.Module)]
    shards = [rows[at : at + SHARD] for at in range(0, len(rows), SHARD)]
    digest = hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()
    folder = work_dir / fingerprint((generator.image_tokenizer, *networks), name, list(prompts), digest, SHARD)
    parts = in_shards(shards, verdicts, folder, name)
    return torch.cat([part["right"] for part in parts]).numpy(), sum(float(part["seconds"]) for part in parts)


def _draw_shard(generator: AnyGenerator, texts: list[str], n: int, seed: int, kept: slice) -> dict[str, Tensor]:
    ledger, started = Ledger(), time.perf_counter()
    drawn = generator.draw(texts, n, seed, ledger=ledger)
    cost = [ledger.passes + ledger.prefix_passes, ledger.places, time.perf_counter() - started]
    guesses = torch.stack([torch.stack([t.tokens[kept] for t in candidates]) for candidates in drawn])
    committed = torch.stack([torch.stack([t.committed for t in candidates]) for candidates in drawn])
    committed_at = committed.to(torch.uint8).argmax(dim=2).to(torch.uint8)
    return {"guesses": guesses, "committed_at": committed_at, "cost": torch.tensor(cost, dtype=torch.float64)}
