"""The source itself is tested: layers, what may be imported where, sizes, names.

The layers are those of ARCHITECTURE.md; imports point down only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "delta_sink"
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600

# From the bottom up. A module may import modules of its own layer and of those below.
LAYERS: list[tuple[str, tuple[str, ...]]] = [
    ("ground", ("", "errors", "model")),
    (
        "pure",
        (
            "telemetry",
            "traces",
            "status",
            "decode",
            "buffer",
            "memory",
            "trouble",
            "config",
            "settings",
            "forms",
            "start",
            "properties",
            "references",
            "rules",
            "demo_records",
            "where",
            "policy",
            "inbox",
            "control",
            "control_message",
            "control_schema",
            "delta.types",
            "delta.schema",
            "delta.hive",
            "delta.statistics",
            "delta.parquet",
            "delta.actions",
            "delta.receipt",
            "delta.state",
            "delta.support",
            "delta.plan",
            "delta.conditions",
            "delta.file_columns",
            "delta.file_stream",
            "delta.conform",
            "delta.statistics_merge",
            "delta.deletion_vector",
            "delta.compaction_plan",
            "delta.ordering",
            "delta",
        ),
    ),
    ("ports", ("ports",)),
    (
        "on ports",
        (
            "delta.logstore",
            "delta.checkpoint",
            "delta.commit",
            "delta.probe",
            "delta.table",
            "delta.repeat",
            "delta.store_time",
            "delta.checkpoint_files",
            "delta.checkpoint_write",
            "delta.snapshot",
            "delta.course",
            "delta.compaction",
            "delta.vacuum",
            "delta.cleanup",
            "lease",
            "seen",
            "presence",
            "view",
        ),
    ),
    (
        "workers",
        (
            "append",
            "claim",
            "part",
            "pipeline",
            "report",
            "writer",
            "audit",
            "audit_anchor",
            "audit_chain",
            "audit_report",
            "audit_rows",
            "connect",
            "seek",
            "control_client",
            "overview",
            "errand",
            "asking",
            "begin_end",
            "company",
            "compacting",
            "vacuuming",
            "attendance",
            "scheduler",
            "auditing",
            "maintenance",
        ),
    ),
    ("adapters", ("adapters", "testing")),
    (
        "top",
        (
            "wiring",
            "server",
            "cli",
            "cli_options",
            "cli_audit",
            "cli_control",
            "cli_maintenance",
            "cli_seek",
            "cli_setup",
            "cli_status",
            "cli_worker",
            "cli_writer",
            "demo",
            "demo_maintenance",
            "demo_workers",
        ),
    ),
]

OUTSIDE_ONLY = {
    "boto3",
    "botocore",
    "concurrent",
    "confluent_kafka",
    "deltalake",
    "obstore",
    "queue",
    "random",
    "sqlite3",
    "subprocess",
    "threading",
    "time",
    "uuid",
}
"""Libraries of the world outside: only adapters, the simulated world and the top may use them."""

# Pure although it makes chance: a seeded generator of made-up records.
EXCEPTIONS = {("demo_records", "random")}

MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _layer(name: str) -> int:
    """Return the layer of a module: that of its longest listed prefix."""
    candidates = [
        (len(listed), index)
        for index, (_, modules) in enumerate(LAYERS)
        for listed in modules
        if name == listed or (listed and name.startswith(listed + "."))
    ]
    assert candidates, f"delta_sink/{name.replace('.', '/')}.py is in no layer of {__file__}"
    return max(candidates)[1]


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_down(path):
    mine = _layer(_name(path))
    for imported in _imports(_tree(path)):
        if imported.split(".")[0] != "delta_sink":
            continue
        other = imported.removeprefix("delta_sink").removeprefix(".")
        assert _layer(other) <= mine, f"{_name(path)} imports {imported} from a layer above it"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_the_outside_stays_outside(path):
    name = _name(path)
    if LAYERS[_layer(name)][0] in ("adapters", "top"):
        return
    found = {imported.split(".")[0] for imported in _imports(_tree(path))} & OUTSIDE_ONLY
    found -= {library for module, library in EXCEPTIONS if module == name}
    assert not found, f"{name} imports {sorted(found)}"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            reached = f"{node.value.id}.{node.attr}"
            assert reached not in ("os.environ", "os.getenv", "datetime.now"), f"{name}: {reached}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_functions_and_files_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES_MAX, f"{_name(path)} is too long for one concept"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{_name(path)}.{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_public_names_have_docstrings(path):
    tree = _tree(path)
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree), f"{_name(path)} does not say what it is"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{_name(path)}.{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    label = f"{_name(path)}.{node.name}.{member.name}"
                    assert ast.get_docstring(member), f"{label} has no docstring"


def test_no_module_is_a_drawer():
    for path in MODULES:
        for word in ("util", "helper", "manager", "common", "misc"):
            assert word not in path.stem, f"{path.stem} says nothing of what is in it"


def test_nothing_names_a_machine():
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for word in ("/" + "work/", "/" + "root/"):
            assert word not in text, f"{path.name} has a path of one machine: {word}"
