"""The fixture `kubernetes`: a real API server with its controllers, one for a whole run.

These tests are left out of `make test`: Kubernetes is built from its source, once, which takes
minutes. `make test-k8s` runs them, and `make test-long` does too.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.k8s.releases import Releases, open_namespace
from tests.services.install import (
    CannotInstall,
    InstallFailed,
    all_of_kubernetes,
    custom_resources,
)
from tests.services.kubernetes import Kubernetes

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark these tests; under pytest-xdist one worker has the one server."""
    for item in items:
        if HERE in item.path.parents:
            for marker in (pytest.mark.k8s, pytest.mark.long, pytest.mark.process):
                item.add_marker(marker)
            item.add_marker(pytest.mark.xdist_group("k8s"))


def pytest_collection_finish(session):
    """Build what the chosen tests need, before any test's time begins to run."""
    if session.config.option.collectonly:
        return
    if any(item.get_closest_marker("k8s") for item in session.items):
        try:
            all_of_kubernetes()
        except (CannotInstall, InstallFailed):
            return  # the fixture says so, of each test


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory):
    """Return the running control plane; without Go the tests are skipped with a sentence."""
    try:
        all_of_kubernetes()
        described = Kubernetes(tmp_path_factory.mktemp("k8s") / "plane")
    except CannotInstall as error:
        pytest.skip(str(error))
    with described as running:
        for path in sorted(custom_resources().glob("*.yaml")):
            running.define(path.read_text(encoding="utf-8"))
        yield running


@pytest.fixture
def namespace(kubernetes):
    """Return the name of a namespace of the test's own that enforces the policy Restricted."""
    name = f"lake-{uuid.uuid4().hex[:8]}"
    open_namespace(kubernetes, name)
    return name


@pytest.fixture
def releases(kubernetes, namespace, tmp_path):
    """Return helm over the chart in that namespace; what it installed is removed at the end."""
    with Releases(kubernetes, namespace, tmp_path) as releases:
        yield releases
