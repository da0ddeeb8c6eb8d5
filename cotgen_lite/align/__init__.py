"""Sections 3.3, 3.4 and 5: what the generator learns from verdicts."""
