"""What a test does when this machine cannot give it its neighbour."""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]


def missing(reason: str) -> NoReturn:
    """Skip the test where something is missing; under CI=true fail it.

    A skip that nobody reads is how a test ground rots: where the machine is ours to set up, its absence is a fault.
    """
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{reason} (a skip elsewhere; a failure because CI is set)", pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program that the locked packages bring (beside the interpreter), or one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name}: neither beside {sys.executable} nor on PATH; `tools/bootstrap` installs it")
    return found
