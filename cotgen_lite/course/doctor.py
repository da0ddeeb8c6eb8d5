"""Is this machine ready for the course? `python -m cotgen_lite.course.doctor` says so, and ends in one command to mend.

It runs on the standard library alone, where nothing is installed yet: `python cotgen_lite/course/doctor.py`. Every
package is tried in another process, since a broken one may end Python. What else may go wrong:
notebooks/TROUBLESHOOTING.md.
"""

from __future__ import annotations  # an old Python must get as far as being told so

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.getcwd()]:  # started with -m: a random.py here would be Python's
    del sys.path[0]

import importlib
import importlib.machinery
import importlib.util
import operator
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent  # the repository
if not __package__:  # run as a file: Python then looks for modules in this folder first, where it finds our site.py
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    if sys.argv[1:2] != ["--try"]:  # which is to find the package only if it is installed
        sys.path.insert(0, str(ROOT))

MEMORY, DISK = 2e9, 1e9  # bytes: what every chapter gets by with, and room for what training keeps
OLDEST = (3, 11)
EXTRAS = ("course", "train")  # what the notebooks need beside the package's own requirements
# Packages that are imported under another name, or load most of themselves only once something is taken from them.
MODULES = {
    "pillow": "PIL.Image",
    "scikit-learn": "sklearn.metrics",
    "ipython": "IPython",
    "matplotlib": "matplotlib.pyplot",
    "transformers": "transformers:LlavaForConditionalGeneration",
    "datasets": "datasets:Dataset",
    "trl": "trl:DPOTrainer",
}
TIED = ("torchvision", "torchaudio")  # not needed, but made for one torch each: others fail to load beside a wrong one
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
UNKNOWN, LOST = "unknown version", "Python does not find it"
ANEW = "clone the repository anew, from the page that you have it from"
PIP = f"{shlex.quote(sys.executable)} -m pip"


class Finding(NamedTuple):
    """One thing looked at: what was found, and, if it is wrong, the command that mends it, or advice without one."""

    what: str
    found: str
    mend: str = ""
    advice: str = ""


def examine(here: bool = False) -> list[Finding]:
    """Look at Python, files named as its modules, packages, cores, memory, disk, GPU and the shipped data's checksums.

    here: try only what every chapter loads anyway, in this process, as a notebook's first cell does.
    """
    system = look_at_system()
    if system.mend or system.advice:
        return [system]  # nothing can be installed there
    tried = {name: attempt(name) for name in ("torch", *TIED, "cotgen_lite.generate.pipeline")} if here else None
    packages = look_at_packages(requirements(), tried)
    return [system, *look_at_names(Path.cwd()), *packages, *look_at_machine(ROOT), look_at_data()]


def look_at_system() -> Finding:
    """Python and the system below it: whether there are packages for them at all."""
    said = f"{platform.python_version()}, {platform.system()} on {platform.machine()}"
    if sys.version_info < OLDEST:
        newer = next((f"python3.{minor}" for minor in (11, 12, 13) if shutil.which(f"python3.{minor}")), "")
        mend = f"make course PYTHON={newer}" if newer else ""
        return Finding("Python", said, mend, "" if newer else "install Python 3.11 or newer, from python.org")
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        advice = "use Colab, or a Linux container; on an Apple chip, install a Python for arm64"
        return Finding("Python", f"{said}, for which there is no torch", "", advice)
    if sys.maxsize < 2**32:
        return Finding("Python", f"{said}, of 32 bits, for which there is no torch", "", "install a Python of 64 bits")
    return Finding("Python", said)


def look_at_names(folder: Path) -> list[Finding]:
    """Each file of a folder that Python would load there in place of a module of its own; our site.py is none."""
    if folder == Path(__file__).resolve().parent:
        return []
    always = importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter  # which are asked before folders
    own = [file for file in sorted(folder.glob("*.py")) if file.stem in sys.stdlib_module_names]
    hiding = [file for file in own if not any(finder.find_spec(file.stem) for finder in always)]
    return [
        Finding("file", f"{file} hides Python's own {file.stem} from what runs beside it", advice=f"rename {file}")
        for file in hiding
    ]


def requirements() -> list[str]:
    """What the package requires, as its metadata puts it, from the pyproject.toml beside it if that is there."""
    import tomllib  # not in a Python that is too old

    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        try:
            return metadata.requires("cotgen-lite") or []
        except metadata.PackageNotFoundError:
            return []
    extras = project.get("optional-dependencies", {}).items()
    return [*project["dependencies"], *(f'{one}; extra == "{extra}"' for extra, some in extras for one in some)]


def look_at_packages(required: Sequence[str], tried: dict[str, str] | None = None) -> list[Finding]:
    """Each package that is missing, of a wrong version, or fails to load, and why; one line if there is none.

    required: as in a package's metadata; of an extra that the notebooks do without, only if all of it is installed.
    tried: what came of loading some modules, "" if nothing is wrong; by default all are tried, in another process.
    """
    again, then = how_to_install()
    versions = {name: installed(name) for name, _, _ in map(parse, required)}
    wrong: dict[str, Finding] = {}
    modules: dict[str, str] = {}
    for name, bounds, extra in map(parse, required):
        whole = all(versions[one] for one, _, other in map(parse, required) if other == extra)
        if extra and not whole and (extra not in EXTRAS or on_colab()):
            continue
        if not versions[name]:
            wrong[name] = Finding(name, "missing", again, then)
        elif not fits(versions[name], bounds):
            wrong[name] = Finding(name, f"{versions[name]}, and {bounds} is needed", again, then)
        elif extra in ("", *EXTRAS):
            modules[name] = MODULES.get(name.lower(), name.replace("-", "_"))
    beside = [name for name in TIED if find(name)]
    tried = try_apart([*beside, *modules.values(), "cotgen_lite"]) if tried is None else tried
    broken = [name for name in beside if tried.get(name)]
    for name in broken:
        wrong[name] = Finding(name, f"{tried[name]} (it is not needed)", f"{PIP} uninstall -y {name}")
    for name, module in modules.items():
        reason = tried.get(module) or ("" if find(module) else LOST)
        if reason:
            pinned = name if versions[name] == UNKNOWN else f"{name}=={versions[name]}"
            mend = again if "No module named" in reason else f"{PIP} install --force-reinstall --no-deps {pinned}"
            cause = next((one for one in broken if one in reason or tried[one] == reason), "")
            mend = wrong[cause].mend if cause else mend
            wrong[name] = Finding(name, f"{versions[name]}, {reason}", mend, then if mend == again else "")
    for name in ("cotgen_lite", "cotgen_lite.generate.pipeline"):
        if tried.get(name) and (name == "cotgen_lite" or not wrong):
            wrong[name] = Finding(name, tried[name], again, then)
    if not required:
        return [Finding("packages", f"no pyproject.toml in {ROOT}, and no metadata", advice=ANEW)]
    fine = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if versions.get(name))
    return [*wrong.values()] or [Finding("packages", fine or "all fit")]


def how_to_install() -> tuple[str, str]:
    """The command that installs what the course needs, and what to do after it, if anything.

    Outside of an environment it is that of the course, since many a system lets nobody install into its own Python.
    """
    home = ROOT / ".venv/bin/python"
    if not (in_environment() or on_colab()) and (ROOT / "Makefile").exists():
        if home.exists():
            command = f"{shlex.quote(str(home))} {shlex.quote(str(Path(__file__).resolve()))}"
            return command, "go on with that Python, which is the course's own, as `make lab` does"
        if shutil.which("make"):
            return f"make -C {shlex.quote(str(ROOT))} env", "go on with .venv/bin/python, as `make lab` does"
    return f"{PIP} install -e {shlex.quote(str(ROOT) if on_colab() else f'{ROOT}[{EXTRAS[0]},{EXTRAS[1]}]')}", ""


def in_environment() -> bool:
    """Whether this Python is a virtual environment's or conda's; sys.prefix does not tell it under `python -S`."""
    venv = any((folder / "pyvenv.cfg").is_file() for folder in Path(sys.executable).parents[:2])
    return venv or Path(sys.prefix, "conda-meta").is_dir()


def parse(requirement: str) -> tuple[str, str, str]:
    """A requirement's name, bounds and extra, e.g. ("trl", ">=1.16,<2", "train")."""
    line, _, marker = requirement.partition(";")
    name, _, bounds = re.match(r"\s*([\w.-]+)(\[.*?\])?(.*)", line).groups()  # type: ignore[union-attr]
    extra = re.search(r"extra\s*==\s*[\"']([\w-]+)", marker)
    return name, bounds.strip(" ()"), extra[1] if extra else ""


def fits(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as ">=1.16,<2"; an unknown one is given the benefit of the doubt."""

    def spelled_out(match: re.Match) -> str:  # ~=1.4.2 is >=1.4.2,<1.5
        *start, last = match[1].split(".")[:-1]
        return f">={match[1]},<{'.'.join([*start, str(int(last) + 1)])}"

    def numbers(text: str) -> list[int]:
        found = [int(part) for part in re.match(r"[\d.]*", text)[0].split(".") if part]  # type: ignore[index]
        return found + [0] * (6 - len(found))

    bounds = re.sub(r"~=\s*(\d+(?:\.\d+)+)", spelled_out, bounds)
    parts = re.findall(r"([<>=!]=?)\s*([\w.+]+)", bounds)
    return version == UNKNOWN or all(COMPARE[sign](numbers(version), numbers(bound)) for sign, bound in parts)


def installed(name: str) -> str:
    """The version of an installed package, UNKNOWN if nothing says it, "" if there is no such package."""
    try:
        return metadata.version(name) or UNKNOWN
    except Exception:  # not there, or its metadata is unreadable: what counts is whether it loads
        return UNKNOWN if find(MODULES.get(name.lower(), name.replace("-", "_"))) else ""


def find(module: str) -> bool:
    """Whether Python finds a package of that name; a folder without code that only has the name is none."""
    try:
        spec = importlib.util.find_spec(re.split(r"[.:]", module)[0])
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def attempt(target: str) -> str:
    """Load a module, or what it has under a name ("trl:DPOTrainer"): "" if that works, else why not."""
    module, _, name = target.partition(":")
    if not find(module):
        return "" if module in TIED else LOST
    try:
        loaded = importlib.import_module(module)
        if name:
            getattr(loaded, name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a package may raise anything, and even end Python
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    copy = Path(loaded.__file__ or "").resolve().parent
    return f"Python loads another copy of it, in {copy}" if module == "cotgen_lite" and copy != ROOT / module else ""


def try_apart(targets: Sequence[str], seconds: float = 300) -> dict[str, str]:
    """`attempt` of each in another process; where one ends that process, another one goes on behind it."""
    flags = [flag for flag, on in (("-S", sys.flags.no_site), ("-I", sys.flags.isolated)) if on]
    tried: dict[str, str] = {}
    while left := [one for one in targets if one not in tried]:
        command = [sys.executable, *flags, "-X", "utf8", str(Path(__file__).resolve()), "--try", *left]
        try:
            run = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
            out, end = run.stdout, f"ends Python (exit status {run.returncode}) when it is loaded"
        except subprocess.TimeoutExpired as error:
            out, end = error.stdout or b"", f"is not loaded after {seconds:.0f} seconds"
        said = re.findall(r"^\x1e(.*?)\x1f(.*)$", out.decode("utf-8", "replace"), re.MULTILINE)
        tried |= {name: reason for name, reason in said if name in left}
        if stuck := [one for one in left if one not in tried]:
            tried[stuck[0]] = end
    return tried


def look_at_machine(folder: Path) -> list[Finding]:
    """Cores and threads, what another program left behind, free memory, and free disk of a folder."""
    from cotgen_lite.hub import free_memory  # not in a Python that is too old

    (cores, shown), memory, disk = usable_cores(), free_memory(), shutil.disk_usage(folder).free
    threads = os.environ.get("OMP_NUM_THREADS", "")
    number = threads.split(",")[0].strip()
    odd = not (number.isdecimal() and 1 <= int(number) <= cores) if threads else cores < shown
    said = f"{cores}{f' of {shown}' if cores < shown else ''}{f', OMP_NUM_THREADS={threads}' if threads else ''}"
    left = [name for name in LAUNCHERS if name in os.environ]
    alone = all(os.environ.get(name, value) == value for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")))
    alone = alone and ("LOCAL_RANK" not in left or "MASTER_ADDR" in left)  # else training looks for that, and fails
    waits = f"{', '.join(f'{name}={os.environ[name]}' for name in left)}: training would wait for other processes"
    findings = [
        Finding("cores", said, f"export OMP_NUM_THREADS={cores}" if odd else ""),
        Finding(
            "memory",
            "this system does not say" if memory is None else f"{memory / 1e9:.1f} GB free",
            advice="close other programs and kernels" if memory is not None and memory < MEMORY else "",
        ),
        Finding("disk", f"{disk / 1e9:.1f} GB free", f"{PIP} cache purge" if disk < DISK else ""),
    ]
    return [*findings, Finding("launcher", waits, f"unset {' '.join(left)}")] if not alone else findings


def usable_cores() -> tuple[int, int]:
    """The cores that this process may use, and how many there seem to be: libraries overlook a container's quota."""
    shown = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(shown, -(-int(quota) // int(period)))), shown
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return shown, shown


def look_at_data(root: Path | None = None) -> Finding:
    """The data folder: each shipped file that is missing or damaged, by the list of their checksums."""
    from cotgen_lite.hub import damaged_files, data_root, git_restore, read_checksums  # not in a Python that is too old

    root, given = root or data_root(), os.environ.get("COTGEN_DATA")
    try:
        wrong = damaged_files(root)
        said = "; ".join(wrong[:5]) + f" (and {len(wrong) - 5} more)" * (len(wrong) > 5)
        said = said or f"{len(read_checksums(root))} files, all whole"
    except OSError as error:
        wrong, said = ["unreadable"], f"{type(error).__name__}: {error}"
    if not wrong:
        return Finding("data", said)
    if given:
        return Finding("data", f"in COTGEN_DATA={given}: {said}", "unset COTGEN_DATA")
    if (ROOT / ".git").exists():
        return Finding("data", said, git_restore())
    return Finding("data", said, advice=ANEW)


def on_colab() -> bool:
    """Whether this is Colab, which has what notebooks need in versions of its own."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def as_text(findings: Iterable[Finding]) -> str:
    """One line a finding; then one command that mends what a command can, and what else to do."""
    findings = list(findings)
    wrong = [one for one in findings if one.mend or one.advice]
    lines = [f"{'✗' if one in wrong else '✓'} {one.what}: {one.found}" for one in findings]
    commands = list(dict.fromkeys(one.mend for one in wrong if one.mend))
    advice = list(dict.fromkeys(one.advice for one in wrong if one.advice))
    # Installing comes after uninstalling, and what sets the shell up comes first.
    commands.sort(key=lambda one: (not one.startswith(("export", "unset")), " install " in one))
    if commands:
        lines += ["", "To mend it, in a terminal:", f"    {' && '.join(commands)}"]
    return "\n".join([*lines, *(f"{'Then' if commands else 'To mend it'}: {one}" for one in advice)])


def say(text: str, end: str = "\n") -> None:
    """Print a text, whatever characters standard output can hold."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate({ord("✓"): "+", ord("✗"): "x"}).encode(encoding, "backslashreplace").decode(encoding)
    print(text, end=end)


def check_up() -> None:
    """Print what is wrong with this machine and what mends it, or that it is ready; for a notebook's first cell."""
    wrong = [one for one in examine(here=True) if one.mend or one.advice]
    say(as_text(wrong) if wrong else "This machine is ready for the course.")


def main() -> None:
    """Print what was found; exit status 1 if anything is wrong."""
    if sys.argv[1:2] == ["--try"]:
        for target in sys.argv[2:]:
            reason = attempt(target)
            print(f"\n\x1e{target}\x1f{reason}", flush=True)
        return
    findings = examine()
    wrong = any(one.mend or one.advice for one in findings)
    say(as_text(findings) + ("" if wrong else "\n\nThis machine is ready for the course."))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
