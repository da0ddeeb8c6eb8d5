"""`python -m cotgen_lite.build`: makes everything under `data/` from nothing, one step after the other.

`--all` does so in a folder of its own, build/all, in many hours; `--quick` at toy size, in minutes; `--out` in a folder
that you name; without any of them, what is missing in the course's own data is made. `--small --out FOLDER` makes, in
half an hour, what draws and judges the small world of your own that FOLDER holds (notebooks/YOUR_WORLD.md).
A step whose files are all there, with the checksums that they had when it was done, is skipped; an interrupted one goes
on where it was. Step names, with `--out`, make these steps again. In their place, `table` prints what was found, and
`checksums` lists the folder's files with their checksums anew, as they are, with the seconds that the build measured.
What a step does stands in its function; how much it does, in `configs.py`.
"""

import argparse
import errno
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cotgen_lite.experiments.calibrate import calibrate, try_verifier
from cotgen_lite.experiments.configs import LITE, QUICK, SMALL, Config
from cotgen_lite.experiments.dpo_studies import measure_estimators, measure_far, measure_spread
from cotgen_lite.experiments.measure import measure_all
from cotgen_lite.experiments.measure_alignment import measure_alignment
from cotgen_lite.experiments.measure_parm import measure_guided, measure_parm
from cotgen_lite.experiments.measure_reflection import measure_reflection
from cotgen_lite.experiments.measure_sequential import measure_sequential
from cotgen_lite.experiments.measure_verifiers import measure_orm, measure_prm
from cotgen_lite.experiments.pilots import try_dpo, try_orm
from cotgen_lite.experiments.pretrain import (
    build_generator,
    build_judge,
    build_prompts,
    build_sequential,
    build_tokenizer,
    build_verifier,
)
from cotgen_lite.experiments.report import print_table, write_readme
from cotgen_lite.experiments.results import TIMES, merge_seconds, note_seconds, read_seconds
from cotgen_lite.experiments.train_generators import (
    build_dpo,
    build_dpo_images,
    build_it_dpo,
    build_self_correct,
    build_sequential_dpo,
)
from cotgen_lite.experiments.train_verifiers import (
    build_images,
    build_orm,
    build_parm,
    build_parm_plus,
    build_paths,
    build_prm,
    build_rollouts,
)
from cotgen_lite.hub import (
    CHECKSUMS,
    HALF_WRITTEN,
    SHIPPED,
    SIZES,
    data_root,
    disk_is_full,
    file_sha256,
    first_line,
    is_shipped,
    missing_or_damaged,
    print_anything,
    read_checksums,
    restore_or_list,
    size_mark,
    size_of,
    write_checksums,
)
from cotgen_lite.lite.judges import look_alikes
from cotgen_lite.lite.twins import SKILLS, make_twins
from cotgen_lite.prompts import lite_prompts


@dataclass(frozen=True)
class Step:
    """A step of the build: the names of those that it needs, the function that makes it, and what that writes.

    The function is given `out`, a folder to resume from, the amounts. makes: files and folders under `out` that are the
    step's own; changes: files of earlier steps to which it adds.
    """

    name: str
    needs: str
    run: Callable[[Path, Path, Config], None]
    makes: str = "models/{name}"
    changes: str = ""

    @property
    def summary(self) -> str:
        """The first line of what its function says of itself."""
        return (getattr(self.run, "func", self.run).__doc__ or "").splitlines()[0]

    @property
    def places(self) -> list[str]:
        """Files and folders under `out` that are its own."""
        return self.makes.format(name=self.name).split()

    def owns(self, file: str) -> bool:
        """Whether a file, named from `out`, is the step's own."""
        return any(file == place or file.startswith(f"{place}/") for place in self.places)


SCORES = "results/scores.jsonl results/findings.json"  # each step that measures adds to them


# In this order. When a step is made again, all that hang on it are to be made again too.
STEPS = (
    Step("prompts", "", build_prompts, "models/words prompts/dev.jsonl prompts/test.jsonl"),
    Step("tokenizer", "", build_tokenizer),
    Step("judge", "tokenizer", build_judge),
    Step("generator", "prompts tokenizer", build_generator),
    Step("verifier", "prompts", build_verifier),
    Step("calibration", "judge generator", calibrate, "pools/dev.safetensors results/calibration.json"),
    Step("dpo_pilot", "calibration", try_dpo, "pools/pilot.safetensors results/dpo_pilot.json"),
    Step("verifier_dev", "calibration verifier", try_verifier, "results/verifier_dev.json"),
    Step("orm_pilot", "dpo_pilot verifier", try_orm, "results/orm_pilot.json"),
    Step(
        "results",
        "judge generator verifier",
        measure_all,
        "pools/baseline.safetensors pools/baseline_steps.safetensors figures/overview.png results/dev.json "
        f"results/judges.json results/verifier.json results/test_set.json {SCORES}",
    ),
    Step("images", "generator", build_images, "training/images"),
    Step("rollouts", "generator", build_rollouts, "training/rollouts"),
    Step("orm", "images verifier", build_orm),
    Step("orm_results", "results orm", measure_orm, "results/orm_auc.json", f"{SCORES} pools/baseline.safetensors"),
    Step("prm", "rollouts verifier", build_prm),
    Step(
        "prm_results",
        "orm_results prm",
        measure_prm,
        "pools/ft-prm.safetensors results/steps.json results/labels.json",
        SCORES,
    ),
    Step("paths", "generator", build_paths, "training/paths"),
    Step("parm", "paths images verifier", build_parm),
    Step("parm-plus-plus", "paths images verifier", build_parm_plus),
    Step("dpo", "images", build_dpo, "models/dpo results/dpo_rates.json"),
    Step("dpo_images", "dpo", build_dpo_images, "training/dpo_images"),
    Step("it-dpo", "dpo_images", build_it_dpo),
    Step("it-dpo-guided-orm", "dpo_images orm", partial(build_it_dpo, guide="orm")),
    Step("it-dpo-guided-parm", "dpo_images parm", partial(build_it_dpo, guide="parm")),
    Step(
        "dpo_results",
        "prm_results it-dpo it-dpo-guided-orm",
        measure_alignment,
        "pools/dpo.safetensors pools/it-dpo.safetensors pools/it-dpo-guided-orm.safetensors results/alignment.json",
        SCORES,
    ),
    Step(
        "parm_results",
        "dpo_results parm",
        measure_parm,
        "pools/baseline_steps_parm.safetensors results/parm.json",
        f"{SCORES} pools/baseline.safetensors pools/dpo.safetensors pools/it-dpo.safetensors",
    ),
    Step(
        "parm_guided_results",
        "parm_results it-dpo-guided-parm",
        measure_guided,
        "pools/it-dpo-guided-parm.safetensors results/parm_guided.json",
        SCORES,
    ),
    Step("self-correct", "images", build_self_correct),
    Step(
        "reflection_results",
        "parm_results parm-plus-plus self-correct",
        measure_reflection,
        "pools/self-correct.safetensors pools/reflections.jsonl results/reflection.json",
        SCORES,
    ),
    Step("sequential", "prompts tokenizer", build_sequential),
    Step("sequential-dpo", "sequential", build_sequential_dpo),
    Step(
        "sequential_results",
        "results orm parm sequential-dpo",
        measure_sequential,
        "pools/sequential.safetensors pools/sequential-dpo.safetensors results/sequential.json",
        SCORES,
    ),
    Step("dpo_estimators", "dpo", measure_estimators, "results/dpo_estimators.json"),
    Step("dpo_far", "judge it-dpo-guided-orm", measure_far, "results/best_of_many.json"),
    Step("dpo_spread", "dpo_results", measure_spread, "results/dpo_spread.json", SCORES),
)
OTHER_DEEDS = ("table", "checksums")  # what is named in place of steps


def hanging_on(names: Sequence[str]) -> list[Step]:
    """The steps that are made from any of these, directly or not."""
    made = set(names)
    for step in STEPS:
        if made.intersection(step.needs.split()):
            made.add(step.name)
    return [step for step in STEPS if step.name in made and step.name not in names]


def build(names: list[str], out: Path, work: Path, config: Config, own: bool = False) -> int:
    """Run the steps that are not built yet, and say how many; a step named on its own is made again.

    own: whether this is the course's own data, of which nothing that is listed is made again unasked. CannotBuild if it
    is missing or damaged there, if files have no list, if what a named step needs is not there, or if another build is
    at work in `out` or `work`.
    """
    with held(out), held(work):
        _clean_up(out, work)
        listed = _listed_files(out, config.flag)
        wrong = missing_or_damaged(out) if listed else {}
        if own and wrong:
            damaged = ", ".join(f"{file} is {what}" for file, what in wrong.items())
            raise CannotBuild(f"In {out}, {damaged}: {restore_or_list(out)}. Nothing was changed.")
        made, wanted = 0, names or config.steps
        for step in STEPS:
            if wanted and step.name not in wanted:
                continue
            if not names and _is_done(step, listed, wrong):
                print(f"{step.name}: there already")
                continue
            lacking = [one for one in STEPS if one.name in step.needs.split() and not _is_done(one, listed, wrong)]
            if lacking:
                raise CannotBuild(f"{step.name} needs {lacking[0].name}, which is not in {out}: make that before.")
            for file in filter(step.owns, wrong):
                print(f"{step.name}: {file} is {wrong[file]}")
            listed = _make(step, out, work, config, listed, again=step.name in names)
            wrong = {file: what for file, what in wrong.items() if file in listed and not step.owns(file)}
            made += 1
        return made


def _make(step: Step, out: Path, work: Path, config: Config, listed: Mapping[str, str], again: bool) -> dict[str, str]:
    """Run a step, and list what it made; what was made from its old files goes. again: from nothing, shards too."""
    print(f"{step.name}: {step.summary}", flush=True)
    later = hanging_on([step.name])
    for one in (step, *later):  # what was made, or half made, from the old one is worth nothing now
        for place in one.places:
            _remove(out / place)
        if again or one is not step:
            _remove(work / one.name)
    kept = {file: sha for file, sha in listed.items() if not any(one.owns(file) for one in (step, *later))}
    _set_aside(step, out, kept)
    start = time.monotonic()
    step.run(out, work / step.name, config)
    written = _files_of(out, [*step.places, *step.changes.split()])
    if lost := [place for place in step.places if not any(f"{file}/".startswith(f"{place}/") for file in written)]:
        raise RuntimeError(f"{step.name} did not write {lost[0]}.")
    listed = write_checksums(out, kept | {file: file_sha256(out / file) for file in written})
    _remove(out / BEFORE)
    seconds = time.monotonic() - start
    note_seconds(work / TIMES, "build", {step.name: round(seconds)})
    print(f"{step.name}: done in {seconds / 60:.1f} minutes", flush=True)
    return listed


def _is_done(step: Step, listed: Mapping[str, str], wrong: Mapping[str, str]) -> bool:
    """Whether all of a step's own files are there, as they were when it was done."""
    there = [file for file in listed if file not in wrong]
    places = all(any(f"{file}/".startswith(f"{place}/") for file in there) for place in step.places)
    return places and not any(map(step.owns, wrong))


def _files_of(out: Path, places: Sequence[str]) -> list[str]:
    """All files of some places, named from `out`."""
    paths = [path for place in places for path in (out / place, *(out / place).rglob("*")) if path.is_file()]
    return [path.relative_to(out).as_posix() for path in paths]


def _listed_files(out: Path, size: str) -> dict[str, str]:
    """The list of a folder that is built into, which is started in a new one. size: the flag, if any, of its size.

    A world that lies there is listed too: its models are worth nothing in another.
    """
    if (out / CHECKSUMS).exists():
        if (built := size_of(out)) != size:
            how = "with" if built else "without"
            raise CannotBuild(
                f"{out} was built {how} {built or size}, and files of different sizes do not mix: build into another "
                f"folder, or here {how} it. Nothing was changed."
            )
        return read_checksums(out)
    if there := _files_of(out, [place for step in STEPS for place in step.places]):
        raise CannotBuild(
            f"{out} has {there[0]}, but no list of what is whole ({CHECKSUMS}): build into another folder, or, if all "
            f"is well, list what is there with `python -m cotgen_lite.build checksums --out {out}`."
        )
    for other in SIZES:
        size_mark(out, other).unlink(missing_ok=True)
    if size:
        size_mark(out, size).touch()
    return write_checksums(out, {file: file_sha256(out / file) for file in WORLD if (out / file).is_file()})


WORLD = ("world/world.json", "world/objects.ttf")  # what a world is, in its data folder


def use_own_world(out: Path) -> None:
    """Make the world in a folder the world of this process.

    CannotBuild if there is none that models can be made of, or if the models there are of another.
    """
    if lacking := [file for file in WORLD if not (out / file).is_file()]:
        raise CannotBuild(f"{out / lacking[0]} is missing: put a world there first, as notebooks/YOUR_WORLD.md shows.")
    listed = read_checksums(out) if (out / CHECKSUMS).exists() else {}
    if changed := [file for file in WORLD if file in listed and file_sha256(out / file) != listed[file]]:
        raise CannotBuild(
            f"{out / changed[0]} is not what the models in {out} were made for: copy the world into a new folder and "
            "build there, or put the old file back. Nothing was changed."
        )
    os.environ["COTGEN_DATA"] = str(out)
    try:
        lite_prompts("train")
        for skill in SKILLS:
            make_twins(lite_prompts("dev"), skill, 1, seed=0)
        alike, *pair = look_alikes()[0]
    except (ValueError, OSError) as error:
        raise CannotBuild(first_line(error)) from error
    if alike > 0.8:
        raise CannotBuild(
            f"The icons of {' and '.join(pair)} are too much alike ({alike:.2f}, and .8 is the most) for a judge to "
            "tell them apart: give one of them another glyph in world.json, or leave it out."
        )


class CannotBuild(ValueError):
    """Why nothing can be built, in one sentence."""


BEFORE = ".before"  # under `out`: the files that a step under way changes, and the list, as they were before it


def _set_aside(step: Step, out: Path, listed: Mapping[str, str]) -> None:
    """Keep what a step will change, so that it begins from the same when it is started again; and list it no more."""
    changes = [file for file in step.changes.split() if file in listed]
    write_checksums(out, listed)
    half = out / f"{BEFORE}.part"
    for file in (CHECKSUMS, *changes):
        (half / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(out / file, half / file)
    half.rename(out / BEFORE)
    write_checksums(out, {file: sha for file, sha in listed.items() if file not in changes})


def _clean_up(out: Path, work: Path) -> None:
    """Undo what a build that was killed left half done: files half written, and changes of a step that did not end."""
    for folder in (out, work):
        for part in sorted(path for path in folder.rglob("*") if HALF_WRITTEN.fullmatch(path.name)):
            if part.is_file() or part.suffix == ".part":  # safetensors leaves files only
                _remove(part)
    _remove(out / f"{BEFORE}.part")
    before = out / BEFORE
    if before.exists():
        for file in sorted(path for path in before.rglob("*") if path.is_file()):
            kept = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
            shutil.copy2(file, kept)
            kept.replace(out / file.relative_to(before))
        _remove(before)


def _remove(path: Path) -> None:
    """Remove a file or a folder if it is there; a folder under another name, so that it is never half there."""
    if path.is_dir():
        gone = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def list_as_it_is(out: Path, work: Path) -> int:
    """Take over the seconds that a build noted in `work`, list all files with their checksums, and say how many.

    CannotBuild if another build is at work there, or one was killed in the middle of a step.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"{out} is no folder: name one that was built with --out.")
    with held(out), held(work) if work.is_dir() else nullcontext():
        if (out / BEFORE).exists():
            raise CannotBuild(
                f"{out} holds a step that was interrupted: finish the build first, by the same command without "
                "`checksums`. Nothing was changed."
            )
        if seconds := read_seconds(work / TIMES):
            merge_seconds(out / "results" / TIMES, seconds)
        return len(write_checksums(out))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder alone: two builds at once would destroy each other's. The system lets go of it when a process dies.

    CannotBuild says which process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("a+", encoding="utf-8") as lock:
        try:
            if os.name == "nt":
                import msvcrt

                lock.seek(2**20)  # far behind what is read below, which the lock would forbid
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            else:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended = not (path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            ended = True
        if ended:  # held by another, who may be about to remove it
            lock.seek(0)
            who = lock.read().strip() or "it starts or ends this moment"
            raise CannotBuild(
                f"Another build is at work in {folder} ({who}): wait for it, end it, or build into another folder."
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows removes no open file
                path.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m cotgen_lite.build", description=(__doc__ or "").strip())
    names = [*(step.name for step in STEPS), *OTHER_DEEDS]
    parser.add_argument("steps", nargs="*", metavar="step", help=f"only these, made again: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="toy size, into build/quick unless --out says otherwise")
    parser.add_argument("--small", action="store_true", help="what draws and judges the small world that --out holds")
    parser.add_argument("--all", action="store_true", help="everything from nothing, into build/all")
    parser.add_argument("--out", type=Path, help="folder to build into; by default the course's own data")
    options = parser.parse_args(arguments)
    if options.small and (options.quick or not options.out or options.out.resolve().is_relative_to(SHIPPED)):
        parser.error("--small wants a world of your own, and no other size: name its folder, as in --small --out mine")
    if options.all and (options.steps or options.quick or options.small or options.out):
        parser.error("--all stands alone: it makes every step, at full size, in build/all")
    if len(options.steps) > 1 and (alone := [name for name in OTHER_DEEDS if name in options.steps]):
        parser.error(f"{alone[0]} stands alone: give it without steps")
    unknown = [step for step in options.steps if step not in names]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}: use {', '.join(names)}")
    if options.out and (options.out.name in ("", "..") or (options.out.exists() and not options.out.is_dir())):
        parser.error(
            f"--out {options.out} is no folder with a name of its own: name one to build into, e.g. --out mine"
        )
    home = Path("build/quick" if options.quick else "build/all" if options.all else "build")
    out = options.out or (data_root() if home == Path("build") else home / "data")
    # Another folder takes nothing over from ours.
    own = not options.small and (not options.out or out.resolve() == data_root().resolve())
    config = QUICK if options.quick else SMALL if options.small else LITE
    work = home / "work" if own else out.with_name(f"{out.name}-work")
    if options.steps and options.steps[0] not in OTHER_DEEDS and not (options.quick or options.out):
        later = [step.name for step in hanging_on(options.steps)]
        lost = f", and undo what hangs on it ({', '.join(later)})" if later else ""
        parser.error(
            f"this would make {', '.join(options.steps)} in {out} again{lost}. Nothing was changed. "
            f"To do so, add --out {out}; to see all steps run at toy size, in build/quick, give --quick alone"
        )
    try:
        if options.steps == ["checksums"]:
            print(f"{out / CHECKSUMS}: the checksums of {list_as_it_is(out, work)} files")
            return
        if options.small:
            use_own_world(out)
        if options.steps != ["table"]:
            untouched = not (options.steps or options.quick or options.all) and (not options.out or is_shipped(out))
            made = build(options.steps, out, work, config, untouched)
            if untouched and made:
                list_as_it_is(out, work)
            if not (out / "results/test_set.json").exists():
                return
            write_readme(out)
        print_table(out)
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command goes on where it was.")
    except CannotBuild as error:
        sys.exit(str(error))
    except Exception as error:
        full = [folder for folder in (out, work) if disk_is_full(error, folder)]
        if full:
            file = getattr(error, "filename", None) or f"something in {work} or {out}"
            sys.exit(
                f"The disk is full, {file} cannot be written: free some, and the same command goes on where it was."
            )
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            sys.exit(f"{error.filename} cannot be written ({error.strerror}): build into another folder with --out.")
        if options.steps and options.steps[0] in OTHER_DEEDS and isinstance(error, ValueError | FileNotFoundError):
            sys.exit(first_line(error))
        raise


if __name__ == "__main__":
    main()
