"""The paper's own models, its detector, prompts and data sets."""
