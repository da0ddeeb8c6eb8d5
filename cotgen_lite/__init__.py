"""A course on verifying and reinforcing image generation step by step (arXiv 2501.13926), at laptop scale.

Nothing is imported here: take what you need from the file whose job it is (`prompts`, `scenes`, `geneval`,
`tokenizer`, `showo`, `sampling`, `verifier`, `search`, ...), in that order, as the notebooks do.
"""

__version__ = "0.1.0"
