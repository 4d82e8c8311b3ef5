"""The fixture `helm`: built once into the cache of the tests' servers."""

from __future__ import annotations

import os

import pytest

from tests.chart.rendering import Helm
from tests.services.install import CannotInstall, helm_binary


@pytest.fixture(scope="session")
def helm_program():
    """Return helm's program; without Go the tests are skipped, under CI they fail."""
    try:
        return helm_binary()
    except CannotInstall as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def helm(helm_program, tmp_path):
    """Return helm over the chart."""
    return Helm(helm_program, tmp_path)
