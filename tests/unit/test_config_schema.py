"""What is generated from the classes: the JSON Schema and the reference page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from delta_sink.config import Source, json_schema, load, main, reference_page

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "tests" / "unit" / "config_example.yaml").read_text()
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_schema_in_the_repository_is_the_one_of_the_classes():
    written = json.loads((ROOT / "schemas" / "config.schema.json").read_text())
    assert written == json_schema(), "run: python -m delta_sink.config > schemas/config.schema.json"


def test_the_page_in_the_repository_is_the_one_of_the_classes():
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == reference_page(), (
        "run: python -m delta_sink.config --docs > docs/configuration.md"
    )


def test_the_example_loads_and_fits_the_schema():
    env = {"REGISTRY_AUTH": "user:pw", "MINIO_USER": "minio", "CONTROL_KEY": "0123456789abcdef"}
    settings = load([Source("x", EXAMPLE)], [], env=env, read_file=lambda _: "minio-secret\n")
    assert settings.table.uri == "s3://lake/orders"
    assert settings.table.columns is not None
    assert len(settings.table.columns.fields) == 5
    assert settings.table.partition_by == ("day",)
    assert settings.registry is not None
    assert settings.registry.basic_auth is not None
    assert settings.registry.basic_auth.get_secret_value() == "user:pw"
    assert settings.control is not None
    assert settings.vacuum.cron == "0 3 * * *"
    jsonschema.Draft202012Validator.check_schema(json_schema())
    VALIDATOR.validate(yaml.safe_load(EXAMPLE))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("flush.interval_ms", 0),
        ("flush.interval_ms", "soon"),
        ("flush.intervall_ms", 1),
        ("flush.bytes_max", "3 apples"),
        ("value.format", "xml"),
        ("source.start", {"timestamp": 3}),
        ("source.start", {"from": "x"}),
        ("source.topics", ["a b"]),
        ("table.schema", []),
        ("table.uri", None),
        ("table.log_store", "zookeeper"),
        ("compaction.cron", "daily"),
        ("kafka", {"a": [1]}),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(path, value):
    tree = yaml.safe_load(EXAMPLE)
    group, _, key = path.rpartition(".")
    (tree[group] if group else tree)[key] = value
    assert list(VALIDATOR.iter_errors(tree))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("flush.interval_ms", "${INTERVAL:-100}"),
        ("flush.bytes_max", "${SIZE}"),
        ("logs.level", "${LEVEL:-info}"),
        ("source.topics", ["${TOPIC}"]),
        ("source.start", {"offsets": {"orders": {"0": 1200}}}),
        ("errors.dead_letter_topic", None),
        ("flush", None),
        ("table.log_store", {"type": "dynamodb", "table_name": "delta_log"}),
        ("table.parquet", {"dictionary": ["order_id"]}),
    ],
)
def test_the_schema_takes_what_may_be_written(path, value):
    tree = yaml.safe_load(EXAMPLE)
    group, _, key = path.rpartition(".")
    (tree[group] if group else tree)[key] = value
    VALIDATOR.validate(tree)


def test_every_key_says_what_it_is():
    definitions = json_schema()["$defs"]
    for definition in (json_schema(), *definitions.values()):
        for key, schema in definition.get("properties", {}).items():
            group = schema["anyOf"][0].get("$ref", "").rpartition("/")[2]
            sentence = schema.get("description") or definitions[group]["description"]
            assert sentence.endswith("."), key
            assert sentence.count(". ") == 0, key


def test_the_module_prints_the_schema():
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "delta_sink.config"],
        capture_output=True,
        check=True,
        cwd=ROOT,
        text=True,
    )
    assert json.loads(printed.stdout) == json_schema()
    assert printed.stderr == ""


def test_main_knows_its_arguments(capsys):
    assert main(["--docs"]) == 0
    assert capsys.readouterr().out == reference_page()
    assert main(["--schema"]) == 2
    assert "usage" in capsys.readouterr().err
