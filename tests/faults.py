"""Kill the toy build at random moments, and damage every shipped file: `make test-faults KILLS=60`, in an hour or two.

One build runs undisturbed; others are killed (the whole process group, by SIGKILL) again and again, each time started
anew, and at last left to end: every file must have the same bytes. Then every shipped file is cut in half, has a bit
flipped, or is emptied: what reads it must say so in one sentence that names it and its cure. Exit status 1 otherwise.
"""

import argparse
import filecmp
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from cotgen_lite.experiments.findings import findings
from cotgen_lite.experiments.measure import load_steps_of_pool
from cotgen_lite.experiments.results import results
from cotgen_lite.generate.autoregressive import load_autoregressive
from cotgen_lite.generate.pipeline import load_generator
from cotgen_lite.hub import data_path, data_root, read_checksums
from cotgen_lite.lite.judges import load_judge
from cotgen_lite.pools import load_pool
from cotgen_lite.verify.pool_search import load_opinions
from cotgen_lite.verify.verifier import load_verifier

ROOT = Path(__file__).resolve().parent.parent
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "empty": lambda _: b"",
}


def start(out: Path, log: Path) -> subprocess.Popen:
    """A toy build into `out`, in a process group of its own, that adds what it says to a file."""
    command = [sys.executable, "-m", "cotgen_lite.build", "--quick", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as said:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)


def finish(out: Path, log: Path) -> float:
    """Let a build come to its end; returns its seconds, and exits if it fails."""
    began = time.monotonic()
    if start(out, log).wait():
        sys.exit(f"the build in {out} failed: see {log}")
    return time.monotonic() - began


def killed(out: Path, log: Path, kills: int, seconds: float, rng: random.Random) -> int:
    """Kill a build so often, each time after up to twice its share of the time; returns how often it was done.

    It is done less often if the build was quicker than the kills, which is then at its end.
    """
    for done in range(kills):
        process = start(out, log)
        try:
            process.wait(rng.uniform(0, 2 * seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            continue
        if process.returncode:
            sys.exit(f"the build in {out}, killed {done} times, failed: see {log}")
        return done
    return kills


def differing(one: Path, other: Path) -> list[str]:
    """Files that are in one folder only, or not the same in both, byte by byte."""
    names = {path.relative_to(root).as_posix() for root in (one, other) for path in root.rglob("*") if path.is_file()}
    _, differ, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(differ + missing)


def test_interruptions(folder: Path, kills: int, builds: int, seed: int) -> bool:
    """Whether all builds that were killed are as the one that was not; prints what differs."""
    rng, left, number, fine = random.Random(seed), kills, 0, True
    whole = folder / "whole"
    seconds = finish(whole, folder / "whole.log")
    idle = finish(whole, folder / "whole.log")  # nothing is left to do: what a start takes
    total = len(read_checksums(whole)) + 1
    print(f"undisturbed: {seconds:.0f} s, {total} files, a start takes {idle:.0f} s", flush=True)
    while left or number < builds:
        number += 1
        share = -(-left // max(1, builds - number + 1))
        out, log = folder / f"killed-{number}", folder / f"killed-{number}.log"
        done = killed(out, log, share, seconds / max(1, share) + idle, rng)
        finish(out, log)
        wrong = differing(whole, out)
        print(f"build {number}: killed {done} times, {len(wrong)} of {total} files differ {wrong}", flush=True)
        left, fine = left - done, fine and not wrong
    return fine


def reader(name: str) -> Callable[[], object]:
    """The public call that reads a shipped file."""
    folder, _, rest = name.partition("/")
    model, path = rest.split("/")[0], Path(os.environ["COTGEN_DATA"]) / name
    if folder == "models" and model == "judge":
        return load_judge
    if folder == "models" and (path.parent / "processor_config.json").exists():
        return lambda: load_verifier(model)
    if folder == "models" and model.startswith("sequential"):
        return lambda: load_autoregressive(model)
    if folder == "models":
        return load_generator if model in ("words", "tokenizer") else lambda: load_generator(model)
    if name.endswith("_steps.safetensors"):
        return lambda: load_steps_of_pool(path)
    if name.endswith("_parm.safetensors") and folder == "pools":
        return lambda: load_opinions(path) if "steps" in name else load_pool(path)
    if name.endswith(".safetensors"):
        return lambda: load_pool(path)
    others: dict[str, Callable[[], object]] = {
        "results/scores.jsonl": results,
        "results/times.json": results,
        "results/findings.json": lambda: findings(path.parent.parent),
        "sha256.json": load_judge,
    }
    return others.get(name, lambda: data_path(name))


@patch.dict(os.environ)  # builds come after it, and are to read the data that are whole
def test_damages(folder: Path) -> bool:
    """Whether every damage to every shipped file is told in one sentence; prints how often, by kind of file."""
    root, tried, told = folder / "damaged", Counter[str](), Counter[str]()
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(data_root(), root)
    os.environ["COTGEN_DATA"] = str(root)
    for name in [*read_checksums(root), "sha256.json"]:
        kind = (
            re.sub(r"/.*/", "/…/", name) if name.count("/") > 1 else str(Path(name).with_name(f"*{Path(name).suffix}"))
        )
        path = root / name
        whole, read = path.read_bytes(), reader(name)
        for damage, change in DAMAGES.items():
            path.write_bytes(change(whole))
            tried[kind] += 1
            try:
                read()
                said = "nothing"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            cured = "make it again" in said or "restore it" in said
            if said.startswith("ValueError") and str(path) in said and cured and "\n" not in said:
                told[kind] += 1
            else:
                print(f"{name}, {damage}: {said}")
        path.write_bytes(whole)
    for kind, number in tried.items():
        print(f"{kind}: {told[kind]} of {number} damages named with their cure")
    return tried == told


def main() -> None:
    """Do both, and say whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="in all")
    parser.add_argument("--builds", type=int, default=3, help="over which they are spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/faults", help="in which all is built; kept")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in [*options.folder.glob("killed-*"), *options.folder.glob("whole*")]:  # of a tree that may have changed
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    named = test_damages(options.folder)
    equal = test_interruptions(options.folder, options.kills, options.builds, options.seed)
    print("all is well" if named and equal else "not all is well: see above")
    sys.exit(not (named and equal))


if __name__ == "__main__":
    main()
