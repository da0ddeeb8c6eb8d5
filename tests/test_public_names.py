"""What notebooks import from the package by name: all of it is there, and nothing is loaded before it is asked for."""

import subprocess
import sys

import pytest

import cotgen_lite


@pytest.mark.parametrize("name", cotgen_lite.__all__)
def test_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(cotgen_lite, name)
    assert name in dir(cotgen_lite)
    assert not callable(found) or found.__doc__


def test_unknown_name_is_refused_in_a_sentence() -> None:
    with pytest.raises(AttributeError, match="cotgen_lite has no 'draw_all'"):
        cotgen_lite.draw_all  # noqa: B018


def test_importing_the_package_loads_no_torch() -> None:
    job = "import sys, cotgen_lite; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=True).stdout == "set()\n"
