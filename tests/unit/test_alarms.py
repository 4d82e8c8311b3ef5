"""The metrics that the docs name are declared, and the expressions for alarms fit them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from delta_sink.telemetry import METRICS, TAGS, Metric
from tests.unit.test_docs import PAGES, ROOT, TEXTS

SERIES = re.compile(r"delta_sink_[a-z_]*[a-z]")
SELECTOR = re.compile(r"(delta_sink_[a-z_]*[a-z])(?:\{([^}]*)\})?(?:\[(\w+)\])?")
GROUPING = re.compile(r"\b(?:by|without) \(([^)]*)\)")
COUNTED = re.compile(r"\b(?:rate|irate|increase)\((delta_sink_[a-z_]*[a-z])")

SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": (), "gauge": ()}
LISTED = ("stage", "state", "dependency", "size", "lease", "outcome", "verb", "command")
BY_NAME = {metric.name: metric for metric in METRICS.values()}


def metric_of(series: str) -> tuple[Metric, str]:
    """Return the metric that has this series, and the suffix; fail when there is none."""
    if series in BY_NAME:
        return BY_NAME[series], ""
    for suffix in ("_bucket", "_sum", "_count"):
        metric = BY_NAME.get(series.removesuffix(suffix))
        if metric is not None and series.endswith(suffix):
            assert suffix in SUFFIXES[metric.kind], f"{series}: a {metric.kind} has no {suffix}"
            return metric, suffix
    raise AssertionError(f"delta_sink/telemetry.py declares no {series}")


def fault(expression: str) -> str:
    """Return what is wrong with an expression as far as the declarations tell, else nothing."""
    try:
        found = [(metric_of(match[1]), match) for match in SELECTOR.finditer(expression)]
    except AssertionError as error:
        return str(error)
    if not found:
        return f"{expression!r} asks for no metric"
    labels = {"sink"}
    for (metric, suffix), match in found:
        own = {"sink", *metric.tags, *(["le"] if suffix == "_bucket" else [])}
        labels |= own
        named = re.findall(r"(\w+) *(?:=~|!~|!=|=)", match[2] or "")
        if set(named) - own:
            return f"{metric.name} has no label {sorted(set(named) - own)}"
        for label, value in re.findall(r'(\w+) *!?= *"([^"]*)"', match[2] or ""):
            # The sentence of a tag that has few values names all of them.
            if label in LISTED and value not in re.findall(r"[\w-]+", TAGS[label]):
                return f"{label} of {metric.name} is never {value}"
        if metric.kind == "histogram" and not suffix:
            return f"{metric.name} is a histogram: say which of its series"
        if match[3] and metric.kind == "gauge":
            return f"{metric.name} goes up and down: it has no rate"
        if metric.kind != "gauge" and match[1] not in COUNTED.findall(expression):
            return f"{match[1]} only rises: ask for its rate or increase"
    for group in GROUPING.findall(expression):
        unknown = {label.strip() for label in group.split(",")} - labels
        if unknown:
            return f"{expression!r} groups by {sorted(unknown)}, which nothing has"
    return ""


def expressions() -> list[str]:
    """Return the expressions of the table of alarms in docs/operations.md."""
    text = TEXTS[ROOT / "docs" / "operations.md"]
    lines = text.partition("| state | PromQL | see |\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [re.findall(r"`([^`]+)`", line)[0] for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_metrics_that_a_page_names_are_declared(page):
    for series in SERIES.findall(TEXTS[page]):
        metric_of(series)


def test_there_are_alarms():
    assert len(expressions()) >= 11


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_fits_the_metrics(expression):
    assert fault(expression) == ""


@pytest.mark.parametrize(
    ("expression", "word"),
    [
        ("delta_sink_table_file > 1", "declares no delta_sink_table_file"),
        ("rate(delta_sink_table_version_sum[1h]) > 1", "a gauge has no _sum"),
        ('delta_sink_table_version{topic="a"} > 1', "has no label ['topic']"),
        ('delta_sink_table_files{size="tiny"} > 1', "size of delta_sink_table_files is never tiny"),
        ("sum by (worker) (delta_sink_table_version) > 1", "groups by ['worker']"),
        ("increase(delta_sink_table_files[1h]) > 1", "goes up and down"),
        ("delta_sink_dead_letters_total > 1", "only rises"),
        ("rate(delta_sink_freshness_seconds[5m]) > 1", "say which of its series"),
        ("up == 0", "asks for no metric"),
    ],
)
def test_a_wrong_expression_is_noticed(expression, word):
    assert word in fault(expression)


def test_a_quantile_of_a_histogram_fits():
    inner = "sum by (le, topic) (rate(delta_sink_freshness_seconds_bucket[5m]))"
    assert fault(f"histogram_quantile(0.99, {inner}) > 5") == ""


def test_prometheus_can_read_the_expressions(tmp_path):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool here; Debian has it in the package prometheus")

    def check(found: list[str]) -> subprocess.CompletedProcess[str]:
        rules = [{"alert": f"a{number}", "expr": each} for number, each in enumerate(found)]
        path = tmp_path / "rules.json"  # which is YAML, too
        path.write_text(json.dumps({"groups": [{"name": "alarms", "rules": rules}]}))
        command = [program, "check", "rules", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    done = check(expressions())
    assert done.returncode == 0, done.stdout + done.stderr
    assert check(["sum by (sink (delta_sink_audit_ok)"]).returncode != 0
