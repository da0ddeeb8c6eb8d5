"""Sections 2 and 3.1: how images are drawn, step by step."""
