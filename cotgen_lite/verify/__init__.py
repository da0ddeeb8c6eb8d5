"""Sections 3.2, 4 and 5: verifiers, what they learn from, and search with them."""
