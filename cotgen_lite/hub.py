"""Which file and model lives where, whether it is whole, and on which device it runs; files written atomically.

Everything else stands on this. Read on in `prompts.py`.
"""

import copy
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"


def data_root() -> Path:
    """The folder of shipped data: $COTGEN_DATA if set, else `data/` beside the package."""
    given = os.environ.get("COTGEN_DATA")
    return Path(given) if given else Path(__file__).resolve().parent.parent / "data"


def data_path(name: str) -> Path:
    """The path of a shipped file or folder, e.g. "world/icons.json"; FileNotFoundError says how to get it back."""
    path = data_root() / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: restore it with `git checkout -- data`, rebuild it with "
            "`python -m cotgen_lite.build`, or point COTGEN_DATA to the folder that holds the course's data."
        )
    return path


def model_path(name: str, models: Path | None = None) -> Path:
    """The folder of a shipped model, its checksums verified, e.g. "generator" or "verifier".

    models: a folder of models that is being built, in place of the shipped ones; nothing is verified there.
    ValueError names the file if one is damaged; FileNotFoundError if the model or one of its files is missing.
    """
    if models is not None:
        return models / name
    folder = data_path(f"models/{name}")
    manifest = json.loads(data_path(f"models/{name}/{MANIFEST}").read_text(encoding="utf-8"))
    for file, expected in manifest["sha256"].items():
        if file_sha256(data_path(f"models/{name}/{file}")) != expected:
            raise ValueError(
                f"{folder / file} is damaged (its checksum differs from {MANIFEST}): restore it with "
                f"`git checkout -- data`."
            )
    return folder


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at `path`: a new file beside it, which takes its place once the block is done.

    So the file is whole or not there at all, and an interrupt leaves the old one. The new file's name is nobody else's:
    several processes may write the same file, and the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def work_folder(path: str | Path | None) -> Iterator[Path]:
    """The folder at a path, or for None one that is gone after the block: where a job keeps what it resumes from."""
    if path is not None:
        yield Path(path)
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all; see `in_place_of`."""
    with in_place_of(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, indented."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def first_line(error: Exception) -> str:
    """The first line of what an error says; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def insist_on_two_cores() -> None:
    """Exit with a message on a machine with more cores, or fewer, than the course states times for."""
    if os.cpu_count() != 2:
        sys.exit(f"The course states times of 2 cores, and this machine has {os.cpu_count()}: measure on one with 2.")


def chosen_device(device: str) -> str:
    """The device that a loader's argument names: "auto" takes a GPU if there is one."""
    import torch  # not before it is needed: the doctor works without

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load_complete(kind: Any, path: str | Path, **settings: Any) -> Any:
    """A model of a transformers class by `kind.from_pretrained(path, **settings)`, in evaluation mode.

    ValueError if weights are missing, which would be random, or if their file is damaged; OSError without a file.
    """
    try:
        model, report = kind.from_pretrained(path, output_loading_info=True, **settings)
    except SafetensorError as error:
        raise ValueError(f"The weights in {path} are damaged ({first_line(error)}): download them again.") from error
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(lacking)} weights of a {type(model).__name__.strip('_')} ({lacking[0]}, ...), which "
            "would be random: give a complete checkpoint of that kind."
        )
    return model.eval()


def load_exactly(load: Callable[..., Any], path: str | Path, what: str, **settings: Any) -> Any:
    """A model of ours by a `from_pretrained` of transformers, in float32 unless `dtype` says otherwise, in eval mode.

    what: its name in errors. ValueError if files are missing or damaged, or if the weights' names or shapes are not
    exactly the model's: with some left random it would still draw, badly.
    """
    import torch  # see `chosen_device`

    settings.setdefault("dtype", torch.float32)
    try:
        if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
            raise OSError("no config.json there")
        model, report = load(path, output_loading_info=True, **settings)
    except (OSError, EOFError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"No {what} can be read from {path} ({first_line(error)}): it needs an intact config.json and the weights "
            "that belong to it; build or download it again."
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[kind])):
            raise ValueError(
                f"The weights in {path} do not fit a {what}: {len(names)} {kind.replace('_', ' ')}, {names[0]} first; "
                "check that they belong to config.json, or build or download the model again."
            )
    return model.eval()


def publish(model: Any, folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Save a model's weights as fp16 safetensors, and the manifest that says how it was made."""
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    write_manifest(folder, settings, seconds)


def write_manifest(folder: Path, settings: Mapping[str, object], seconds: float) -> None:
    """Record settings, seconds of training and every file's checksum; its presence says that the model is whole."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    sums = {path.name: file_sha256(path) for path in files}
    manifest = {"settings": settings, "seconds": round(seconds), "sha256": sums}
    write_json(folder / MANIFEST, manifest)
