"""docs/helm.md: its values are rendered, and its commands name what the release has."""

from __future__ import annotations

import re
import shlex

import click
import pytest
import yaml

from delta_sink.config import Source, load
from tests.chart.rendering import CHART, NAME, RELEASE, ROOT, kinds, one, pods
from tests.unit.test_docs import _parse

TEXT = (ROOT / "docs" / "helm.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VALUES = [yaml.safe_load(block) for language, block in FENCE.findall(TEXT) if language == "yaml"]
LINES = [
    shlex.split(line)
    for language, block in FENCE.findall(TEXT)
    if language == "sh"
    for line in block.replace("\\\n", " ").splitlines()
]


def test_the_whole_values_are_rendered_and_their_file_is_read(helm):
    objects = helm.objects({}, VALUES[0])
    text = one(objects, "ConfigMap", f"{NAME}-config")["data"]["sink.yaml"]
    asked = []

    def read_file(path):
        asked.append(path)
        return "x"

    assert load([Source("sink.yaml", text)], [], env={}, read_file=read_file).name == "orders"
    (path,) = asked
    for _, pod in pods(objects):
        mounts = pod["containers"][0]["volumeMounts"]
        assert any(path.startswith(mount["mountPath"] + "/") for mount in mounts)


@pytest.mark.parametrize("number", range(1, len(VALUES)))
def test_values_of_the_page_do_something(helm, number):
    before = helm.objects({}, VALUES[0])
    over = {
        f"{group}/{key}": value
        for group, keys in VALUES[number].items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
    over |= {key: value for key, value in VALUES[number].items() if not isinstance(value, dict)}
    after = helm.objects(over, VALUES[0])
    assert after != before
    assert kinds(after)


def test_commands_name_the_chart_the_release_and_its_workers(helm):
    objects = helm.objects({}, VALUES[0])
    names = {found["metadata"]["name"] for found in objects if found["kind"] == "Deployment"}
    assert len(LINES) >= 6
    for words in LINES:
        assert words[0] in ("helm", "kubectl"), words
        if words[2] == "namespace":
            assert words[3] == "lake"
            continue
        assert words[words.index("--namespace") + 1] == "lake"
        if words[0] == "helm":
            assert words[1] in ("install", "upgrade", "test", "uninstall")
            assert words[2] == RELEASE
            assert words[3] == str(CHART.relative_to(ROOT)) or words[1] in ("test", "uninstall")
            continue
        if "create" in words:
            made = words[words.index("create") + 1 :]
            if made[0] == "secret":
                assert made[2] in {v["secret"]["secretName"] for v in VALUES[0]["extraVolumes"]}
            else:
                assert made[0] in ("role", "rolebinding")
            continue
        if "delete" in words:
            assert one(objects, "Pod", words[words.index("pod") + 1])
            continue
        (target,) = [word for word in words if word.startswith(("deploy/", "deployment/"))]
        assert target.partition("/")[2] in names
        if "exec" in words:
            _parse(shlex.join(words[words.index("--") + 1 :]))


def test_a_wrong_command_in_a_pod_would_be_noticed():
    with pytest.raises(click.UsageError):
        _parse("delta-sink control compcat -c /etc/delta-sink/sink.yaml")
