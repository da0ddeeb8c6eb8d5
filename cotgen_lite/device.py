"""Where models run."""

import torch


def chosen_device(device: str) -> str:
    """The device that a loader's argument names: "auto" takes a GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
