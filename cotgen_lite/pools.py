"""Candidate pools: N images of every prompt, drawn once, scored by any verifier, read for every best-of-n at once.

Section 3.1 of the paper compares verifiers on the same images: a pool keeps these as tokens, with scores and verdicts,
in one small file. `metrics.py` reads accuracies off it. Long jobs keep their parts on disk, too (`in_shards`).
Read next: generate/vq.py.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.hub import data_folder, first_line, in_place_of, restore
from cotgen_lite.identity import identity
from cotgen_lite.inputs import numbers, of_kind, settle, shaped, verdicts, whole, whole_numbers, with_methods
from cotgen_lite.prompts import (
    TAGS,
    Prompt,
    each_prompt,
    from_record,
    lite_prompts,
    parse_prompt,
    to_record,
    world_file,
)

MOST_BITS = 15  # of a token, kept as int16
HIGHEST_SCORE = 65504  # of float16
PACKED_AT_ONCE = 4096  # images whose bits lie side by side, unpacked, at once


@dataclass(frozen=True)
class Pool:
    """The candidates of P prompts, N each; a prompt that occurs several times has independent pools.

    tokens: of the final images, int16 (P, N, L). scores: per verifier, log-odds of yes, float32 (P, N), of PARM its
    order of the paths; none in a set for training or where nothing was to be chosen. correct: bool (P, N) per judge:
    "learned", which reports, and "template", which labels, in the lite world; of steps, "rollouts" (P, T, R).
    ValueError if shapes do not fit each other, tokens are no whole numbers, or scores are not finite.
    """

    prompts: tuple[Prompt, ...]
    tokens: torch.Tensor
    scores: dict[str, npt.NDArray[np.float32]]
    correct: dict[str, npt.NDArray[np.bool_]]

    def __post_init__(self) -> None:
        settle(self, prompts=each_prompt(self.prompts))
        whole_numbers(of_kind(self.tokens, "tokens", Tensor, "an int16 tensor"), "tokens")
        shape = shaped(self.tokens, "tokens", (len(self.prompts), "N", "L")).shape[:2]
        for part in ("scores", "correct"):
            of_kind(getattr(self, part), part, dict, "a dict of arrays (P, N) by name")
        for name, scores in self.scores.items():
            shaped(numbers(scores, f"scores of {name!r}"), f"scores of {name!r}", shape)
        for name, right in self.correct.items():
            verdicts(right, f"correct of {name!r}", (*shape, "R") if np.ndim(right) == 3 else shape)
        settle(
            self,
            scores={name: np.asarray(one) for name, one in self.scores.items()},
            correct={name: np.asarray(one, bool) for name, one in self.correct.items()},
        )


def pool_prompts(split: str) -> tuple[Prompt, ...]:
    """The prompts of a set, each as often as it has pools ("test" in the shipped world: 328 of 232 prompts).

    As GenEval draws four images a prompt: tags with few prompts get more pools, so that none hangs on a few coin flips.
    """
    pools = world_file()["prompts"]["pools"]
    return tuple(prompt for prompt in lite_prompts(split) for _ in range(pools[prompt.tag]))


def stratified_subset(prompts: Sequence[Prompt], one_in: int = 1, most: int | None = None) -> tuple[Prompt, ...]:
    """Some of the different prompts of each tag, as often as they occur.

    one_in: one in so many of a tag's prompts, the first among them, but two at least where there are two: by fewer
    nobody sees how prompts vary, and there is no interval. most: no more than so many of them. ValueError if either is
    less than 1.
    """
    prompts, one_in = each_prompt(prompts), whole(one_in, "one_in", 1)
    most = None if most is None else whole(most, "most", 1)
    kept: set[Prompt] = set()
    for tag in TAGS:
        different = list(dict.fromkeys(prompt for prompt in prompts if prompt.tag == tag))
        kept.update(different[:: max(1, min(one_in, (len(different) + 1) // 2))][:most])
    return tuple(prompt for prompt in prompts if prompt in kept)


def save_pool(pool: Pool, path: str | Path) -> None:
    """Write a pool as one safetensors file, atomically; scores in float16, tokens bit by bit, prompts beside them.

    Of a lite prompt its text is kept, which says all, of any other its record. ValueError for open positions (MASKED):
    a pool keeps whole images; and for scores beyond ±65,504.
    """
    of_kind(pool, "pool", Pool, "a Pool")
    if pool.tokens.numel() and int(pool.tokens.min()) < 0:
        raise ValueError("A pool keeps whole images: some of these have positions without a token; save the last step.")
    if not pool.tokens.shape[-1]:
        raise ValueError("A pool keeps whole images: these have no tokens at all (L is 0); give at least one an image.")
    if pool.tokens.numel() and int(pool.tokens.max()) >= 2**MOST_BITS:
        raise ValueError(f"Tokens must be below {2**MOST_BITS:,} to be kept, but one is {int(pool.tokens.max()):,}.")
    bits = max(1, int(pool.tokens.max()).bit_length()) if pool.tokens.numel() else 1
    arrays = {"codes": pack_tokens(pool.tokens, bits)}
    for name, values in pool.scores.items():
        numbers(values, f"scores of {name!r}", -HIGHEST_SCORE, HIGHEST_SCORE)
        arrays[f"scores.{name}"] = torch.from_numpy(values.astype(np.float16, order="C"))
    arrays |= {f"correct.{name}": torch.from_numpy(values.copy()) for name, values in pool.correct.items()}
    prompts = [_shortest(prompt) for prompt in pool.prompts]
    write_arrays(path, arrays, {"prompts": prompts, "bits": bits, "length": pool.tokens.shape[-1]})


def load_pool(path: str | Path) -> Pool:
    """Read a pool back, its prompts included.

    FileNotFoundError if it is missing; ValueError if it is damaged, or a safetensors file that is no pool.
    """
    arrays, about = read_arrays(path)
    if "prompts" not in about:
        raise ValueError(f"{path} is not a pool: give a file that `save_pool` wrote.")
    tokens = unpack_tokens(arrays["codes"], about["bits"], about["length"])
    parts: dict[str, dict[str, npt.NDArray]] = {"scores": {}, "correct": {}}
    for key, values in arrays.items():
        kind, _, name = key.partition(".")
        if kind in parts:
            parts[kind][name] = values.numpy() if kind == "correct" else values.float().numpy()
    prompts = (parse_prompt(one) if isinstance(one, str) else from_record(one) for one in about["prompts"])
    return Pool(tuple(prompts), tokens, parts["scores"], parts["correct"])


def write_arrays(path: str | Path, arrays: dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
    """Write tensors, and plain data about them, as one safetensors file, atomically: equal ones give equal bytes.

    All that is said of them is one entry, as the library writes several in any order; their identity is in it.
    """
    of_kind(arrays, "arrays", dict, "a dict of tensors")
    arrays = {name: of_kind(values, name, Tensor, "a tensor").contiguous() for name, values in arrays.items()}
    about = json.loads(json.dumps(about or {}))  # as it will be read
    named = {"about": about, "identity": identity(about, arrays)}
    with in_place_of(Path(of_kind(path, "path", (str, Path), "a file's path"))) as part:
        save_file(arrays, part, metadata={"about": json.dumps(named, sort_keys=True)})


def read_arrays(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_arrays` wrote. FileNotFoundError if it is missing; ValueError if any of it is damaged."""
    if not Path(of_kind(path, "path", (str, Path), "a file's path")).is_file():
        raise FileNotFoundError(f"{path} is missing: {_cure(path)}.")
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get("about")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        named = json.loads(said) if said else {}
        intact = not said or named["identity"] == identity(named["about"], arrays)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): {_cure(path)}.") from error
    if not intact:
        raise ValueError(f"{path} is damaged (its content is not what was written): {_cure(path)}.")
    if not said:
        raise ValueError(f"{path} is no file of the course's pools and their steps: give one that it wrote.")
    return arrays, named["about"]


def _cure(path: str | Path) -> str:
    """How to get a file back, which may lie in a data folder."""
    root = data_folder(Path(path))
    return restore(root) if root else "make it again, or give another file"


def _shortest(prompt: Prompt) -> str | dict:
    """A prompt's text if that says all, else its record."""
    try:
        if parse_prompt(prompt.text) == prompt:
            return prompt.text
    except (ValueError, FileNotFoundError):  # it speaks of more than the lite world, or there is none
        pass
    return to_record(prompt)


def pack_tokens(tokens: torch.Tensor, bits: int) -> torch.Tensor:
    """Tokens (..., L) below 2**bits as bytes, uint8 (..., ⌈L·bits/8⌉): 10-bit tokens take five eighths of int16.

    ValueError for tokens that are not from 0 to 2**bits − 1, and for other bits than 1 to 15.
    """
    whole_numbers(of_kind(tokens, "tokens", Tensor, "an int16 tensor"), "tokens")
    length, bits = tokens.shape[-1], whole(bits, "bits", 1, MOST_BITS)
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= 2**bits):
        run = f"{int(tokens.min())} to {int(tokens.max())}"
        raise ValueError(f"Tokens of {bits} bits run from 0 to {2**bits - 1}; these run from {run}.")
    rows, shifts = tokens.numpy().reshape(-1, length), np.arange(bits - 1, -1, -1)
    packed = np.empty((len(rows), -(-length * bits // 8)), dtype=np.uint8)
    for at in range(0, len(rows), PACKED_AT_ONCE):
        spread = (rows[at : at + PACKED_AT_ONCE, :, None] >> shifts) & 1
        packed[at : at + PACKED_AT_ONCE] = np.packbits(spread.reshape(len(spread), -1).astype(np.uint8), axis=1)
    return torch.from_numpy(packed.reshape(*tokens.shape[:-1], packed.shape[1]))


def unpack_tokens(packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """What `pack_tokens` packed: tokens int16 (..., length); ValueError if so many do not fit into the bytes."""
    bits, length = whole(bits, "bits", 1, MOST_BITS), whole(length, "length", 0)
    of_kind(packed, "packed", Tensor, "a uint8 tensor")
    if packed.dtype != torch.uint8 or packed.shape[-1] != -(-length * bits // 8):
        raise ValueError(f"{length} tokens of {bits} bits are no {packed.dtype} of shape {tuple(packed.shape)}.")
    rows, worth = packed.numpy().reshape(-1, packed.shape[-1]), (1 << np.arange(bits - 1, -1, -1)).astype(np.int16)
    tokens = np.empty((len(rows), length), dtype=np.int16)
    for at in range(0, len(rows), PACKED_AT_ONCE):
        spread = np.unpackbits(rows[at : at + PACKED_AT_ONCE], axis=1, count=length * bits)
        tokens[at : at + PACKED_AT_ONCE] = spread.reshape(len(spread), length, bits) @ worth
    return torch.from_numpy(tokens.reshape(*packed.shape[:-1], length))


SHARD = 8  # prompts drawn between two savings
SAID_AFTER, GIVEN_UP_AFTER = 10.0, 3600.0  # seconds without a new shard of another process

T = TypeVar("T")


def in_shards(
    shards: Sequence[T], make: Callable[[T], dict[str, Tensor]], work_dir: Path, label: str
) -> list[dict[str, Tensor]]:
    """What `make` gives for every shard, each kept in `work_dir` once it is made; a later call only reads it.

    `work_dir` must belong to this very job (see `fingerprint`): shards are told apart by their number alone; a damaged
    one is made again. Under `accelerate launch` every process makes its share and waits for the others', in a folder
    that all can see, so all return the same. ValueError if RANK and WORLD_SIZE contradict each other; TimeoutError if
    no other process makes anything for `GIVEN_UP_AFTER` seconds, or for ten of our slowest shards if that is longer.
    """
    rank, processes = rank_and_processes()
    with_methods(make, "make", ["__call__"], "a function that makes the tensors of a shard")
    of_kind(shards, "shards", Sequence, "a list of shards")
    work_dir = Path(of_kind(work_dir, "work_dir", (str, Path), "a folder's path"))
    work_dir.mkdir(parents=True, exist_ok=True)
    paths = [work_dir / f"shard-{number:03d}.safetensors" for number in range(len(shards))]
    parts: dict[int, dict[str, Tensor]] = {}
    slowest = 0.0
    label += f" (process {rank} of {processes})" if processes > 1 else ""
    for number in tqdm(range(rank, len(shards), processes), desc=label):
        if not _read_whole(paths, [number], parts):
            if paths[number].exists():
                print(f"{paths[number]} is damaged: it is made again.", flush=True)
            started = time.monotonic()
            write_arrays(paths[number], make(shards[number]))
            slowest = max(slowest, time.monotonic() - started)
            if not _read_whole(paths, [number], parts):
                raise ValueError(f"{paths[number]} cannot be read back: check the disk that it is on.")
    patience = max(GIVEN_UP_AFTER, 10 * slowest)  # others' shards may take as long as ours, or longer
    since, said = time.monotonic(), False
    while missing := [number for number in range(len(shards)) if number not in parts]:
        if _read_whole(paths, missing, parts):
            since, said = time.monotonic(), False
            continue
        waited = time.monotonic() - since
        if waited >= SAID_AFTER and not said:
            said = True
            print(
                f"Process {rank} (RANK) of {processes} (WORLD_SIZE) has made its share and waits for process "
                f"{missing[0] % processes}, which makes {paths[missing[0]].name} in {work_dir} ({len(missing)} files "
                "are missing).",
                flush=True,
            )
        if waited >= patience:
            raise TimeoutError(
                f"No other process made a shard in {work_dir} for {waited:.0f} seconds, though RANK={rank} and "
                f"WORLD_SIZE={processes} say that there are others: start all of them with `accelerate launch`, or "
                "unset RANK and WORLD_SIZE to work alone; what is made is kept."
            )
        time.sleep(min(1.0, SAID_AFTER))  # no barrier: a process group would give up on slow shards
    return [parts[number] for number in range(len(shards))]


def _read_whole(paths: Sequence[Path], numbers: Sequence[int], parts: dict[int, dict[str, Tensor]]) -> bool:
    """Read those of some shards that are there and whole into `parts`; whether there were any."""
    before = len(parts)
    for number in numbers:
        with suppress(FileNotFoundError, ValueError):
            parts[number] = read_arrays(paths[number])[0]
    return len(parts) > before


def rank_and_processes() -> tuple[int, int]:
    """Which process this is, and of how many, as `accelerate launch` says; 0 of 1 without it.

    ValueError if RANK and WORLD_SIZE are no such numbers, or contradict each other.
    """
    rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or not processes.isdecimal() or int(rank) >= int(processes):
        raise ValueError(
            f"RANK is {rank} of WORLD_SIZE {processes}: start all processes with `accelerate launch`, or unset both."
        )
    return int(rank), int(processes)
