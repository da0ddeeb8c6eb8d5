"""Which file and model lives where, whether it is whole, and on which device it runs; files written atomically.

Everything else stands on this. Read on in `prompts.py`.
"""

import copy
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MANIFEST = "manifest.json"
CHECKSUMS = "sha256.json"  # in a data folder: the checksum of every file of it but this one and the README


_SHIPPED = Path(__file__).resolve().parent.parent / "data"


def data_root() -> Path:
    """The folder of shipped data: $COTGEN_DATA if set, else `data/` beside the package."""
    given = os.environ.get("COTGEN_DATA")
    return Path(given) if given else _SHIPPED


def data_path(name: str) -> Path:
    """The path of a shipped file or folder, whole, e.g. "world/icons.json".

    FileNotFoundError if it is missing, ValueError if it is damaged; both say how to get it back. ValueError for a name
    that leads out of the data folder.
    """
    path = data_root() / _inside(name)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {restore(data_root())}.")
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
        root, folder = data_root(), data_path(f"models/{name}")
        data_path(f"models/{name}/{MANIFEST}")
    try:
        sums = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST} is damaged: {restore(root)}.") from None
    for file, expected in sums.items():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing: {restore(root)}.")
        if file_sha256(folder / file) != expected:
            raise ValueError(f"{folder / file} is damaged: {restore(root)}.")
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
    full = path.absolute()
    for root in (full, *full.parents)[:4]:  # models/orm/config.json lies three folders deep
        if (root / CHECKSUMS).is_file() or _is_shipped(root):
            for name, wrong in _damage(root, full.relative_to(root).as_posix()):
                kind: type[Exception] = FileNotFoundError if wrong == "missing" else ValueError
                raise kind(f"{root / name} is {wrong}: {restore(root)}.")
            break
    return path


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
        raise FileNotFoundError(f"{path} is missing: {restore(root)}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):  # of JSON and of UTF-8 too
        pass
    raise ValueError(f"{path} is damaged: {restore(root)}.")


def write_checksums(root: Path, files: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write the list of a data folder: of all files there, or of some whose checksums are known."""
    if files is None:
        there = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
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
            elif _sha256_of(file, file.stat().st_size, file.stat().st_mtime_ns) != expected:
                yield name, "damaged"


@cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """As `file_sha256`, read once in a process unless the file changes."""
    return file_sha256(path)


def _is_shipped(root: Path) -> bool:
    return root.resolve() == _SHIPPED


def restore(root: Path) -> str:
    """How to get a file of a data folder back, or to say that it is as it should be."""
    if _is_shipped(root):
        return "restore it with `git checkout -- data`; if you changed it, run `python -m cotgen_lite.build checksums`"
    again, anew = (f"`python -m cotgen_lite.build {deed}--out {root}`" for deed in ("", "checksums "))
    return f"make it again with {again}, or point COTGEN_DATA to another folder; if you changed it, run {anew}"


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What a killed process may leave of a file that it was writing: by `in_place_of`, and by safetensors.
HALF_WRITTEN = re.compile(r".+\.[0-9a-f]{32}\.part|\.tmp\w{6}")


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
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit - taken)


def chosen_device(device: str) -> str:
    """The device that a loader's argument names: "auto" takes a GPU if there is one."""
    import torch  # not before it is needed: the doctor works without

    from cotgen_lite.inputs import shown

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type if isinstance(device, str) else ""
    except RuntimeError:
        kind = ""
    if not kind:
        raise ValueError(f'device must be "auto", "cpu", "cuda" or another name of torch\'s, got {shown(device)}.')
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device is {device!r}, but there is no such GPU: give "auto" or "cpu".')
    return device


# Names of weights, in the order in which they are looked for. transformers writes "model", Show-o's own classes
# "pytorch_model". Those in .bin are pickles, out of which transformers lets nothing but tensors come (weights_only).
WEIGHTS = (
    *(f"{stem}.safetensors{end}" for end in ("", ".index.json") for stem in ("model", "pytorch_model")),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
WHERE = ("cache_dir", "local_files_only", "revision", "subfolder", "token")  # what tells transformers where to look
MOST_LAYERS = 1000  # of a network, a config that asks for more is damaged, and would hang


def read_config(path: str | Path, what: str, known: Collection[str], **where: Any) -> dict[str, Any]:
    """The fields of config.json in a model's folder or of a hub name, read before anything else of it.

    what: the model's name in errors; known: the model types that will do; where: transformers' `WHERE`. OSError if
    there is none, ValueError if it is damaged or another kind of model's.
    """
    _check_path(path, what)
    try:
        file, why = _file_of(path, "config.json", where), "it has no config.json"
    except (OSError, ValueError) as error:  # what the hub says
        file, why = None, first_line(error)
    if file is None:
        why = why if Path(path).is_dir() else f"no folder here, and not had from the hub: {why}"
        raise OSError(f"No {what} can be read from {str(path)!r} ({why}): build or download it again.")
    fields = _read_json(file)
    kind = fields.get("model_type", fields.get("_class_name"))  # the latter in files of Show-o's own classes
    if not isinstance(kind, str) or not {kind, kind.lower().removesuffix("v2")} & set(known):
        found = f"of the kind {kind!r}" if kind else "without a model_type"
        raise ValueError(f"{file} is {found}, not of a {what}: give the folder or hub name of a {what}.")
    for name, count in _numbers(fields):
        if count > (MOST_LAYERS if name.endswith(("layers", "depths")) else 2**31):
            raise ValueError(f"{file} is damaged ({name} is {count}): build or download it again.")
    return fields


def load_complete(kind: Any, path: str | Path, what: str, known: Collection[str] = (), **settings: Any) -> Any:
    """A model of a transformers class by `kind.from_pretrained(path, **settings)`, in evaluation mode.

    what: its name in errors; known: the model types that will do, by default the class's. OSError if there is none.
    ValueError for another kind of model, or if weights are missing, which would be random, or damaged.
    """
    model, report = _load(kind, kind.from_pretrained, path, what, known or [kind.config_class.model_type], settings)
    if lacking := sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"]))):
        raise ValueError(
            f"{path} lacks {len(lacking)} weights of a {type(model).__name__.strip('_')} ({lacking[0]}, ...), which "
            "would be random: give a complete checkpoint of that kind."
        )
    return model.eval()


def load_exactly(load: Any, path: str | Path, what: str, **settings: Any) -> Any:
    """A model of ours by a class's `from_pretrained` of transformers, float32 unless `dtype` says else, in eval mode.

    what: its name in errors. ValueError if files are missing, damaged or another model's, or if the weights' names or
    shapes are not exactly the model's: with some left random it would still draw, badly.
    """
    kind = load.__self__
    try:
        model, report = _load(kind, load, path, what, [kind.config_class.model_type], settings)
    except OSError as error:
        raise ValueError(str(error)) from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[fault])):
            raise ValueError(
                f"The weights in {path} do not fit a {what}: {len(names)} {fault.replace('_', ' ')}, {names[0]} first; "
                "check that they belong to config.json, or build or download the model again."
            )
    return model.eval()


def load_tokenizer(path: str | Path) -> Any:
    """The text tokenizer in a folder or of a hub name; ValueError if there is none or it is damaged."""
    from transformers import AutoTokenizer  # see `chosen_device`

    return read_whole(AutoTokenizer.from_pretrained, path, "text tokenizer")


def read_whole(load: Callable[..., Any], path: str | Path, what: str, **settings: Any) -> Any:
    """What a `from_pretrained` of transformers makes of a folder or hub name, none of its code being run.

    ValueError in one sentence, whatever it is that the library makes of files that are missing or damaged.
    """
    _check_path(path, what)
    try:
        return load(str(path), trust_remote_code=False, **settings)
    except Exception as error:
        raise ValueError(
            f"No {what} can be read from {path} ({first_line(error)}): its files are missing, damaged or of another "
            "kind; build or download it again."
        ) from error


def _load(
    kind: Any, load: Callable[..., Any], path: str | Path, what: str, known: Collection[str], settings: dict[str, Any]
) -> tuple[Any, Any]:
    """A model and transformers' report, after a look at config.json and at names and sizes of the weights."""
    import torch  # see `chosen_device`
    from transformers import AutoConfig

    check_dtype(settings.setdefault("dtype", torch.float32))
    where = {name: settings[name] for name in WHERE if name in settings}
    fields = read_config(path, what, known, **where)
    reader, config = getattr(kind, "config_class", None) or AutoConfig, settings.pop("config", None)
    ours = "model_type" in fields and reader.__module__.startswith("cotgen_lite.")  # whose files state all sizes
    if ours and (lost := sorted(reader.__annotations__.keys() - fields.keys())):
        raise ValueError(f"The config.json of {path} lacks {', '.join(lost)}: build or download it again.")
    if config is None:
        read_with = {**settings, "return_unused_kwargs": True}
        config, settings = read_whole(reader.from_pretrained, path, what, **read_with)
    name, size = _weights_of(path, what, where)
    config = copy.deepcopy(config)
    config.transformers_weights = name if ".safetensors" in name else None

    def build() -> Any:
        with torch.device("meta"):  # shapes alone
            return getattr(kind, "from_config", kind)(copy.deepcopy(config))

    numbers = sum(weights.numel() for weights in read_whole(lambda _, **__: build(), path, what).parameters())
    if numbers > 2 * size:  # even at four bits each
        raise ValueError(
            f"The config.json of {path} asks for {numbers:,} weights, but {name} has {size:,} bytes: one of them is "
            "damaged or another model's; build or download it again."
        )
    # Shapes that do not fit are reported with the rest, and refused by our callers.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    # Reading the config has taken away where to look.
    model, report = read_whole(load, path, what, config=config, **told, **{**where, **settings})
    vars(model.config).pop("transformers_weights", None)
    return model, report


def check_dtype(dtype: Any) -> None:
    """ValueError unless it is a type of numbers that weights can have."""
    import torch  # see `chosen_device`

    from cotgen_lite.inputs import shown

    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a torch.dtype such as torch.float32 or torch.bfloat16, got {shown(dtype)}.")


def _check_path(path: Any, what: str) -> None:
    from cotgen_lite.inputs import of_kind  # see `chosen_device`

    check_whole(Path(of_kind(path, f"the place of a {what}", (str, Path), "a folder or a hub name")))


def _file_of(path: str | Path, name: str, where: Mapping[str, Any]) -> Path | None:
    """A file in a folder or, fetched where that is needed, of a hub name; None if it has none."""
    from transformers.utils import cached_file

    folder = Path(path)
    if not folder.is_dir() and (folder.exists() or folder.is_absolute() or len(folder.parts) > 2):
        return None
    found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False, **where)
    return Path(found) if found else None


def _weights_of(path: str | Path, what: str, where: Mapping[str, Any]) -> tuple[str, int]:
    """Which of `WEIGHTS` a folder or hub name has, and of how many bytes; ValueError if none, or damaged."""
    found = ((name, file) for name in WEIGHTS if (file := _file_of(path, name, where)))
    name, file = next(found, ("", None))
    if file is None:
        raise ValueError(f"No {what} can be read from {path} (it has none of {', '.join(WEIGHTS)}): download it again.")
    if not name.endswith(".json"):
        return name, file.stat().st_size
    index = _read_json(file)
    shards, about = index.get("weight_map"), index.get("metadata")
    size = about.get("total_size") if isinstance(about, dict) else None
    if not isinstance(shards, dict) or not shards or not isinstance(size, int):
        raise ValueError(f"{file} is damaged (it lacks weight_map or total_size): download it again.")
    for shard in shards.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", shard):
            raise ValueError(f"{file} names {shard!r}, which is no file of weights beside it: download it again.")
    return name, size


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON file's fields; ValueError if it has none."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged (no JSON: {first_line(error)}): build or download it again.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} is damaged (it has no fields): build or download it again.")
    return fields


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers in JSON, and what each is called."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int):
        yield name, value


def publish(model: Any, folder: Path, settings: Mapping[str, object]) -> None:
    """Save a model's weights as fp16 safetensors, and the manifest that says how it was made."""
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    write_manifest(folder, settings)


def write_manifest(folder: Path, settings: Mapping[str, object]) -> None:
    """Record settings and every file's checksum; its presence says that the model is whole."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST and _listed(path.name))
    write_json(folder / MANIFEST, {"settings": settings, "sha256": {path.name: file_sha256(path) for path in files}})
