"""How models are loaded: config.json is read first, then names and sizes of the weights, and only then they.

So another kind of model, a damaged one, or one whose weights would be random is refused in a sentence, and no code of
its folder is run. Read next: muon.py.
"""

import copy
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file

from cotgen_lite.hub import check_whole, first_line
from cotgen_lite.inputs import of_kind, shown


def chosen_device(device: str) -> str:
    """The device that a loader's argument names: "auto" takes a GPU if there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type if isinstance(device, str) else ""
    except RuntimeError:
        kind = ""
    if not kind:
        raise ValueError(f'device must be "auto", "cpu", "cuda" or another name of torch\'s, got {shown(device)}.')
    if kind == "meta":
        raise ValueError('device is \'meta\', which holds no numbers: give "auto" or "cpu".')
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device is {device!r}, but there is no such GPU: give "auto" or "cpu".')
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(f'device is {device!r}, which torch cannot use here: give "auto" or "cpu".') from error
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


def load_rounded(
    kind: Any, path: str | Path, what: str, known: Collection[str], dtype: torch.dtype, **rounding: Any
) -> Any:
    """As `load_complete`, with arguments of transformers' that have it round weights, e.g. to 8 bits.

    What it then calls missing was not seen here, so it is not judged.
    """
    config, settings = _look(kind, path, what, known, {"dtype": dtype})
    model = read_whole(kind.from_pretrained, path, what, config=config, **{**settings, "dtype": dtype}, **rounding)
    vars(model.config).pop("transformers_weights", None)
    return model.eval()


def load_pickle(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain data alone, and no code is run.

    Whatever error damaged bytes lead to.
    """
    check_pickle(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def check_pickle(path: str | Path) -> None:
    """ValueError or BadZipFile if a file that `torch.save` wrote differs from its checksums, at which torch does not
    look. Files older than torch 1.6 have none."""
    if is_zipfile(path):
        with ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"the checksum of {damaged} in it differs")


def _load(
    kind: Any, load: Callable[..., Any], path: str | Path, what: str, known: Collection[str], settings: dict[str, Any]
) -> tuple[Any, Any]:
    """A model and transformers' report, after a look at its files."""
    config, settings = _look(kind, path, what, known, settings)
    # Shapes that do not fit are reported with the rest, and refused by our callers.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = read_whole(load, path, what, config=config, **told, **settings)
    vars(model.config).pop("transformers_weights", None)
    return model, report


def _look(
    kind: Any, path: str | Path, what: str, known: Collection[str], settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A model's config, which says where its weights are, and settings to load them with, after a look at config.json,
    at names and sizes of the weights and, where they are pickles, at their checksums."""
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
    name, size, files = _weights_of(path, what, where)
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
    for file in files:
        if file.endswith(".bin") and (pickled := _file_of(path, file, where)):
            read_whole(lambda _, pickled=pickled, **__: check_pickle(pickled), path, what)
    return config, {**where, **settings}  # reading the config has taken away where to look


def check_dtype(dtype: Any) -> None:
    """ValueError unless it is a type of numbers that weights can have."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a torch.dtype such as torch.float32 or torch.bfloat16, got {shown(dtype)}.")


def _check_path(path: Any, what: str) -> None:
    check_whole(Path(of_kind(path, f"the place of a {what}", (str, Path), "a folder or a hub name")))


def _file_of(path: str | Path, name: str, where: Mapping[str, Any]) -> Path | None:
    """A file in a folder or, fetched where that is needed, of a hub name; None if it has none."""
    folder = Path(path)
    if not folder.is_dir() and (folder.exists() or folder.is_absolute() or len(folder.parts) > 2):
        return None
    found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False, **where)
    return Path(found) if found else None


def _weights_of(path: str | Path, what: str, where: Mapping[str, Any]) -> tuple[str, int, list[str]]:
    """Which of `WEIGHTS` a folder or hub name has, their bytes, and in which files; ValueError if none, or damaged."""
    found = ((name, file) for name in WEIGHTS if (file := _file_of(path, name, where)))
    name, file = next(found, ("", None))
    if file is None:
        raise ValueError(f"No {what} can be read from {path} (it has none of {', '.join(WEIGHTS)}): download it again.")
    if not name.endswith(".json"):
        return name, file.stat().st_size, [name]
    index = _read_json(file)
    shards, about = index.get("weight_map"), index.get("metadata")
    if not isinstance(shards, dict) or not shards or not isinstance(about, dict):
        raise ValueError(f"{file} is damaged (it lacks weight_map or metadata): download it again.")
    for shard in shards.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", shard):
            raise ValueError(f"{file} names {shard!r}, which is no file of weights beside it: download it again.")
    names, size = sorted(set(shards.values())), about.get("total_size")
    if not isinstance(size, int):  # transformers does without
        files = [(shard, _file_of(path, shard, where)) for shard in names]
        if lost := [shard for shard, one in files if one is None]:
            raise ValueError(f"{path} lacks {lost[0]}, which {name} names: download it again.")
        size = sum(one.stat().st_size for _, one in files if one)
    return name, size, names


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
