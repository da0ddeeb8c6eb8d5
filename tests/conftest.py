"""Settings of the whole test run: no network, no window, few threads."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import matplotlib
import torch

# Not through the environment: the kernels of notebooks would inherit it and show no figures.
matplotlib.use("Agg")
torch.set_num_threads(min(2, torch.get_num_threads()))  # the models are too small to gain from more
