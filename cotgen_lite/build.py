"""`python -m cotgen_lite.build`: see `experiments/build.py`, which this calls."""

from cotgen_lite.experiments.build import main

if __name__ == "__main__":
    main()
