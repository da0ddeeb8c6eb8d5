"""Shipped files: a missing or damaged one is named, with the way to get it back."""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest

from cotgen_lite import hub
from cotgen_lite.experiments.findings import findings
from cotgen_lite.experiments.measure import load_steps_of_pool
from cotgen_lite.experiments.report import reading_lines
from cotgen_lite.experiments.results import read_json, read_rows, read_scores, results
from cotgen_lite.full_scale.prompts import geneval_meanings
from cotgen_lite.generate.pipeline import load_generator
from cotgen_lite.generate.vq import Magvit
from cotgen_lite.hub import (
    CHECKSUMS,
    check_whole,
    damaged_files,
    data_path,
    data_root,
    file_sha256,
    first_line,
    in_place_of,
    model_path,
    publish,
    read_checksums,
    restore,
    write_atomically,
    write_checksums,
    write_manifest,
)
from cotgen_lite.lite.judges import load_judge
from cotgen_lite.pools import load_pool
from cotgen_lite.prompts import world_file
from cotgen_lite.verify.verifier import Verifier, load_verifier


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models/toy"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder, {"steps": 1})
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    return folder


def test_a_chapter_names_the_world_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTGEN_DATA", "")  # which is put back after the test, whatever stands there then
    hub.use_data("next")
    assert data_root() == hub.SHIPPED / "next" and os.environ["COTGEN_DATA"] == str(data_root())
    for name, why in (
        ("nowhere", r"no world in .*nowhere.*'next'"),
        ("models", "no world"),
        ("../data", "data folder"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=why):
            hub.use_data(name)


def test_whole_model_is_found(own_data: Path) -> None:
    assert model_path("toy") == own_data


def test_damaged_weights_are_named(own_data: Path) -> None:
    (own_data / "model.safetensors").write_bytes(b"weighty")
    for models in (None, own_data.parent):
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged: make it again with `python -m cotgen"):
            model_path("toy", models)


def test_missing_weights_are_named(own_data: Path) -> None:
    (own_data / "model.safetensors").unlink()
    for models in (None, own_data.parent):
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
            model_path("toy", models)
    with pytest.raises(FileNotFoundError, match="COTGEN_DATA"):
        model_path("other")


@pytest.mark.parametrize("name", ["Generator", " generator", ".", "generators"])
def test_a_model_that_is_not_shipped_is_called_so(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no model '{name}': there are dpo, generator, "):
        load_generator(name)


def test_a_listed_model_that_is_gone_is_missing(own_data: Path) -> None:
    write_checksums(own_data.parents[1])
    shutil.rmtree(own_data)
    with pytest.raises(FileNotFoundError, match="toy is missing: make it again"):
        model_path("toy")


class Tiny:
    """A model as far as `publish` knows it."""

    def half(self) -> "Tiny":
        return self

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")


def test_a_model_is_published_in_a_folder_of_models_alone(tmp_path: Path) -> None:
    for _ in range(2):
        publish(Tiny(), tmp_path / "toy", {"steps": 1})
    (tmp_path / "toy/manifest.json").unlink()  # as a killed process leaves it
    (tmp_path / "toy/.tmpa1B2c3").write_bytes(b"half")
    publish(Tiny(), tmp_path / "toy", {"steps": 1})
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"manifest.json", "model.safetensors"}
    (tmp_path / "mine").mkdir()
    publish(Tiny(), tmp_path / "mine", {})  # an empty one
    (tmp_path / "mine/manifest.json").unlink()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine holds thesis\.txt and no manifest\.json"):
        publish(Tiny(), tmp_path / "mine", {})
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_shipped_models_are_whole() -> None:
    names = sorted(path.name for path in (data_root() / "models").iterdir())
    assert {"generator", "judge", "tokenizer", "verifier"} <= set(names)
    for name in names:
        manifest = json.loads((model_path(name) / "manifest.json").read_text())
        files = {path.name for path in model_path(name).iterdir()} - {"manifest.json"}
        assert set(manifest["sha256"]) == files and "settings" in manifest


def test_shipped_data_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in data_root().rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 95 * 2**20  # 60 once the first world is gone
    assert max(sizes.values()) < 12 * 2**20


def test_every_shipped_file_has_a_line_in_the_readme() -> None:
    text = (data_root() / "README.md").read_text()
    for path in data_root().iterdir():
        if path.name == "README.md":
            continue
        whole = path.is_file() or (path / CHECKSUMS).exists()  # a file, or another data folder
        names = [path.name] if whole else [f"{path.name}/{child.name}" for child in path.iterdir()]
        assert not [name for name in names if f"`{name}`" not in text and f"`{name}/`" not in text]


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


@pytest.mark.parametrize("world", [".", "next"])
def test_all_shipped_files_are_listed_with_their_checksums(world: str) -> None:
    root = data_root() / world
    listed = read_checksums(root)
    told = subprocess.run(["git", "-C", str(root), "ls-files"], capture_output=True, text=True).stdout.split("\n")
    tracked = {name for name in told if name} or {
        p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()
    }
    inner = {name for name in tracked if world == "." and name.startswith("next/")}  # which has a list of its own
    assert set(listed) == tracked - inner - {CHECKSUMS, "README.md"}  # else: python -m cotgen_lite.build checksums
    assert damaged_files(root) == [] and list(listed) == sorted(listed)


# One of each kind of shipped file, and who reads it.
READ: dict[str, Callable[[Path], object]] = {
    "models/generator/model.safetensors": lambda _: load_generator(),
    "models/generator/config.json": lambda _: load_generator(),
    "models/generator/manifest.json": lambda _: load_generator(),
    "models/words/tokenizer.json": lambda _: load_generator(),
    "models/orm/tokenizer_config.json": lambda _: load_verifier("orm"),
    "models/orm/chat_template.jinja": lambda _: load_verifier("orm"),
    "models/orm/processor_config.json": lambda _: load_verifier("orm"),
    "models/judge/model.safetensors": lambda _: load_judge(),
    "models/verifier/model.safetensors": lambda path: Verifier.from_pretrained(path.parent),
    "models/tokenizer/config.json": lambda path: Magvit.from_pretrained(path.parent),
    "pools/baseline.safetensors": lambda _: load_pool(data_path("pools/baseline.safetensors")),
    "training/images/pool.safetensors": lambda _: load_pool(data_path("training/images/pool.safetensors")),
    "training/images/manifest.json": lambda _: data_path("training/images/manifest.json"),
    "pools/baseline_steps.safetensors": lambda _: load_steps_of_pool(data_path("pools/baseline_steps.safetensors")),
    "prompts/test.jsonl": lambda _: data_path("prompts/test.jsonl"),
    "world/world.json": lambda _: data_path("world/world.json"),
    "world/objects.ttf": lambda _: data_path("world"),
    "results/scores.jsonl": lambda _: results(),
    "pools/reflections.jsonl": read_rows,
    "results/findings.json": lambda path: findings(path.parent.parent),
    "results/judges.json": lambda path: reading_lines(path.parent.parent),
    "figures/overview.png": check_whole,
    CHECKSUMS: lambda _: load_judge(),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "empty": lambda _: b"",
}


@pytest.fixture(scope="session")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shipped") / "data"
    shutil.copytree(data_root(), root)
    return root


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_is_named_with_its_cure(
    name: str, damage: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTGEN_DATA", str(copied))
    path = copied / name
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    try:
        with pytest.raises(ValueError, match=rf"{name} is damaged: make it again with `python -m cotgen_lite.build"):
            READ[name](path)
        assert damaged_files(copied) == [f"{name} is damaged"]
    finally:
        path.write_bytes(whole)


def test_the_courses_own_files_come_back_by_git() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"restore it with `git -C .* checkout -- data`; if you changed it, run"
    ):
        data_path("nothing")
    for read in (read_scores, lambda out: read_json(out, "nothing")):
        with pytest.raises(FileNotFoundError, match="is missing: make it again with `python"):
            read(Path("else"))
    with pytest.raises(FileNotFoundError, match=r"is missing: restore it with `git -C .* checkout -- data`\.$"):
        read_json(data_root(), "nothing")


def test_a_cure_works_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "my course"
    write_atomically(clone / "data/a.txt", "whole")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(clone)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    (clone / "data/a.txt").write_text("damaged")
    monkeypatch.setattr(hub, "SHIPPED", clone / "data")
    subprocess.run(shlex.split(restore(clone / "data").split("`")[1]), cwd=tmp_path, check=True)
    assert (clone / "data/a.txt").read_text() == "whole"
    monkeypatch.chdir(tmp_path)
    assert f"--out '{tmp_path / 'an other'}'`" in restore(Path("an other"))


def test_every_reader_takes_the_cure_of_the_folder_that_it_reads(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged \(.*\): make it again, or give another file\.$"):
        load_pool(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match=rf"is missing: {re.escape(restore(copied))}"):
        load_pool(copied / "pools/nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=rf"is missing: {re.escape(restore(data_root()))}"):
        load_pool(data_root() / "pools/nothing.safetensors")
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    write_atomically(tmp_path / "world/world.json", "{}")
    world_file.cache_clear()
    with pytest.raises(ValueError, match=rf"or restore that with `{re.escape(hub.git_restore())}`\.$"):
        world_file()
    write_atomically(tmp_path / "prompts/geneval_meanings.txt", "a\n")
    with pytest.raises(ValueError, match=rf"restore the shipped ones by `{re.escape(hub.git_restore())}`, or run"):
        geneval_meanings()


def test_trying_faults_starts_afresh_and_leaves_the_environment_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "data/a.txt", "some text")
    write_checksums(tmp_path / "data")
    for old in ("whole/data/a.txt", "whole-work/b/c", "whole.log", "killed-1/data/a.txt", "killed-1.log", "mine"):
        write_atomically(tmp_path / "faults" / old, "")
    left: list[tuple[list[str], str | None]] = []

    def note(folder: Path, *_: int) -> bool:
        left.append((sorted(path.name for path in folder.iterdir()), os.environ.get("COTGEN_DATA")))
        return False

    monkeypatch.delenv("COTGEN_DATA", raising=False)
    monkeypatch.setattr(faults, "data_root", lambda: tmp_path / "data")
    monkeypatch.setattr(faults, "test_interruptions", note)
    monkeypatch.setattr(sys, "argv", ["faults.py", "--folder", str(tmp_path / "faults")])
    with pytest.raises(SystemExit):
        faults.main()
    assert left == [(["damaged", "mine"], None)]


def test_files_that_no_list_names_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    for name in ("a.json", "deep/b.json", ".hidden", "deep/b.json.1f.part", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    assert data_path("a.json") == tmp_path / "a.json"
    assert list(write_checksums(tmp_path)) == ["a.json", "deep/b.json"]
    (tmp_path / "new.json").write_text("2")
    assert data_path("new.json").exists() and damaged_files(tmp_path) == []
    (tmp_path / "deep/b.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"deep/b\.json is missing"):
        data_path("deep")
    assert damaged_files(tmp_path) == ["deep/b.json is missing"]


def test_checksums_need_the_standard_library_alone() -> None:
    program = "import cotgen_lite.hub as hub; print(hub.damaged_files(hub.data_root()))"
    environment = os.environ | {"PYTHONPATH": str(data_root().parent)}
    said = subprocess.run([sys.executable, "-S", "-c", program], env=environment, capture_output=True, text=True)
    assert said.stdout == "[]\n", said.stderr


def test_a_full_disk_is_called_so_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left on the disk") as said, in_place_of(tmp_path / "a.bin"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (said.value.errno, said.value.filename) == (errno.ENOSPC, str(tmp_path / "a.bin"))


def test_missing_file_says_how_to_get_it() -> None:
    with pytest.raises(FileNotFoundError, match="git -C"):
        data_path("world/nothing.json")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the Makefile, what it makes, and folders of somebody else."""
    root = tmp_path / "my course"
    ours = ["build/quick/data", ".ruff_cache", "cotgen_lite/a b/__pycache__", "tests/__pycache__"]
    theirs = [
        "notebooks/.ipynb_checkpoints",
        "notebooks/my answers/.ipynb_checkpoints",
        "notebooks/my",
        "cotgen_lite/a",
        "build/all/data",
        "answers",
        "b",
    ]
    for folder in (*ours, *theirs, "cotgen_lite/experiments"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file").write_text("")
    (root / "cotgen_lite/experiments/build.py").write_text("")
    for name in ("00_ours.ipynb", "my own.ipynb"):
        (root / "notebooks" / name).write_text(name)
    shutil.copy(data_root().parent / "Makefile", root)
    return root


def make(tree: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=tree, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("make"), reason="only where there is make")
def test_make_clean_removes_nothing_but_what_make_made(tree: Path) -> None:
    before = {path.relative_to(tree).as_posix() for path in tree.rglob("*")}
    assert make(tree, "clean").returncode == 0
    gone = before - {path.relative_to(tree).as_posix() for path in tree.rglob("*")}
    made = ("build/quick", ".ruff_cache", "cotgen_lite/a b/__pycache__", "tests/__pycache__")
    assert gone == {path for path in before if path.startswith(made)}


@pytest.mark.skipif(not shutil.which("make"), reason="only where there is make")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["VENV=pre cious"], "VENV must be the path of one folder, without spaces"),
        (["VENV="], "VENV must be the path of one folder"),
        (["VENV=answers"], "answers stays: make did not make it"),
        (["VENV=."], ". stays: make did not make it"),
        (["COPIES=answers"], ""),
    ],
)
def test_make_clean_leaves_folders_of_others(arguments: list[str], said: str, tree: Path) -> None:
    (tree / "pre cious").mkdir()
    done = make(tree, "clean", *arguments)
    assert said in done.stdout + done.stderr and bool(done.returncode) == ("must" in said)
    assert all((tree / folder).exists() for folder in ("pre cious", "answers/file", "notebooks/my/file", "Makefile"))


@pytest.mark.skipif(not shutil.which("make"), reason="only where there is make")
def test_make_copies_and_removes_only_the_notebooks_of_the_course(tree: Path) -> None:
    copies = tree / "build/notebooks"
    copies.mkdir()
    (copies / "00_ours.ipynb").write_text("of an earlier run")
    (copies / "mine.ipynb").write_text("mine")
    assert make(tree, "copies").returncode == 0
    assert (copies / "00_ours.ipynb").read_text() == "00_ours.ipynb" and (copies / "mine.ipynb").exists()
    assert "build/notebooks stays: mine.ipynb" in make(tree, "clean").stdout
    assert [path.name for path in copies.iterdir()] == ["mine.ipynb"]
    (copies / "mine.ipynb").unlink()
    assert make(tree, "clean").returncode == 0 and not copies.exists() and (tree / "notebooks/00_ours.ipynb").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="only where there is make")
def test_make_removes_its_own_environment_only(tree: Path) -> None:
    said = ""
    for folder, marks in {"made": [".made-by-make"], ".venv": [".complete", "pyvenv.cfg"]}.items():
        (tree / folder).mkdir()
        for mark in marks:
            (tree / folder / mark).write_text("")
        said += make(tree, "clean", f"VENV={folder}").stdout
    assert not (tree / "made").exists() and (tree / ".venv").exists()
    assert "removed made" in said and ".venv stays: make did not make it" in said
    elsewhere = tree / "answers"
    said = subprocess.run(["make", "-f", "../Makefile", "clean"], cwd=elsewhere, capture_output=True, text=True).stderr
    assert "Run make in the folder of this Makefile" in said and (elsewhere / "file").exists()


@pytest.mark.parametrize("name", ["", None, 3, "..", "../README.md", "/etc/hosts", "models/../../README.md"])
def test_no_name_leads_out_of_the_data_folder(name: Any) -> None:
    for call in (data_path, model_path):
        with pytest.raises(ValueError, match="name of what lies in the data folder is wanted"):
            call(name)
    with pytest.raises(ValueError, match="is no model's name"):
        model_path("generator/config.json")
    with pytest.raises(ValueError, match="models must be a folder, got 3"):
        model_path("generator", 3)  # type: ignore[arg-type]
