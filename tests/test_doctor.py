"""The doctor starts where nothing is installed, finds what is wrong, and ends in one command that mends it."""

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cotgen_lite import hub
from cotgen_lite.course import doctor
from cotgen_lite.hub import CHECKSUMS, data_root, write_checksums

FILE = Path(doctor.__file__)
PLANTED = {
    "raises.py": "raise RuntimeError('operator torchvision::nms does not exist\\nmore')",
    "exits.py": "raise SystemExit('no licence')",
    "dies.py": "import os; os._exit(4)",
    "sleeps.py": "import time; time.sleep(60)",
    "chatty.py": "print('loading', end='')",
    "empty/nothing.txt": "",
}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of this Python and of those that it starts, with packages that do not load."""
    for name, code in PLANTED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{doctor.ROOT}")
    return tmp_path


def wrong(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {one.what: one for one in findings if one.mend or one.advice}


@pytest.mark.parametrize("start", [[str(FILE)], ["-m", "cotgen_lite.course.doctor"]], ids=["file", "module"])
def test_it_starts_where_nothing_is_installed(start: list[str]) -> None:
    run = subprocess.run([sys.executable, "-S", *start], cwd=doctor.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and not run.stderr
    assert "✗ torch: missing" in run.stdout and "✗ trl: missing" in run.stdout and "✗ ipywidgets: missing" in run.stdout
    *_, said, command = run.stdout.splitlines()
    assert said == "To mend it, in a terminal:"
    assert command.endswith(f"-m pip install -e '{doctor.ROOT}[course,train]'")


def test_outside_of_an_environment_the_courses_own_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mend() -> tuple[str, str]:
        (only,) = doctor.look_at_packages(["no-such-package>=1"], {})
        return only.mend, only.advice

    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "usr/bin/python3"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "usr"))
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "pip install" in mend()[0]  # no checkout
    (tmp_path / "Makefile").touch()
    assert mend() == (f"make -C {tmp_path} env", "go on with .venv/bin/python, as `make lab` does")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "pip install" in mend()[0]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    assert mend()[0] == f"{tmp_path}/.venv/bin/python {FILE}" and "go on with that Python" in mend()[1]
    (tmp_path / "usr/conda-meta").mkdir(parents=True)
    assert "pip install" in mend()[0]
    (tmp_path / "usr/conda-meta").rmdir()
    (tmp_path / "usr/pyvenv.cfg").touch()
    assert "pip install" in mend()[0] and not mend()[1]


def test_files_that_hide_pythons_own_are_named(tmp_path: Path) -> None:
    for name in ("random", "platform", "shutil", "tempfile", "sys", "mine"):
        (tmp_path / f"{name}.py").write_text("mine = 1\n")
    variables = os.environ | {"PYTHONPATH": str(doctor.ROOT)}
    command = [sys.executable, "-S", "-m", "cotgen_lite.course.doctor"]
    run = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert "✗ torch: missing" in run.stdout and not run.stderr
    said = re.findall(r"✗ file: .*/(\w+)\.py hides Python's own \1 from", run.stdout)
    assert said == ["platform", "random", "shutil", "tempfile"] and f"Then: rename {tmp_path}" in run.stdout
    assert not doctor.look_at_names(FILE.parent)


def test_it_speaks_in_any_encoding() -> None:
    variables = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-S", "-m", "cotgen_lite.course.doctor"]
    run = subprocess.run(command, cwd=doctor.ROOT, env=variables, capture_output=True, check=False)
    assert b"x torch: missing" in run.stdout and not run.stderr


def test_an_old_python_can_read_it_and_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (FILE, FILE.parent / "__init__.py", FILE.parent.parent / "__init__.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "python3.12" else None)
    (only,) = doctor.examine()
    assert only.mend == "make course PYTHON=python3.12"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.examine()[0].advice.startswith("install Python 3.11")


def test_an_intel_mac_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (only,) = doctor.examine()
    assert "no torch" in only.found and "Colab" in only.advice


def test_a_ready_machine_is_fine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MEMORY": 0, "DISK": 0, "usable_cores": lambda: (2, 2)}.items():
        monkeypatch.setattr(doctor, name, value)
    for name in (*doctor.LAUNCHERS, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(SystemExit) as end:
        doctor.main()
    told = capsys.readouterr().out
    assert not end.value.code and "✗" not in told and "all whole" in told and "torch" in told
    doctor.check_up()
    assert capsys.readouterr().out == "This machine is ready for the course.\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    doctor.check_up()
    assert capsys.readouterr().out.startswith("✗ cores")


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    required = [
        "torch>=99",
        "numpy>=1.0",
        "no-such-package>=1",
        "absent>=2; extra == 'train'",
        "absent-extra>=2; extra == 'lora'",
        "pytest>=98; extra == 'lora'",  # somebody else's, since that extra was not installed
        "pytest>=99; extra == 'test'",
    ]
    found = wrong(doctor.look_at_packages(required, {}))
    assert set(found) == {"torch", "no-such-package", "absent", "pytest"}
    assert found["torch"].found == f"{metadata.version('torch')}, and >=99 is needed"
    assert found["no-such-package"].found == "missing"
    assert len({one.mend for one in found.values()}) == 1
    assert not wrong(doctor.look_at_packages(["numpy>=1.0"], {}))


def test_what_the_notebooks_need_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {doctor.parse(one)[0] for one in doctor.requirements() if doctor.parse(one)[2] in ("", "course")}
    monkeypatch.setattr(doctor, "installed", lambda name: "9999" if name in there - {"ipywidgets"} else "")
    assert {"ipywidgets", "trl", "datasets"} <= set(wrong(doctor.look_at_packages(doctor.requirements(), {})))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "r1")  # brings widgets of its own
    assert not {"ipywidgets", "trl"} & set(wrong(doctor.look_at_packages(doctor.requirements(), {})))


@pytest.mark.parametrize("line", [*doctor.requirements(), "torch~=1.16", "torch ~= 2.13.0, !=2.13.1", "torch~=5.23"])
@pytest.mark.parametrize("version", ["0.1", "1.16", "1.16.0", "2.13.0+cpu", "5.23.1", "5.24.0", "25.0.1"])
def test_versions_compare_as_packaging_does(line: str, version: str) -> None:
    name, bounds, extra = doctor.parse(line)
    wanted = Requirement(line)
    assert name == wanted.name and (extra in str(wanted.marker) if extra else wanted.marker is None)
    assert doctor.fits(version, bounds) == wanted.specifier.contains(version)


def test_what_does_not_load_is_named_with_its_reason(planted: Path) -> None:
    names = ["raises", "exits", "dies", "sleeps", "chatty", "empty", "json", "no_such"]
    tried = doctor.try_apart(names, seconds=3)
    assert list(tried) == names
    assert tried["raises"] == "RuntimeError: operator torchvision::nms does not exist"
    assert tried["exits"] == "SystemExit: no licence"
    assert "exit status 4" in tried["dies"] and "3 seconds" in tried["sleeps"]
    assert not tried["chatty"] and not tried["json"]
    assert tried["empty"] == tried["no_such"] == doctor.LOST  # a folder of that name without code is no package


def test_a_mismatched_torchvision_is_to_be_uninstalled(planted: Path) -> None:
    (planted / "torchvision.py").write_text(PLANTED["raises.py"])
    (planted / "tqdm.py").write_text("import torchvision")
    found = wrong(doctor.look_at_packages(["tqdm>=1", "numpy>=1"]))
    assert set(found) == {"torchvision", "tqdm"} and "nms does not exist" in found["torchvision"].found
    assert found["tqdm"].mend == found["torchvision"].mend and "uninstall -y torchvision" in found["tqdm"].mend


def test_a_broken_package_is_installed_anew(planted: Path) -> None:
    (planted / "tqdm.py").write_text("import no_such_helper")
    (planted / "packaging.py").write_text("raise ImportError('libgomp.so: cannot open shared object file')")
    found = wrong(doctor.look_at_packages(["tqdm>=1", "packaging>=1"]))
    assert "install -e" in found["tqdm"].mend and "No module named 'no_such_helper'" in found["tqdm"].found
    assert found["packaging"].mend.endswith(f"--force-reinstall --no-deps packaging=={metadata.version('packaging')}")


def test_a_blocked_import_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert set(wrong(doctor.look_at_packages(["trl>=1"], {}))) == {"trl"}


def test_missing_metadata_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(metadata, "requires", absent)
    assert not wrong(doctor.look_at_packages(doctor.requirements(), {}))
    monkeypatch.setattr(doctor, "ROOT", Path("/nowhere"))
    assert doctor.look_at_packages(doctor.requirements(), {})[0].advice == doctor.ANEW


def test_a_package_of_ours_that_is_not_this_one_is_found(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (planted / "cotgen_lite").mkdir()
    assert not doctor.try_apart(["cotgen_lite"])["cotgen_lite"]  # a folder without code gives way
    (planted / "cotgen_lite/__init__.py").write_text("")
    assert "another copy" in doctor.try_apart(["cotgen_lite"])["cotgen_lite"]
    monkeypatch.delenv("PYTHONPATH")
    outside = subprocess.run(
        [sys.executable, "-S", FILE, "--try", "cotgen_lite"], cwd=planted, capture_output=True, text=True, check=True
    )
    assert doctor.LOST in outside.stdout  # not installed, though its doctor runs


def test_damaged_and_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COTGEN_DATA", raising=False)
    for name in ("orm", "words"):
        shutil.copytree(data_root() / "models" / name, tmp_path / "models" / name)
    write_checksums(tmp_path)
    fine = doctor.look_at_data(tmp_path)
    assert not fine.mend and "all whole" in fine.found
    weights = tmp_path / "models/orm/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = doctor.look_at_data(tmp_path)
    assert found.found == "models/orm/model.safetensors is damaged"
    assert found.mend == f"git -C {doctor.ROOT} checkout -- data"
    shutil.rmtree(tmp_path / "models")
    assert "models/orm/config.json is missing" in doctor.look_at_data(tmp_path).found
    monkeypatch.setattr(doctor, "ROOT", tmp_path)  # no clone
    assert doctor.look_at_data(tmp_path).advice == doctor.ANEW


@pytest.mark.parametrize("text", ["", "{", '{"files": 3}', json.dumps({"list": "", "files": {}}), None])
def test_a_list_that_is_cut_or_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    if text is not None:
        (tmp_path / CHECKSUMS).write_text(text)
    assert CHECKSUMS in doctor.look_at_data(tmp_path).found and doctor.look_at_data(tmp_path).mend
    monkeypatch.setenv("COTGEN_DATA", str(tmp_path))
    assert doctor.look_at_data().mend == "unset COTGEN_DATA"


@pytest.mark.parametrize("threads", ["", "two", "0", "-1", "1.5", "64"])
def test_odd_threads_are_named(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: (2, 32))  # as in a container
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    cores, *_ = doctor.look_at_machine(doctor.ROOT)
    assert cores.mend == "export OMP_NUM_THREADS=2"
    for fine in ("2", "1", "2,1"):
        monkeypatch.setenv("OMP_NUM_THREADS", fine)
        assert not doctor.look_at_machine(doctor.ROOT)[0].mend


def test_what_is_scarce_or_left_behind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "free_memory", lambda: 10**9)
    monkeypatch.setattr(doctor, "DISK", 1e30)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = wrong(doctor.look_at_machine(doctor.ROOT))
    assert found["memory"].advice and found["launcher"].mend == "unset RANK WORLD_SIZE"
    assert found["disk"].mend.endswith("pip cache purge")  # nothing that deletes the environment or answers
    monkeypatch.setattr(hub, "free_memory", lambda: None)
    assert "memory" not in wrong(doctor.look_at_machine(doctor.ROOT))


@pytest.mark.parametrize(
    ("left", "warned"),
    [
        ("", False),
        ("MASTER_ADDR=here", False),
        ("RANK=0 WORLD_SIZE=1", False),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=here MASTER_PORT=1", False),
        ("WORLD_SIZE=2", True),
        ("RANK=1", True),
        ("LOCAL_RANK=0", True),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=here", True),
    ],
)
def test_only_variables_that_speak_of_others_are_named(
    left: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in doctor.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in (one.split("=") for one in left.split()):
        monkeypatch.setenv(name, value)
    found = wrong(doctor.look_at_machine(doctor.ROOT))
    assert ("launcher" in found) == warned
    assert not warned or found["launcher"].mend.split()[1:] == [one.split("=")[0] for one in left.split()]


def test_it_ends_in_one_command() -> None:
    findings = [
        doctor.Finding("a", "b", "pip install c"),
        doctor.Finding("d", "e"),
        doctor.Finding("f", "g", "pip uninstall h"),
        doctor.Finding("i", "j", "pip install c"),
        doctor.Finding("k", "l", "unset m"),
        doctor.Finding("n", "o", advice="close p"),
    ]
    lines = doctor.as_text(findings).splitlines()
    assert lines[:2] == ["✗ a: b", "✓ d: e"]
    assert lines[-2:] == ["    unset m && pip uninstall h && pip install c", "Then: close p"]
