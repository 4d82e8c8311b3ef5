"""The lines with helm and kubectl that the docs and the chart's notes have, run as they stand.

Those that reach into a container (`kubectl exec`, `kubectl logs`) need a node that runs one. Of
them it is tested that what they name is there; `delta-sink` behind `--` is parsed by
tests/chart/test_page.py.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import NAME, RELEASE, ROOT, laid_over, whole_values
from tests.chart.test_page import VALUES
from tests.k8s.releases import POLICY, Releases, open_namespace, wait_until
from tests.services.install import helm_binary

LINE = re.compile(r"^ *((?:helm|kubectl) .*)$", re.MULTILINE)
INSTALLER = "installer"
TARGETS = ("deploy/", "deployment/")


def lines(text: str) -> list[list[str]]:
    """Return the command lines of a text, as words, in their order."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in LINE.findall(joined)]


def lines_of(page: str) -> list[list[str]]:
    return lines((ROOT / page).read_text(encoding="utf-8"))


def installer_lines() -> list[list[str]]:
    """Return the lines of docs/helm.md that give somebody the right to install."""
    return [words for words in lines_of("docs/helm.md") if {"role", "rolebinding"} & set(words)]


def reaches_a_container(words: list[str]) -> bool:
    return words[0] == "kubectl" and bool({"exec", "logs"} & set(words))


class Desk:
    """A folder as a reader of the docs has it: the repository's chart, and values beside it."""

    def __init__(self, kubernetes, namespace: str, folder: Path) -> None:
        self.kubernetes = kubernetes
        self.namespace = namespace
        self.folder = folder
        (folder / "helm").symlink_to(ROOT / "helm")
        # The notes and the pages say `helm`, the one that is found first.
        (folder / "bin").mkdir()
        (folder / "bin" / "helm").symlink_to(helm_binary())

    def write(self, name: str, values) -> None:
        (self.folder / name).write_text(yaml.safe_dump(values), encoding="utf-8")

    def run(self, words: list[str]) -> str:
        """Return what a line printed; it must be one that says yes."""
        path = f"{self.folder / 'bin'}:{self.kubernetes.environment['PATH']}"
        command = ["/usr/bin/env", *words]
        done = self.kubernetes.run(command, self.folder, {"PATH": path})
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def follow(self, words: list[str]) -> None:
        """Run a line; of one that reaches into a container, see what it would reach."""
        if not reaches_a_container(words):
            self.run(words)
            return
        targets = [word for word in words if word.startswith(TARGETS)]
        if targets:
            self.run(["kubectl", "--namespace", self.namespace, "get", *targets])
            return
        selector = words[words.index("-l") + 1]
        found = self.run(
            ["kubectl", "-n", self.namespace, "get", "pods", "-o", "name", "-l", selector]
        )
        assert len(found.split()) >= 1, words


@pytest.fixture
def desk(kubernetes, tmp_path):
    """Return the desk; the namespace of the docs is removed at the end."""
    yield Desk(kubernetes, "lake", tmp_path)
    done = kubernetes.kubectl(
        "delete", "namespace", "lake", "--ignore-not-found", "--timeout", "60s"
    )
    assert done.returncode == 0, done.stderr


def test_the_lines_of_the_page_do_what_they_say(desk):
    desk.write("values.yaml", VALUES[0])
    (desk.folder / "kafka-password").write_text("hunter2")
    followed = lines_of("docs/helm.md")
    releases = Releases(desk.kubernetes, desk.namespace, desk.folder)
    removal = [words for words in followed if {"uninstall", "delete"} & set(words)]
    assert followed[-2:] == removal
    for words in followed[:-2]:
        desk.follow(words)
    assert sum(not reaches_a_container(words) for words in followed) >= 8
    assert RELEASE in desk.run(["helm", "list", "--namespace", "lake"])
    labels = desk.kubernetes.api.done("GET", "api/v1/namespaces/lake")["metadata"]["labels"]
    assert labels[POLICY] == "restricted"
    assert ("Pod", f"{NAME}-test") in releases.left()
    desk.follow(removal[0])
    wait_until(lambda: releases.left() == [("Pod", f"{NAME}-test")], "helm leaves its test's pod")
    desk.follow(removal[1])
    wait_until(lambda: releases.left() == [], "nothing of the release is left")


def test_the_lines_of_the_chart_s_readme_do_what_they_say(desk):
    open_namespace(desk.kubernetes, "lake")
    desk.write("orders.yaml", whole_values())
    followed = lines_of("helm/delta-sink/README.md")
    assert [words[1] for words in followed] == ["install", "test"]
    for words in followed:
        desk.follow(words)


def test_no_other_page_has_such_lines():
    """A page that gets some belongs to the pages above, whose lines are followed."""
    followed = {"docs/helm.md", "helm/delta-sink/README.md"}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    found = {str(page.relative_to(ROOT)) for page in pages if lines(page.read_text())}
    assert found | {"helm/delta-sink/README.md"} == followed


@pytest.mark.parametrize("component", ["writer", "compactor", "vacuum"])
def test_the_notes_name_three_commands_that_find_something(releases: Releases, tmp_path, component):
    over = {f"{each}/enabled": each == component for each in ("writer", "compactor", "vacuum")}
    said = releases.install(laid_over(whole_values(), over))
    followed = lines(said.partition("NOTES:")[2])
    assert [words[0] for words in followed] == ["helm", "kubectl", "kubectl"]
    desk = Desk(releases.kubernetes, releases.namespace, tmp_path)
    for words in followed:
        assert releases.namespace in words
        desk.follow(words)
    assert f"deploy/{NAME}-{component}" in followed[2]
    wait_until(lambda: releases.ready(component), "a pod that could be reached")


def test_a_line_that_names_nothing_would_be_noticed(releases: Releases, tmp_path):
    releases.install(whole_values())
    desk = Desk(releases.kubernetes, releases.namespace, tmp_path)
    for line in ("kubectl exec deploy/orders-writer -- true", "kubectl rollout status deploy/none"):
        with pytest.raises(AssertionError, match="not found"):
            desk.follow(shlex.split(line))
    with pytest.raises(AssertionError):
        desk.follow(shlex.split("kubectl logs -l app.kubernetes.io/instance=none"))
