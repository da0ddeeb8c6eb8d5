"""Is this machine ready for the course? `python -m cotgen_lite.course.doctor` says so, and what mends it.

It looks at Python, packages, memory, disk and the shipped files. What else may go wrong: notebooks/TROUBLESHOOTING.md.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from cotgen_lite.generate.memory import free_bytes
from cotgen_lite.hub import MANIFEST, data_root, file_sha256

MEMORY, DISK = 2e9, 1e9  # bytes: what every chapter gets by with, and room for what training keeps
RESTORE = "git checkout -- data"


class Finding(NamedTuple):
    """One thing looked at: what was found, and, if it is wrong, the command or deed that mends it."""

    what: str
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at Python, packages, cores, memory, disk, GPU and the shipped data's checksums."""
    python = Finding("Python", platform.python_version(), "" if sys.version_info >= (3, 11) else "install Python 3.11")
    packages = look_at_packages(metadata.requires("cotgen-lite") or [])
    return [python, *packages, *look_at_machine(Path.cwd()), look_at_data(data_root())]


def look_at_packages(required: Sequence[str]) -> list[Finding]:
    """The installed packages beside what is required, as in a package's metadata; an extra's only if all are there."""
    extras: dict[str, list[tuple[Requirement, str]]] = {}
    for one in map(Requirement, required):
        extras.setdefault(str(one.marker or ""), []).append((one, installed(one.name)))
    findings = [
        Finding(one.name, version or "missing", f'pip install "{one.name}{one.specifier}"')
        for extra, packages in extras.items()
        for one, version in (packages if not extra or all(version for _, version in packages) else ())
        if not version or not one.specifier.contains(version, prereleases=True)
    ]
    return findings or [Finding("packages", f"torch {installed('torch')}, transformers {installed('transformers')}")]


def installed(name: str) -> str:
    """The version of an installed package, "" if there is none."""
    return next((one.version for one in metadata.distributions(name=name)), "")


def look_at_machine(folder: Path) -> list[Finding]:
    """Cores, of which torch should not use more than there are, free memory, free disk of a folder, and the GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, disk = torch.get_num_threads(), shutil.disk_usage(folder).free
    try:
        free = free_bytes(torch.device("cpu"))
        said, close = f"{free / 1e9:.1f} GB free", "" if free >= MEMORY else "close other programs and kernels"
    except ValueError:
        said, close = "this system does not say", ""
    card, fewer = torch.cuda.is_available() and torch.cuda.get_device_properties(0), f"export OMP_NUM_THREADS={cores}"
    return [
        Finding("cores", f"{cores}, torch uses {threads}", fewer if threads > cores else ""),
        Finding("memory", said, close),
        Finding("disk", f"{disk / 1e9:.0f} GB free", "" if disk >= DISK else "make clean, or free some space"),
        Finding("GPU", f"{card.name}, {card.total_memory / 1e9:.0f} GB" if card else "none, and none is needed"),
    ]


def look_at_data(root: Path) -> Finding:
    """The shipped files that have a checksum: models, and the data that they were trained on."""
    manifests, wrong, count = sorted(root.rglob(MANIFEST)), [], 0
    for manifest in manifests:
        for name, expected in json.loads(manifest.read_text(encoding="utf-8")).get("sha256", {}).items():
            file, count = manifest.parent / name, count + 1
            if not file.is_file() or file_sha256(file) != expected:
                wrong.append(f"{file.relative_to(root)} is {'damaged' if file.is_file() else 'missing'}")
    if not manifests:
        return Finding("data", f"no models in {root}", RESTORE)
    return Finding("data", "; ".join(wrong) or f"{count} files, all whole", RESTORE if wrong else "")


def as_text(findings: Sequence[Finding]) -> str:
    """One line a finding; below each that is wrong, what mends it."""
    mends = [f"\n    to mend it: {one.mend}" if one.mend else "" for one in findings]
    return "\n".join(f"{'✗' if m else '✓'} {f.what}: {f.found}{m}" for f, m in zip(findings, mends, strict=True))


def check_up() -> None:
    """Print what is wrong with this machine and what mends it, or that it is ready; for a notebook's first cell."""
    wrong = [one for one in examine() if one.mend]
    print(as_text(wrong) if wrong else "This machine is ready for the course.")


def main() -> None:
    """Print what was found; exit status 1 if anything is wrong."""
    findings = examine()
    print(as_text(findings))
    sys.exit(any(one.mend for one in findings))


if __name__ == "__main__":
    main()
