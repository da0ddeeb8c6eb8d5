"""What names a run: a hash of all that it depends on, so that it never goes on from another's checkpoints.

Everything is written as JSON in one way, arrays by their bytes: equal inputs give equal names in every process,
whatever kind of number or string they came as. Read next: loading.py.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cotgen_lite.hub import write_atomically

if TYPE_CHECKING:
    from torch import nn

RUN = "run.txt"


def canonical(value: Any) -> Any:
    """A value as plain JSON: dataclasses by name and fields, arrays and tensors by shape, type and hash of the bytes.

    ValueError for what has no such form, as a function, an array of objects, or a NaN.
    """
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{value} cannot be part of what a run is named by: give finite numbers.")
        return float(value)
    if isinstance(value, np.generic):
        return canonical(value.item())
    if type(value).__module__.startswith("torch") and hasattr(value, "detach"):
        return _tensor(value)
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":  # whose bytes are addresses
        return _array(value, str(value.dtype))
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: {field.name: canonical(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {str(key): canonical(one) for key, one in value.items()}
        return {"pairs": sorted(([canonical(key), canonical(one)] for key, one in value.items()), key=json.dumps)}
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, set | frozenset):
        return sorted(map(canonical, value), key=json.dumps)
    if isinstance(value, Sequence):
        return [canonical(one) for one in value]
    raise ValueError(f"A {type(value).__name__} cannot be part of what a run is named by: give plain data.")


def _tensor(value: Any) -> dict[str, Any]:
    plain, dtype = value.detach().cpu(), str(value.dtype).removeprefix("torch.")
    return _array(plain.numpy() if hasattr(np, dtype) else plain.float().numpy(), dtype)  # numpy has no bfloat16


def _array(values: np.ndarray, dtype: str) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return {"shape": list(values.shape), "dtype": dtype, "sha256": digest}


def identity(*values: Any) -> str:
    """A name for plain data, 16 hexadecimal digits: equal for equal values, different for different ones."""
    written = json.dumps([canonical(value) for value in values], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def fingerprint(models: Sequence["nn.Module"], *settings: Any) -> str:
    """A name for all that a job depends on: networks' weights and buffers, by values and types, and plain data."""
    digest = hashlib.sha256(identity(*settings).encode())
    for model in models:
        for weights in (*model.parameters(), *model.buffers()):
            digest.update(json.dumps(_tensor(weights)).encode())
    return digest.hexdigest()[:16]


def named_by(*parts: Any) -> tuple[list["nn.Module"], list[Any]]:
    """What answers of verifiers, detectors or tokenizers depend on, for `fingerprint`: networks, and plain data.

    The data, of each: its class, its networks' configs, and what it calls `described`, or else those of its attributes
    that are plain.
    """
    from torch import nn  # not before it is needed

    networks: dict[int, nn.Module] = {}
    data: list[Any] = []
    for part in parts:
        holds = getattr(part, "__dict__", {})
        public = [one for name, value in holds.items() if not name.startswith("_") for one in _held(value)]
        candidates = (part, getattr(part, "model", None), *holds.values(), *public)
        its = list({id(one): one for one in candidates if isinstance(one, nn.Module)}.values())
        networks |= {id(one): one for one in its}
        told = getattr(part, "described", None)
        if told is None and not (isinstance(part, nn.Module) and hasattr(part, "config")):  # which says all of it
            told = plain_data(holds)
        data += [type(part).__name__, list(map(config_of, its)), told, [_code_of(one) for one in public]]
    return list(networks.values()), data


def _held(value: Any) -> list[Any]:
    """A value, or if it is a list or mapping of some what these hold."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else None
    return [value] if inner is None else [one for each in inner for one in _held(each)]


def _code_of(value: Any) -> list[Any]:
    """What tells one function from another: its code, and the plain values that it computes with; else nothing."""
    if isinstance(value, partial):
        return [_code_of(value.func), plain_data(dict(enumerate(value.args)) | value.keywords)]
    function = getattr(value, "__func__", value)
    if (code := getattr(function, "__code__", None)) is None:
        return [getattr(value, "__qualname__", "")]
    around = zip(code.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True)
    inner = [_code_of(one) for one in code.co_consts if hasattr(one, "co_code")]
    constants = plain_data(dict(enumerate(code.co_consts)))
    return [
        code.co_code,
        code.co_names,
        constants,
        inner,
        plain_data(dict(around) | vars(getattr(value, "__self__", function))),
    ]


def plain_data(holds: Mapping[Any, Any]) -> dict[str, Any]:
    """Of an object's attributes those that are plain data, its settings and tables; not caches, which are private, nor
    how often it was asked."""
    plain: dict[str, Any] = {}
    for name, value in holds.items():
        with suppress(ValueError):  # a network, whose weights count, or a tokenizer
            plain |= {} if str(name).startswith("_") or name == "passes" else {str(name): canonical(value)}
    return plain


def config_of(network: Any) -> dict[str, Any]:
    """What a network's config says of how it computes: with other rotary settings equal weights draw other images."""
    told = network.config.to_dict() if hasattr(getattr(network, "config", None), "to_dict") else {}
    return plain_data({name: value for name, value in told.items() if name not in _NOT_COMPUTED_WITH})


# Of a config: where it was loaded from and by what, which another copy of the same model says otherwise.
_NOT_COMPUTED_WITH = ("architectures", "transformers_version", "transformers_weights", "dtype", "torch_dtype")


def refuse_other_run(work_dir: Path, saved: str, run: str) -> None:
    """ValueError if the run saved in a folder is not this one; both are named by all that they depend on."""
    if saved != run:
        raise ValueError(
            f"{work_dir} holds the checkpoints of another run (other weights, data or settings): to go on with a run, "
            "load its model afresh, as training changes it in place; or take another folder, or delete this one to "
            "start afresh."
        )


def check_same_run(work_dir: Path, run: str) -> None:
    """Note in the folder which run it belongs to; ValueError if it is another one's, or holds checkpoints of nobody's.

    run: a name of all that the run depends on, as `identity` gives. ValueError too if the note is damaged.
    """
    note = work_dir / RUN
    if note.exists() or any(work_dir.glob("checkpoint*")):
        try:
            saved = note.read_text(encoding="utf-8") if note.exists() else ""
        except UnicodeDecodeError:
            raise ValueError(
                f"{note} is damaged, so nothing says whose run {work_dir} holds: delete that folder to start afresh."
            ) from None
        refuse_other_run(work_dir, saved, run)
    write_atomically(note, run)
