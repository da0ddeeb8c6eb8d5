"""What the notebooks show: exercises, figures and widgets, chapter by chapter."""
