"""Real servers for tests: the fixtures `kafka`, `minio` and `dynamodb`.

They stand for running servers, the same ones for a whole run: under pytest-xdist every test that
asks for one runs in the same worker, so that a broker is restarted under nobody else. Tests share
nothing on them: each takes topics, groups, buckets and tables of its own.

A server that cannot be installed for lack of a program means a skip that says which one; under
`CI=true`, a failure.
"""

from __future__ import annotations

import faulthandler
import os
import sys

import pytest

from tests.services.install import CannotInstall, InstallFailed
from tests.services.servers import TITLES, Servers, installed

_STARTED = pytest.StashKey[list[str]]()
_STDERR = pytest.StashKey[int]()

STUCK_AFTER_S = 60.0
"""How long a test may outlive its time before its process is ended."""


@pytest.fixture(scope="session")
def servers(request):
    """Return the set of servers of this run."""
    with Servers() as servers:
        yield servers
        servers.keeps_logs = request.session.testsfailed > 0
        _note(request.config, servers)


@pytest.fixture(scope="session")
def kafka(servers):
    """Return the running broker, a `tests.services.kafka.Kafka`."""
    return _running(servers, "kafka")


@pytest.fixture(scope="session")
def minio(servers):
    """Return the running S3 server, a `tests.services.minio.Minio`."""
    return _running(servers, "minio")


@pytest.fixture(scope="session")
def dynamodb(servers):
    """Return the running DynamoDB server, a `tests.services.dynamodb.DynamoDb`."""
    return _running(servers, "dynamodb")


def _running(servers: Servers, name: str):
    try:
        return servers.get(name)
    except CannotInstall as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI runs every test: {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _no_producer_outlives_its_test():
    yield
    sinks = sys.modules.get("tests.process.sinks")  # most tests have no use for it
    for producer in list(sinks.LedgerProducer.running) if sinks else ():
        producer.end()


# --- a test that hangs ---------------------------------------------------------------------------
#
# pytest-timeout raises in the main thread, once. It cannot reach a thread that waits inside a C
# library, nor a teardown that hangs after it. A run that hangs for ever names no test: so the
# process is ended, by a thread that needs no interpreter, and pytest-xdist names the test.


def pytest_configure(config):
    """Keep the error output as it is before tests' output is captured."""
    config.stash[_STDERR] = os.dup(sys.__stderr__.fileno())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """End the process, with a traceback of every thread, when a test is stuck."""
    marker = item.get_closest_marker("timeout")
    time_s = float(marker.args[0] if marker else item.config.getini("timeout"))
    _end_when_stuck(item.config, time_s + STUCK_AFTER_S)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node):
    """Watch the teardown of a test that failed, too: pytest itself ends the watch here."""
    _end_when_stuck(node.config, 2 * STUCK_AFTER_S)


def _end_when_stuck(config, after_s: float) -> None:
    faulthandler.dump_traceback_later(after_s, exit=True, file=config.stash[_STDERR])


# --- which tests need servers -------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark every test that needs a server: it is slow, and runs where the servers are."""
    for item in items:
        if _needed(item):
            item.add_marker(pytest.mark.process)
            item.add_marker(pytest.mark.xdist_group("services"))


def pytest_collection_finish(session):
    """Install what the chosen tests need, before any test's time begins to run."""
    if session.config.option.collectonly:
        return
    for name in sorted({name for item in session.items for name in _needed(item)}):
        try:
            installed(name)
        except (CannotInstall, InstallFailed):
            continue  # the fixture says so, of each test


def _needed(item) -> list[str]:
    """Return the servers that a test asks for, itself or through its fixtures."""
    definitions = getattr(item, "_fixtureinfo", None)
    if definitions is None:
        return []
    ours = {
        name
        for name, found in definitions.name2fixturedefs.items()
        if name in TITLES and any(each.func.__module__ == __name__ for each in found)
    }
    # A fixture of the same name that a module has for itself hides ours, unless it asks for it.
    return sorted(name for name in ours if _reaches_ours(definitions.name2fixturedefs[name]))


def _reaches_ours(found) -> bool:
    name = found[-1].argname
    for definition in reversed(found):
        if definition.func.__module__ == __name__:
            return True
        if name not in definition.argnames:
            return False
    return False


# --- what the run says of them ------------------------------------------------------------------


def _note(config, servers: Servers) -> None:
    titles = servers.titles()
    if servers.keeps_logs:
        titles.append(f"logs kept in {servers.folder}")
    output = getattr(config, "workeroutput", None)
    if output is None:
        config.stash.setdefault(_STARTED, []).extend(titles)
    else:
        output["services"] = titles


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take over what a worker of pytest-xdist had started."""
    titles = getattr(node, "workeroutput", {}).get("services", [])
    node.config.stash.setdefault(_STARTED, []).extend(titles)


def pytest_terminal_summary(terminalreporter, config):
    """Say which real servers the tests ran on."""
    for title in config.stash.get(_STARTED, []):
        terminalreporter.write_line(f"services: {title}")
