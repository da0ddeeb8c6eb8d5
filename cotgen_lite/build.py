"""`python -m cotgen_lite.build`: see `experiments/build.py`, which this calls.

It stands here so that the command is short.
"""

from cotgen_lite.experiments.build import main

if __name__ == "__main__":
    main()
