"""Which file and model lives where, and whether it is whole; files written atomically.

Nearly everything stands on this, and it on the standard library alone, as the doctor does. Read next: identity.py.
"""

import copy
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MANIFEST = "manifest.json"
CHECKSUMS = "sha256.json"  # in a data folder: the checksum of every file of it but this one and the README
SIZES = ("--quick", "--small")  # of builds, beside the course's own: a data folder has a file ".quick" or ".small"
SHIPPED = Path(__file__).resolve().parent.parent / "data"


def data_root() -> Path:
    """The folder of shipped data: $COTGEN_DATA if set, else `data/` beside the package."""
    given = os.environ.get("COTGEN_DATA")
    return Path(given) if given else SHIPPED


def use_data(name: str) -> None:
    """Make a folder of the shipped data, e.g. "next", the data of this process and of those that it starts.

    To be called before anything is loaded: a process has one world. FileNotFoundError if there is no such world.
    """
    folder = SHIPPED / _inside(name)
    if not (folder / "world/world.json").is_file():
        worlds = sorted(path.parent.parent.name for path in SHIPPED.glob("*/world/world.json"))
        raise FileNotFoundError(f"There is no world in {folder}: of the shipped ones, beside the first, are {worlds}.")
    os.environ["COTGEN_DATA"] = str(folder)


def data_path(name: str) -> Path:
    """The path of a shipped file or folder, whole, e.g. "world/icons.json".

    FileNotFoundError if it is missing, ValueError if it is damaged; both say how to get it back. ValueError for a name
    that leads out of the data folder.
    """
    path = data_root() / _inside(name)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {restore_or_list(data_root())}.")
    return check_whole(path)


def model_path(name: str, models: Path | None = None) -> Path:
    """The folder of a shipped model, its checksums verified, e.g. "generator" or "verifier".

    models: another folder of models, in place of the shipped ones, e.g. one that is being built; a model without a
    manifest, such as one saved by hand, is taken as it is.
    ValueError names the file if one is damaged; FileNotFoundError if the model or one of its files is missing.
    """
    if models is not None:
        if not isinstance(models, str | Path):
            raise ValueError(f"models must be a folder, got {models!r}.")
        root, folder = Path(models).parent, check_whole(Path(models) / _inside(name))
        if not (folder / MANIFEST).is_file():
            return folder
    else:
        if "/" in _inside(name):
            raise ValueError(f"{name!r} is no model's name: give one of the folders of {data_root() / 'models'}.")
        root = data_root()
        if (root / CHECKSUMS).is_file() and not (root / "models" / name / MANIFEST).is_file():
            listed = {Path(file).parts[1] for file in read_checksums(root) if file.startswith("models/")}
            if name not in listed:
                raise FileNotFoundError(f"There is no model {name!r}: there are {', '.join(sorted(listed))}.")
        folder = data_path(f"models/{name}")
        data_path(f"models/{name}/{MANIFEST}")
    try:
        sums = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST} is damaged: {restore_or_list(root)}.") from None
    for file, expected in sums.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing: {restore_or_list(root)}.")
        if _sha256_now(folder / file) != expected:
            raise ValueError(f"{folder / file} is damaged: {restore_or_list(root)}.")
    return folder


def _inside(name: str) -> str:
    """The name of what lies in a folder; ValueError for anything else."""
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"A name of what lies in the data folder is wanted, such as 'models', got {name!r}.")
    return name


def check_whole(path: Path) -> Path:
    """The path of a file or a folder, if it is as its data folder's list of checksums says, where there is a list.

    FileNotFoundError if a listed file is missing, ValueError if one is damaged; both say how to get it back.
    """
    if root := data_folder(path):
        for name, wrong in _damage(root, path.absolute().relative_to(root).as_posix()):
            kind: type[Exception] = FileNotFoundError if wrong == "missing" else ValueError
            raise kind(f"{root / name} is {wrong}: {restore_or_list(root)}.")
    return path


def data_folder(path: Path) -> Path | None:
    """The data folder that a file or a folder lies in, known by its list; None if there is none."""
    full = path.absolute()
    near = (full, *full.parents)[:4]  # models/orm/config.json lies three folders deep
    return next((root for root in near if (root / CHECKSUMS).is_file() or is_shipped(root)), None)


def damaged_files(root: Path) -> list[str]:
    """What is wrong with a data folder's files, e.g. "models/orm/config.json is missing"; reads them all."""
    return [f"{name} is {wrong}" for name, wrong in missing_or_damaged(root).items()]


def missing_or_damaged(root: Path) -> dict[str, str]:
    """The listed files of a data folder that are "missing" or "damaged", by name; reads them all."""
    return dict(_damage(root))


def read_checksums(root: Path) -> dict[str, str]:
    """The listed files of a data folder, and the sha256 of each; ValueError if the list is damaged or missing."""
    path = root / CHECKSUMS
    try:
        text = path.read_text(encoding="utf-8")
        listed = json.loads(text)["files"]
        if text == _as_list(listed):
            return listed
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {restore_or_list(root)}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):  # of JSON and of UTF-8 too
        pass
    raise ValueError(f"{path} is damaged: {restore_or_list(root)}.")


def write_checksums(root: Path, files: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write the list of a data folder: of all files there, or of some whose checksums are known.

    A data folder within it, such as that of another world, has a list of its own.
    """
    if files is None:
        inner = [path.parent for path in root.rglob(CHECKSUMS) if path.parent != root]
        outside = [path for path in root.rglob("*") if path.is_file() and not set(inner) & set(path.parents)]
        there = {path.relative_to(root).as_posix(): path for path in outside}
        names = [name for name in there if _listed(name)]
        files = {name: file_sha256(there[name]) for name in names}
    write_atomically(root / CHECKSUMS, _as_list(files))
    return dict(files)


def _listed(name: str) -> bool:
    """Whether a file belongs into the list: not the list itself, the README, hidden or half-written files."""
    hidden = any(part.startswith((".", "__")) for part in name.split("/"))
    return name not in (CHECKSUMS, "README.md") and not hidden and not name.endswith(".part")


def _as_list(files: Mapping[str, str]) -> str:
    """The text of a list, which tells by a checksum of its own whether it is whole."""
    lines = "".join(f"{sha} {name}\n" for name, sha in sorted(files.items()))
    own = hashlib.sha256(lines.encode()).hexdigest()
    return json.dumps({"list": own, "files": dict(sorted(files.items()))}, indent=1) + "\n"


def _damage(root: Path, inside: str = ".") -> Iterator[tuple[str, str]]:
    """Listed files that are "missing" or "damaged", of the whole folder or of what is inside; or the list itself."""
    try:
        listed = read_checksums(root)
    except (ValueError, FileNotFoundError) as error:
        yield CHECKSUMS, "missing" if isinstance(error, FileNotFoundError) else "damaged"
        return
    for name, expected in listed.items():
        if inside == "." or name == inside or name.startswith(f"{inside}/"):
            file = root / name
            if not file.is_file():
                yield name, "missing"
            elif _sha256_now(file) != expected:
                yield name, "damaged"


def _sha256_now(file: Path) -> str:
    """As `file_sha256`, read once in a process unless the file changes."""
    return _sha256_of(file, file.stat().st_size, file.stat().st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)


def is_shipped(root: Path) -> bool:
    """Whether a folder is the data folder that came with the course."""
    return root.resolve() == SHIPPED


def size_mark(root: Path, size: str) -> Path:
    """The file by which a data folder says that it was built with a flag of SIZES."""
    return root / size.replace("--", ".")


def size_of(root: Path) -> str:
    """The flag of SIZES that a data folder was built with; none, "", for the course's own size."""
    return next((size for size in SIZES if size_mark(root, size).exists()), "")


def restore(root: Path) -> str:
    """How to get a file of a data folder back, said so that it works in any folder."""
    if is_shipped(root):
        return f"restore it with `{git_restore()}`"
    flags = f"{size_of(root)} --out {shlex.quote(str(root.absolute()))}".strip()
    again = f"`python -m cotgen_lite.build {flags}`"
    return f"make it again with {again}, or point COTGEN_DATA to another folder"


def git_restore() -> str:
    """The command that restores all shipped data."""
    return f"git -C {shlex.quote(str(SHIPPED.parent))} checkout -- data"


def restore_or_list(root: Path) -> str:
    """As `restore`, of a file that is not as it is listed; and how to say that it is as it should be."""
    out = "" if is_shipped(root) else f" --out {shlex.quote(str(root.absolute()))}"
    return f"{restore(root)}; if you changed it, run `python -m cotgen_lite.build checksums{out}`"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What a killed process may leave of a file that it was writing: by `in_place_of`, and by safetensors.
HALF_WRITTEN = re.compile(r".+\.[0-9a-f]{32}\.part|\.tmp\w{6}")
# What a killed process may leave of a model: whole files of it too.
MODEL_FILE = re.compile(rf"(generation_)?config\.json|model.*\.safetensors(\.index\.json)?|{HALF_WRITTEN.pattern}")


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at `path`: a new file beside it, which takes its place once the block is done.

    So the file is whole or not there at all, and an interrupt leaves the old one. The new file's name is nobody else's:
    several processes may write the same file, and the last one's stays. OSError names the file if the disk is full.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except Exception as error:
        if disk_is_full(error, path.parent):
            raise OSError(errno.ENOSPC, "no space left on the disk to write it", str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error says that a disk is full; libraries say so in words, or, as torch, only that writing failed."""
    said = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if any(words in said for words in ("No space left", "os error 28", "os error 122", "Disk quota")):
        return True
    failed = any(
        words in said for words in ("PytorchStreamWriter", "inline_container", "requested and")
    )  # torch, numpy
    there = next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path("."))
    return failed and shutil.disk_usage(there).free < 2**24


@contextmanager
def work_folder(path: str | Path | None) -> Iterator[Path]:
    """The folder at a path, or for None one that is gone after the block: where a job keeps what it resumes from."""
    if path is not None:
        from cotgen_lite.inputs import folder  # not before it is needed: the doctor works without numpy

        yield folder(path, "work_dir")
        return
    with TemporaryDirectory() as gone_later:
        yield Path(gone_later)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all; see `in_place_of`."""
    with in_place_of(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, indented."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def print_anything() -> None:
    """Let standard output and errors take every character: what their encoding lacks is written as its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where something else took their place
            stream.reconfigure(errors="backslashreplace")


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def insist_on_two_cores() -> None:
    """Exit with a message on a machine with more cores, or fewer, than the course states times for."""
    if os.cpu_count() != 2:
        sys.exit(f"The course states times of 2 cores, and this machine has {os.cpu_count()}: measure on one with 2.")


def free_memory() -> int | None:
    """Bytes that can still be taken, of the machine's or of what a container is allowed; None if nothing says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit, taken = (int(Path(f"/sys/fs/cgroup/memory.{part}").read_text()) for part in ("max", "current"))
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        cached = int(stat["inactive_file"])  # counted as taken, and given back when memory is asked for
    except (OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        return free
    return max(0, min(free, limit - taken + cached))


def publish(model: Any, folder: Path, settings: Mapping[str, object]) -> None:
    """Save a model's weights as fp16 safetensors, and the manifest that says how it was made, in a folder of its own.

    What stands there is deleted: an earlier model, or what a killed process has left of one. ValueError for a folder
    without a manifest in which anything else lies.
    """
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in there if not MODEL_FILE.fullmatch(name)]
    if others and MANIFEST not in there:
        raise ValueError(
            f"{folder} holds {others[0]} and no {MANIFEST}, so it is no model's folder: give a new or an empty one."
        )
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    write_manifest(folder, settings)


def write_manifest(folder: Path, settings: Mapping[str, object]) -> None:
    """Record settings and every file's checksum; its presence says that the model is whole."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST and _listed(path.name))
    write_json(folder / MANIFEST, {"settings": settings, "sha256": {path.name: file_sha256(path) for path in files}})
