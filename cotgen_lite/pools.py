"""Candidate pools: N images of every prompt, drawn once, scored by any verifier, read for every best-of-n at once.

Section 3.1 of the paper compares verifiers on the same images: a pool keeps these as tokens, with scores and verdicts,
in one small file. `metrics.py` reads accuracies off it. Long jobs keep their parts on disk, too (`in_shards`).
Read next: training.py.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.hub import in_place_of
from cotgen_lite.prompts import TAGS, Prompt, from_record, lite_prompts, parse_prompt, to_record, world_file

PACKED_AT_ONCE = 4096  # images whose bits lie side by side, unpacked, at once


@dataclass(frozen=True)
class Pool:
    """The candidates of P prompts, N each; a prompt that occurs several times has independent pools.

    tokens: of the final images, int16 (P, N, L). scores: per verifier, log-odds of yes, float32 (P, N), of PARM its
    order of the paths; none in a set for training or where nothing was to be chosen. correct: bool (P, N) per judge:
    "learned", which reports, and "template", which labels, in the lite world; of steps, "rollouts" (P, T, R).
    """

    prompts: tuple[Prompt, ...]
    tokens: torch.Tensor
    scores: dict[str, npt.NDArray[np.float32]]
    correct: dict[str, npt.NDArray[np.bool_]]


def pool_prompts(split: str) -> tuple[Prompt, ...]:
    """The prompts of a set, each as often as it has pools ("test" in the shipped world: 328 of 232 prompts).

    As GenEval draws four images a prompt: tags with few prompts get more pools, so that none hangs on a few coin flips.
    """
    pools = world_file()["prompts"]["pools"]
    return tuple(prompt for prompt in lite_prompts(split) for _ in range(pools[prompt.tag]))


def stratified_subset(prompts: Sequence[Prompt], one_in: int = 1, most: int | None = None) -> tuple[Prompt, ...]:
    """Some of the different prompts of each tag, as often as they occur.

    one_in: one in so many of a tag's prompts, the first among them, but two at least where there are two: by fewer
    nobody sees how prompts vary, and there is no interval. most: no more than so many of them.
    """
    kept: set[Prompt] = set()
    for tag in TAGS:
        different = list(dict.fromkeys(prompt for prompt in prompts if prompt.tag == tag))
        kept.update(different[:: max(1, min(one_in, (len(different) + 1) // 2))][:most])
    return tuple(prompt for prompt in prompts if prompt in kept)


def save_pool(pool: Pool, path: Path) -> None:
    """Write a pool as one safetensors file, atomically; scores in float16, tokens bit by bit, prompts as metadata.

    Prompts are lines: of a lite prompt its text, which says all, of any other its record as JSON. ValueError for open
    positions (MASKED): a pool keeps whole images.
    """
    if pool.prompts and int(pool.tokens.min()) < 0:
        raise ValueError("A pool keeps whole images: some of these have positions without a token; save the last step.")
    bits = max(1, int(pool.tokens.max()).bit_length()) if pool.prompts else 1
    arrays = {"codes": pack_tokens(pool.tokens, bits)}
    arrays |= {f"scores.{name}": torch.from_numpy(np.float16(values)) for name, values in pool.scores.items()}
    arrays |= {f"correct.{name}": torch.from_numpy(values) for name, values in pool.correct.items()}
    lines = "\n".join(map(_as_line, pool.prompts))
    with in_place_of(path) as part:
        save_file(arrays, part, metadata={"prompts": lines, "bits": str(bits), "length": str(pool.tokens.shape[-1])})


def load_pool(path: Path) -> Pool:
    """Read a pool back, its prompts included.

    FileNotFoundError if it is missing; ValueError if it is damaged, or a safetensors file that is no pool.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"The pool {path} is damaged ({error}): restore it with `git checkout -- data`.") from error
    if not {"prompts", "bits", "length"} <= about.keys():
        raise ValueError(f"{path} is not a pool: give a file that `save_pool` wrote.")
    tokens = unpack_tokens(arrays["codes"], int(about["bits"]), int(about["length"]))
    parts: dict[str, dict[str, npt.NDArray]] = {"scores": {}, "correct": {}}
    for key, values in arrays.items():
        kind, _, name = key.partition(".")
        if kind in parts:
            parts[kind][name] = values.numpy() if kind == "correct" else values.float().numpy()
    return Pool(tuple(map(_from_line, about["prompts"].splitlines())), tokens, parts["scores"], parts["correct"])


def _as_line(prompt: Prompt) -> str:
    try:
        if parse_prompt(prompt.text) == prompt:
            return prompt.text
    except (ValueError, FileNotFoundError):  # it speaks of more than the lite world, or there is none
        pass
    return json.dumps(to_record(prompt))


def _from_line(line: str) -> Prompt:
    return from_record(json.loads(line)) if line.startswith("{") else parse_prompt(line)


def pack_tokens(tokens: torch.Tensor, bits: int) -> torch.Tensor:
    """Tokens (..., L) below 2**bits as bytes, uint8 (..., ⌈L·bits/8⌉): 10-bit tokens take five eighths of int16."""
    length = tokens.shape[-1]
    rows, shifts = tokens.numpy().reshape(-1, length), np.arange(bits - 1, -1, -1)
    packed = np.empty((len(rows), -(-length * bits // 8)), dtype=np.uint8)
    for at in range(0, len(rows), PACKED_AT_ONCE):
        spread = (rows[at : at + PACKED_AT_ONCE, :, None] >> shifts) & 1
        packed[at : at + PACKED_AT_ONCE] = np.packbits(spread.reshape(len(spread), -1).astype(np.uint8), axis=1)
    return torch.from_numpy(packed.reshape(*tokens.shape[:-1], packed.shape[1]))


def unpack_tokens(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """What `pack_tokens` packed: tokens int16 (..., length)."""
    rows, worth = packed.numpy().reshape(-1, packed.shape[-1]), (1 << np.arange(bits - 1, -1, -1)).astype(np.int16)
    tokens = np.empty((len(rows), length), dtype=np.int16)
    for at in range(0, len(rows), PACKED_AT_ONCE):
        spread = np.unpackbits(rows[at : at + PACKED_AT_ONCE], axis=1, count=length * bits)
        tokens[at : at + PACKED_AT_ONCE] = spread.reshape(len(spread), length, bits) @ worth
    return torch.from_numpy(tokens.reshape(*packed.shape[:-1], length))


SHARD = 8  # prompts drawn between two savings


T = TypeVar("T")


def in_shards(
    shards: Sequence[T], make: Callable[[T], dict[str, Tensor]], work_dir: Path, label: str
) -> list[dict[str, Tensor]]:
    """What `make` gives for every shard, each kept in `work_dir` once it is made; a later call only reads it.

    `work_dir` must belong to this very job (see `fingerprint`): shards are told apart by their number alone. Under
    `accelerate launch` every process makes its share and waits for the others', in a folder that all can see, so all
    return the same. ValueError if RANK and WORLD_SIZE contradict each other.
    """
    rank, processes = rank_and_processes()
    work_dir.mkdir(parents=True, exist_ok=True)
    paths = [work_dir / f"shard-{number:03d}.safetensors" for number in range(len(shards))]
    for number in tqdm(range(rank, len(shards), processes), desc=label):
        if not paths[number].exists():
            made = make(shards[number])
            with in_place_of(paths[number]) as part:
                save_file(made, part)
    while not all(path.exists() for path in paths):  # no barrier: a process group would give up on slow shards
        time.sleep(1)
    return [load_file(path) for path in paths]


def rank_and_processes() -> tuple[int, int]:
    """Which process this is, and of how many, as `accelerate launch` says; 0 of 1 without it.

    ValueError if RANK and WORLD_SIZE contradict each other.
    """
    rank, processes = (int(os.environ.get(name, number)) for name, number in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= rank < processes:
        raise ValueError(f"RANK is {rank} of WORLD_SIZE {processes}: start all processes with `accelerate launch`.")
    return rank, processes
