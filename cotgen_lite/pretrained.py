"""Loading transformers' models whole: a missing weight is an error here, where transformers warns and goes on."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cotgen_lite.hub import first_line


def load_complete(kind: Any, path: str | Path, **settings: Any) -> Any:
    """A model of a transformers class by `kind.from_pretrained(path, **settings)`, in evaluation mode.

    ValueError if weights are missing, which would be random, or if their file is damaged; OSError without a file.
    """
    try:
        model, report = kind.from_pretrained(path, output_loading_info=True, **settings)
    except SafetensorError as error:
        raise ValueError(f"The weights in {path} are damaged ({first_line(error)}): download them again.") from error
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(lacking)} weights of a {type(model).__name__.strip('_')} ({lacking[0]}, ...), which "
            "would be random: give a complete checkpoint of that kind."
        )
    return model.eval()
