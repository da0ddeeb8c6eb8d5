"""Where shipped files live, and whether they are whole."""

import hashlib
import json
import os
from pathlib import Path

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


def model_path(name: str) -> Path:
    """The folder of a shipped model, its checksums verified, e.g. "generator" or "verifier".

    ValueError names the file if one is damaged; FileNotFoundError if the model or one of its files is missing.
    """
    folder = data_path(f"models/{name}")
    manifest = json.loads(data_path(f"models/{name}/{MANIFEST}").read_text(encoding="utf-8"))
    for file, expected in manifest["sha256"].items():
        if file_sha256(data_path(f"models/{name}/{file}")) != expected:
            raise ValueError(
                f"{folder / file} is damaged (its checksum differs from {MANIFEST}): restore it with "
                f"`git checkout -- data`, or rebuild it with `python -m cotgen_lite.build`."
            )
    return folder


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all, so that an interrupt leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, indented."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")
