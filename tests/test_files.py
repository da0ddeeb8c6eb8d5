"""Shipped files: a missing or damaged one is named, with the way to get it back."""

import json
import shutil
from pathlib import Path

import pytest

from cotgen_lite.hub import (
    data_path,
    data_root,
    file_sha256,
    first_line,
    in_place_of,
    model_path,
    write_atomically,
    write_manifest,
)


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models/toy"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder, {"steps": 1}, 0.0)
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    return folder


def test_whole_model_is_found(own_data: Path) -> None:
    assert model_path("toy") == own_data


def test_damaged_weights_are_named(own_data: Path) -> None:
    (own_data / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*git checkout"):
        model_path("toy")


def test_missing_weights_are_named(own_data: Path) -> None:
    (own_data / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        model_path("toy")
    with pytest.raises(FileNotFoundError, match="COTGEN_DATA"):
        model_path("other")


def test_shipped_models_are_whole() -> None:
    names = sorted(path.name for path in (data_root() / "models").iterdir())
    assert {"generator", "judge", "tokenizer", "verifier"} <= set(names)
    for name in names:
        manifest = json.loads((model_path(name) / "manifest.json").read_text())
        files = {path.name for path in model_path(name).iterdir()} - {"manifest.json"}
        assert set(manifest["sha256"]) == files and "settings" in manifest


def test_shipped_data_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in data_root().rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 48 * 2**20
    assert max(sizes.values()) < 12 * 2**20


def test_every_shipped_file_has_a_line_in_the_readme() -> None:
    text = (data_root() / "README.md").read_text()
    for path in data_root().iterdir():
        if path.name == "README.md":
            continue
        names = [path.name] if path.is_file() else [f"{path.name}/{child.name}" for child in path.iterdir()]
        assert not [name for name in names if f"`{name}`" not in text]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    write_atomically(path, "old")
    checksum = file_sha256(path)
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half of the new" * 9999 + "\ud800")
    assert file_sha256(path) == checksum and list(tmp_path.iterdir()) == [path]
    shutil.rmtree(tmp_path)


def test_two_processes_may_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    with in_place_of(path) as one:
        one.write_text("one")
        with in_place_of(path) as other:  # meanwhile
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_an_error_without_words_is_called_by_its_kind() -> None:
    assert first_line(ValueError("\none\ntwo")) == "one"
    assert first_line(EOFError()) == "EOFError" and first_line(OSError(" \n")) == "OSError"


def test_missing_file_says_how_to_get_it() -> None:
    with pytest.raises(FileNotFoundError, match="git checkout"):
        data_path("world/nothing.json")
