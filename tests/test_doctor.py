"""The doctor finds what is wrong, and names what mends it."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch

from cotgen_lite.course import doctor
from cotgen_lite.hub import data_root


def test_a_ready_machine_is_fine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEMORY", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.raises(SystemExit) as end:
        doctor.main()
    told = capsys.readouterr().out
    doctor.check_up()
    assert capsys.readouterr().out == "This machine is ready for the course.\n"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    doctor.check_up()
    assert capsys.readouterr().out.startswith("✗ cores")
    assert not end.value.code and "✗" not in told and "all whole" in told and "torch" in told


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    required = [
        "torch>=99",
        "numpy>=1.0",
        "no-such-package>=1",
        "absent-extra>=2; extra == 'train'",
        "pytest>=98; extra == 'train'",  # somebody else's, since that extra was not installed
        "pytest>=99; extra == 'test'",
    ]
    found = {one.what: one for one in doctor.look_at_packages(required)}
    assert set(found) == {"torch", "no-such-package", "pytest"}
    assert found["torch"].found == metadata.version("torch") and found["torch"].mend == 'pip install "torch>=99"'
    assert found["no-such-package"].found == "missing" and found["pytest"].mend == 'pip install "pytest>=99"'
    (fine,) = doctor.look_at_packages(["numpy>=1.0"])
    assert not fine.mend


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("orm", "words"):
        shutil.copytree(data_root() / "models" / name, tmp_path / "models" / name)
    assert not doctor.look_at_data(tmp_path).mend
    weights = tmp_path / "models/orm/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = doctor.look_at_data(tmp_path)
    assert found.found == "models/orm/model.safetensors is damaged" and found.mend == "git checkout -- data"
    weights.unlink()
    assert "models/orm/model.safetensors is missing" in doctor.look_at_data(tmp_path).found
    assert "no models" in doctor.look_at_data(tmp_path / "nowhere").found


def test_what_is_scarce_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    monkeypatch.setattr(doctor, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(doctor, "DISK", 1e30)
    cores, memory, disk, gpu = doctor.look_at_machine(tmp_path)
    assert cores.mend.startswith("export OMP_NUM_THREADS=") and memory.mend and disk.mend and not gpu.mend
    text = doctor.as_text([doctor.Finding("a", "b", "c"), doctor.Finding("d", "e")])
    assert text == "✗ a: b\n    to mend it: c\n✓ d: e"
