"""Best-of-n from one pool: exact against all subsets, ties included; pools on disk."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cotgen_lite import pools
from cotgen_lite.full_scale.prompts import full_prompts
from cotgen_lite.hub import data_path, data_root
from cotgen_lite.metrics import expected_best_of
from cotgen_lite.pools import (
    Pool,
    load_pool,
    pack_tokens,
    pool_prompts,
    read_arrays,
    save_pool,
    stratified_subset,
    unpack_tokens,
    write_arrays,
)
from cotgen_lite.prompts import TAGS

SHIPPED = sorted(path for folder in ("pools", "training") for path in (data_root() / folder).rglob("*.safetensors"))


def a_pool() -> Pool:
    """Three dev prompts with four random images each."""
    rng = np.random.default_rng(0)
    return Pool(
        pool_prompts("dev")[:3],
        torch.randint(0, 1024, (3, 4, 64), generator=torch.Generator().manual_seed(0)).to(torch.int16),
        {"zs-orm": np.float32(np.float16(rng.normal(size=(3, 4))))},
        {"learned": rng.random((3, 4)) < 0.5},
    )


def numbered(shard: int) -> dict[str, torch.Tensor]:
    return {"shard": torch.tensor([shard])}


def brute_force(score: np.ndarray, right: np.ndarray, n: int) -> float:
    """Mean over all subsets; among equal best scores every one is as likely."""
    outcomes = []
    for subset in combinations(range(len(score)), n):
        best = max(score[i] for i in subset)
        outcomes.append(np.mean([right[i] for i in subset if score[i] == best]))
    return float(np.mean(outcomes))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_equals_all_subsets(n: int) -> None:
    rng = np.random.default_rng(n)
    scores, correct = rng.normal(size=(6, 7)), rng.random((6, 7)) < 0.5
    expected = [brute_force(s, r, n) for s, r in zip(scores, correct, strict=True)]
    np.testing.assert_allclose(expected_best_of(scores, correct, n), expected)


def test_ties_are_the_mean_over_orders() -> None:
    score, right = np.array([2.0, 1.0, 1.0, 1.0, 0.0]), np.array([0, 1, 0, 1, 1])
    for n in (1, 2, 3, 4, 5):
        orders = []
        for order in set(permutations(range(5))):
            ranked = sorted(range(5), key=lambda i: (-score[i], order[i]))
            broken = np.empty(5)
            broken[ranked] = np.arange(5, 0, -1)
            orders.append(brute_force(broken, right, n))
        assert expected_best_of(score[None], right[None], n)[0] == pytest.approx(np.mean(orders))


def test_limits() -> None:
    rng = np.random.default_rng(0)
    scores, correct = rng.normal(size=(9, 20)), rng.random((9, 20)) < 0.3
    np.testing.assert_allclose(expected_best_of(scores, correct, 1), correct.mean(1))
    np.testing.assert_allclose(expected_best_of(scores, correct, 20), correct[np.arange(9), scores.argmax(1)])
    np.testing.assert_allclose(expected_best_of(correct, correct, 20), correct.any(1))
    np.testing.assert_allclose(expected_best_of(np.zeros((9, 20)), correct, 7), correct.mean(1))


@pytest.mark.parametrize("size", [20, 1100, 5000])
def test_large_pools_are_as_exact_as_small_ones(size: int) -> None:
    scores, ties = np.arange(size)[None], np.full((1, size), 7)
    right = (np.arange(size) % 3 == 0)[None]
    for n in (1, 2, 7, size // 2, size):
        subsets, ways = comb(size, n), [comb(below, n - 1) for below in range(size)] if size < 2000 else []
        if ways:
            expected = sum((way for way, one in zip(ways, right[0], strict=True) if one), 0) / subsets
            assert expected_best_of(scores, right, n)[0] == pytest.approx(expected, abs=1e-12)
        assert expected_best_of(scores, np.ones((1, size)), n)[0] == pytest.approx(1, abs=1e-12)
        assert expected_best_of(ties, right, n)[0] == pytest.approx(right.mean(), abs=1e-12)


@pytest.mark.parametrize("n", [0, 21, 2.0, "2", None, True, 10**12])
def test_n_outside_the_pool(n: Any) -> None:
    with pytest.raises(ValueError, match="from 1 to 20"):
        expected_best_of(np.zeros((1, 20)), np.zeros((1, 20)), n)


def test_best_of_n_is_a_share_whatever_rounding_does() -> None:
    ten = np.arange(10.0)[None]
    assert expected_best_of(ten, np.ones((1, 10)), 4)[0] == 1.0  # the ten weights of n = 4 add up to 1 + 2e-16
    assert expected_best_of(ten, np.ones((1, 10)), np.int64(4))[0] == 1.0  # type: ignore[arg-type]
    assert expected_best_of(ten, np.full((1, 10), 0.25), 4)[0] == pytest.approx(0.25)  # shares may be mixed as well


@pytest.mark.parametrize(
    ("scores", "correct", "says"),
    [
        ([[0, np.nan]], [[0, 1]], "1 of 2 are NaN"),
        ([[0, np.inf]], [[0, 1]], "1 of 2 are NaN or infinite"),
        ([[0, 1]], [[0, np.nan]], "correct must be finite"),
        ([[0, 1]], [[0, 2]], "from 0 to 1"),
        ([[0, 1]], [[-1, 1]], "from 0 to 1"),
        ([["a", "b"]], [[0, 1]], "scores must be numbers"),
        ([[0, 1], [0]], [[0, 1]], "scores must be an array"),
        (None, [[0, 1]], "scores must be numbers"),
        ([0, 1], [0, 1], "must both be"),
        ([[0, 1]], [[0], [1]], "must both be"),
        (np.zeros((1, 0)), np.zeros((1, 0)), "must both be"),
    ],
)
def test_scores_and_verdicts_that_are_none(scores: Any, correct: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        expected_best_of(scores, correct, 1)


def test_test_set_has_four_pools_of_rare_tags() -> None:
    prompts = pool_prompts("test")
    assert len(prompts) == 8 * 4 + 40 + 24 * 4 + 40 + 60 + 60
    assert sum(prompt == prompts[0] for prompt in prompts) == 4


def test_pool_round_trip_and_damage(tmp_path: Path) -> None:
    pool, path = a_pool(), tmp_path / "pool.safetensors"
    save_pool(pool, path)
    again = load_pool(path)
    assert again.prompts == pool.prompts and torch.equal(again.tokens, pool.tokens)
    np.testing.assert_array_equal(again.scores["zs-orm"], pool.scores["zs-orm"])
    assert again.scores["zs-orm"].dtype == np.float32 and again.tokens.dtype == torch.int16
    np.testing.assert_array_equal(again.correct["learned"], pool.correct["learned"])
    save_pool(Pool((), pool.tokens[:0], {}, {"learned": np.zeros((0, 4), dtype=bool)}), path)
    assert load_pool(path).prompts == () and load_pool(path).tokens.shape == (0, 4, 64)
    write_arrays(path, {"codes": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a pool"):
        load_pool(path)
    save_file({"codes": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"pool\.safetensors is no file of the course"):
        load_pool(path)
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors is missing: make it again"):
        load_pool(tmp_path / "other.safetensors")


def test_every_damage_is_named_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    save_pool(a_pool(), path)
    whole = path.read_bytes()
    damaged = {"empty": b"", "cut": whole[:-1], "cut in its header": whole[:100], "another": b"not a number" * 20}
    for at in range(0, len(whole), 7):
        damaged[f"byte {at} flipped"] = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for how, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"pool\.safetensors (is damaged|is no file).*"):
            print(how, load_pool(path))
    path.write_bytes(whole)
    load_pool(path)


def test_equal_pools_are_equal_bytes(tmp_path: Path) -> None:
    written = set()
    for _ in range(8):  # safetensors orders several entries of metadata anew each time
        save_pool(a_pool(), tmp_path / "pool")
        written.add((tmp_path / "pool").read_bytes())
    for about in ({"a": 1, "b": [2]}, {"b": [2], "a": 1}):
        write_arrays(tmp_path / "arrays", {"x": torch.arange(3)}, about)
        written.add((tmp_path / "arrays").read_bytes())
    assert len(written) == 2


def test_what_is_said_of_arrays_is_what_will_be_read(tmp_path: Path) -> None:
    write_arrays(tmp_path / "arrays", {"x": torch.arange(3)}, {7: (1, 2)})  # type: ignore[dict-item]
    assert read_arrays(tmp_path / "arrays")[1] == {"7": [1, 2]}


def test_full_scale_prompts_come_back(tmp_path: Path) -> None:
    prompts = (*full_prompts(), *pool_prompts("dev"))
    path = tmp_path / "pool.safetensors"
    save_pool(Pool(prompts, torch.zeros(len(prompts), 1, 1, dtype=torch.int16), {}, {}), path)
    assert load_pool(path).prompts == prompts


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_files_are_whole_and_would_be_written_so_again(path: Path, tmp_path: Path) -> None:
    arrays, about = read_arrays(path)
    write_arrays(tmp_path / "again", arrays, about)
    if "prompts" in about:
        pool = load_pool(path)
        assert [prompt.text for prompt in pool.prompts] == about["prompts"]
        save_pool(pool, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_lite_prompts_are_kept_as_their_texts_alone(tmp_path: Path) -> None:
    save_pool(a_pool(), tmp_path / "pool")
    assert read_arrays(tmp_path / "pool")[1]["prompts"] == [prompt.text for prompt in a_pool().prompts]


def test_a_pool_may_be_made_of_lists_and_torch_alike(tmp_path: Path) -> None:
    pool, judged = a_pool(), {"learned": torch.from_numpy(a_pool().correct["learned"])}
    other = replace(pool, prompts=list(pool.prompts), scores={"zs-orm": pool.scores["zs-orm"].tolist()}, correct=judged)  # type: ignore[arg-type]
    save_pool(pool, tmp_path / "one")
    save_pool(replace(other, tokens=pool.tokens.long()), str(tmp_path / "other"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert load_pool(str(tmp_path / "one")).prompts == pool.prompts


def test_arrays_may_lie_backwards_in_memory(tmp_path: Path) -> None:
    pool = a_pool()
    scores, right = pool.scores["zs-orm"][:, ::-1], pool.correct["learned"][:, ::-1]
    save_pool(replace(pool, scores={"zs-orm": scores}, correct={"learned": right}), tmp_path / "pool")
    back = load_pool(tmp_path / "pool")
    assert (back.scores["zs-orm"] == scores).all() and (back.correct["learned"] == right).all()


ONES = np.ones((3, 4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": pool_prompts("test")}, r"tokens must have shape \(328, N, L\), got \(3, 4, 64\)"),
        ({"prompts": pool_prompts("dev")[:2]}, r"shape \(2, N, L\)"),
        ({"prompts": ["a photo of a cat"] * 3}, "a Prompt"),
        ({"prompts": None}, "list of Prompts"),
        ({"tokens": a_pool().tokens[:, :, 0]}, "tokens must have shape"),
        ({"tokens": a_pool().tokens[:2]}, "tokens must have shape"),
        ({"tokens": a_pool().tokens.float()}, "whole numbers"),
        ({"tokens": a_pool().tokens.numpy()}, "int16 tensor"),
        ({"scores": {"zs-orm": ONES[:2]}}, "scores of 'zs-orm' must have shape"),
        ({"scores": {"zs-orm": ONES[:, :3]}}, "scores of 'zs-orm' must have shape"),
        ({"scores": {"zs-orm": ONES * np.nan}}, "12 of 12 are NaN"),
        ({"scores": {"zs-orm": ONES * np.inf}}, "NaN or infinite"),
        ({"scores": {"zs-orm": ONES.astype(str)}}, "must be numbers"),
        ({"scores": ONES}, "dict of arrays"),
        ({"correct": {"learned": ONES[:1] > 0}}, "correct of 'learned' must have shape"),
        ({"correct": {"learned": ONES * 0.5}}, "each yes or no"),
        ({"correct": {"learned": ONES[..., None, None]}}, "correct of 'learned' must have shape"),
        ({"correct": {"rollouts": np.ones((3, 2, 5))}}, "correct of 'rollouts' must have shape"),
        ({"correct": None}, "dict of arrays"),
    ],
)
def test_parts_of_a_pool_must_fit_each_other(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(a_pool(), **changes)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: save_pool(None, path), "a Pool"),
        (lambda path: save_pool(a_pool(), 3), "a file's path"),
        (lambda path: save_pool(replace(a_pool(), scores={"zs-orm": ONES * 1e6}), path), "from -65504 to 65504"),
        (lambda path: save_pool(replace(a_pool(), tokens=a_pool().tokens.long() + 2**15), path), "be below 32,768"),
        (lambda path: save_pool(replace(a_pool(), tokens=a_pool().tokens[..., :0]), path), "no tokens at all"),
        (lambda path: load_pool(None), "a file's path"),
        (lambda path: pack_tokens(torch.tensor([[0, 4]]), 2), "run from 0 to 3; these run from 0 to 4"),
        (lambda path: pack_tokens(torch.tensor([[-1, 3]]), 2), "these run from -1 to 3"),
        (lambda path: pack_tokens(torch.tensor([[0, 1]]), 0), "bits"),
        (lambda path: unpack_tokens(torch.zeros(2, 3, dtype=torch.uint8), 10, 64), "64 tokens of 10 bits"),
        (lambda path: unpack_tokens(torch.zeros(2, 4, dtype=torch.uint8), 10, 2), "2 tokens of 10 bits"),
        (lambda path: unpack_tokens(torch.zeros(2, 3), 10, 2), "torch.float32"),
        (lambda path: unpack_tokens(torch.zeros(2, 3, dtype=torch.uint8), 99, 2), "bits"),
        (lambda path: pool_prompts("validation"), "'dev'"),
        *((lambda path, n=n: stratified_subset(pool_prompts("dev"), n), "one_in") for n in (0, -1, 1.5, None, "2")),
        *((lambda path, n=n: stratified_subset(pool_prompts("dev"), 1, n), "most") for n in (0, -1, 1.5, "2")),
        (lambda path: stratified_subset("dev"), "list of Prompts"),
        (lambda path: stratified_subset(["a photo of a cat"]), "a Prompt"),
        (lambda path: pools.in_shards([1], numbered, None, ""), "folder's path"),
        (lambda path: pools.in_shards([1], None, path, ""), "a function"),
        (lambda path: pools.in_shards(1, numbered, path, ""), "list of shards"),
        (lambda path: write_arrays(path, {"a": 1}), "a must be a tensor"),
        (lambda path: pack_tokens(torch.tensor([[1.0]]), 2), "whole numbers"),
        (lambda path: unpack_tokens(None, 2, 2), "uint8 tensor"),
    ],
)
def test_what_cannot_be_kept_gets_one_sentence(make: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        make(tmp_path / "pool")
    assert not list(tmp_path.iterdir())


def test_a_subset_keeps_two_prompts_of_each_tag_where_there_are_two() -> None:
    prompts = pool_prompts("test")
    for one_in, most in ((1, None), (3, None), (30, None), (10**6, None), (1, 1), (3, 2), (1, 10**6)):
        chosen = stratified_subset(prompts, one_in, most)
        for tag in TAGS:
            all_of_tag = list(dict.fromkeys(prompt for prompt in prompts if prompt.tag == tag))
            of_tag = list(dict.fromkeys(prompt for prompt in chosen if prompt.tag == tag))
            number = max(2, -(-len(all_of_tag) // one_in))
            assert len(of_tag) == min(number, most or number) and of_tag[0] == all_of_tag[0]
            assert [p for p in chosen if p.tag == tag] == [p for p in prompts if p in of_tag]
    assert stratified_subset(prompts[:1], 30) == prompts[:1] and stratified_subset([], 2) == ()
    three = list(dict.fromkeys(prompts))[:3]
    assert stratified_subset(three, 30) == (three[0], three[2])


def test_two_processes_may_write_the_same_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = load_pool(data_path("pools/ft-prm.safetensors"))
    path = tmp_path / "pool.safetensors"

    def write_while_another_does(*given: object, **named: object) -> None:
        save_file(*given, **named)
        monkeypatch.setattr(pools, "save_file", save_file)
        save_pool(pool, path)

    monkeypatch.setattr(pools, "save_file", write_while_another_does)
    save_pool(pool, path)
    assert torch.equal(load_pool(path).tokens, pool.tokens) and list(tmp_path.iterdir()) == [path]


def test_unfinished_images_are_refused(tmp_path: Path) -> None:
    tokens = torch.zeros(1, 2, 4, dtype=torch.int16)
    tokens[0, 1, 3] = -1
    with pytest.raises(ValueError, match="positions without a token"):
        save_pool(Pool(pool_prompts("dev")[:1], tokens, {}, {}), tmp_path / "pool.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at_once", [4, 4096])
@pytest.mark.parametrize(("bits", "length"), [(1, 9), (10, 64), (13, 5)])
def test_tokens_are_packed_bit_by_bit(bits: int, length: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "PACKED_AT_ONCE", at_once)
    tokens = torch.randint(0, 2**bits, (3, 2, length), generator=torch.Generator().manual_seed(bits)).to(torch.int16)
    packed = pack_tokens(tokens, bits)
    assert packed.shape == (3, 2, -(-length * bits // 8))
    text = "".join(format(code, f"0{bits}b") for code in tokens[0, 0].tolist())
    assert packed[0, 0, 0] == int(text[:8].ljust(8, "0"), 2)
    assert torch.equal(unpack_tokens(packed, bits, length), tokens)


def test_a_lonely_process_says_whom_it_waits_for_and_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(pools, "SAID_AFTER", 0.02)
    monkeypatch.setattr(pools, "GIVEN_UP_AFTER", 0.1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TimeoutError, match=r"RANK=0 and WORLD_SIZE=2.*unset RANK"):
        pools.in_shards(range(4), numbered, tmp_path, "shards")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "waits for process 1" in said and str(tmp_path) in said
    assert "shard-001.safetensors" in said and "2 files" in said
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    parts = pools.in_shards(range(4), lambda shard: numbered(shard + 10), tmp_path, "shards")
    assert [int(part["shard"]) for part in parts] == [0, 11, 2, 13]  # what was made before is kept


def test_a_slow_process_is_waited_for_as_long_as_it_makes_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    clock = [0.0]

    def half_an_hour(_: float) -> None:
        clock[0] += pools.GIVEN_UP_AFTER / 2 + 1
        write_arrays(tmp_path / f"shard-{2 * round(clock[0] / 1801 - 1):03d}.safetensors", {"shard": torch.tensor([7])})

    monkeypatch.setattr(pools.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pools.time, "sleep", half_an_hour)
    assert len(pools.in_shards(range(7), numbered, tmp_path, "shards")) == 7
    assert clock[0] > pools.GIVEN_UP_AFTER


@pytest.mark.parametrize(("rank", "processes"), [("one", "2"), ("0", "two"), ("", "1"), ("2", "2"), ("-1", "2")])
def test_ranks_that_are_none_are_explained(rank: str, processes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(ValueError, match=f"RANK is {rank} of WORLD_SIZE {processes}: .*unset both"):
        pools.rank_and_processes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_shard_is_made_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pools.in_shards(range(3), numbered, tmp_path, "shards")
    path = tmp_path / "shard-001.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-3], "flipped": whole[:-1] + bytes([whole[-1] ^ 4]), "empty": b""}[damage])
    made = []
    parts = pools.in_shards(range(3), lambda shard: made.append(shard) or numbered(shard), tmp_path, "shards")
    assert made == [1] and [int(part["shard"]) for part in parts] == [0, 1, 2] and path.read_bytes() == whole
    assert "shard-001.safetensors is damaged: it is made again" in capsys.readouterr().out
