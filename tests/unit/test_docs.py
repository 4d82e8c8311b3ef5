"""The docs are tested: what they name must exist, and what exists must be in them.

Commands and options, whole sink files, command lines, make targets, links, paths, configuration
keys, and the tables of docs/json.md, which the decoder goes through.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import re
import shlex
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

import click
import pytest
import yaml

from delta_sink.cli import cli
from delta_sink.config import Source, load
from delta_sink.decode.json import JsonDecoder
from delta_sink.decode.rows import DecodeSpec, Reason
from delta_sink.delta.schema import TableSchema, parse_columns
from delta_sink.model import Records, TopicPartition
from delta_sink.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md")
    for page in ROOT.glob(pattern)
)
EXAMPLES = sorted((ROOT / "examples").glob("*/*.yaml"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_TICKS = re.compile(r"`([^`\n]+)`")


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


by_page = pytest.mark.parametrize("page", PAGES, ids=_id)


def _prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", TEXTS[page])


def _ticked(page: Path) -> list[str]:
    return IN_TICKS.findall(_prose(page))


def _shell_lines(page: Path) -> list[str]:
    return [
        line.removeprefix("$ ").strip()
        for language, block in FENCE.findall(TEXTS[page])
        if language in ("", "sh", "bash", "console")
        for line in block.splitlines()
    ]


def _example_lines() -> list[tuple[Path, str]]:
    """The command lines in the comments of the example files."""
    return [
        (path, found[0])
        for path in EXAMPLES
        for line in path.read_text(encoding="utf-8").splitlines()
        if (found := re.search(r"(?<=[ `])delta-sink [a-z-]+ [^`]*", line.partition("#")[2]))
    ]


# --- commands ----------------------------------------------------------------------------------


def _commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    """Every command that is no group, by its whole name."""
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    return [
        found
        for name in command.list_commands(context)
        if (inner := command.get_command(context, name)) is not None
        for found in _commands(inner, f"{path} {name}")
    ]


COMMANDS = _commands(cli, "delta-sink")
README = TEXTS[ROOT / "README.md"]
COMMON = re.search(r"^Every command but `demo` takes .*?\n\n", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=lambda value: str(value)[:30])
def test_every_command_and_option_is_in_the_readme(name, command):
    rows = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1, f"README.md has {len(rows)} rows for `{name}` in its list of commands"
    assert COMMON is not None, "README.md does not say which options every command has"
    words = rows[0] if name == "delta-sink demo" else rows[0] + COMMON[0].replace("\n", " ")
    for option in command.params:
        for spelling in option.opts:
            assert re.search(rf"(?<![\w-]){spelling}(?![\w-])", words), (
                f"README.md says nothing of {spelling} at `{name}`"
            )


def test_the_readme_lists_no_other_commands():
    listed = set(re.findall(r"^\| `(delta-sink [^`]+)` \|", README, re.MULTILINE))
    assert listed == {name for name, _ in COMMANDS}


def _parse(line: str) -> None:
    """Return if the commands and options of a command line exist; raise click's error if not."""
    words = shlex.split(line, comments=True)
    assert words[0] == "delta-sink"
    command: click.Command = cli
    context = click.Context(cli, info_name="delta-sink")
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        inner = command.get_command(context, name)
        if inner is None:
            raise click.UsageError(f"there is no command {name}")
        command = inner
    if isinstance(command, click.Group) and not rest:
        return
    try:
        command.make_context(words[-1], rest)
    except (click.MissingParameter, click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        return  # Named without its file, or a question for help: the words themselves are right.


@by_page
def test_command_lines_parse(page):
    lines = [line for line in _shell_lines(page) if line.startswith("delta-sink ")]
    lines += [text for text in _ticked(page) if re.match(r"delta-sink [a-z-]", text)]
    for line in lines:
        try:
            _parse(line)
        except click.UsageError as error:
            pytest.fail(f"{_id(page)}: {line!r}: {error.format_message()}")


def test_command_lines_of_examples_parse():
    lines = _example_lines()
    assert len(lines) > 3
    for path, line in lines:
        try:
            _parse(line)
        except click.UsageError as error:
            pytest.fail(f"{_id(path)}: {line!r}: {error.format_message()}")


@pytest.mark.parametrize(
    "line",
    [
        "delta-sink rum writer",
        "delta-sink run reader -c x",
        "delta-sink audit --deeper -c x",
        "delta-sink run writer -c x --until-end=yes",
        "delta-sink init -c x y",
    ],
)
def test_a_wrong_command_line_is_noticed(line):
    with pytest.raises(click.UsageError):
        _parse(line)


def test_make_targets_exist_and_are_documented():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = defaultdict(set)
    for page in PAGES:
        texts = [*_ticked(page), *_shell_lines(page)]
        for text in texts:
            if match := re.match(r"make ([a-z][a-z-]*)$", text):
                named[match[1]].add(_id(page))
    missing = {target: pages for target, pages in named.items() if target not in targets}
    assert not missing, missing
    assert targets - {"help"} <= set(named), "a target that no page explains"


# --- sink files --------------------------------------------------------------------------------


def _load(name: str, text: str) -> Settings:
    """The settings of a whole file. What it takes from the environment without a default is set."""
    env = dict.fromkeys(re.findall(r"\$\{(?:env:)?([A-Z_]+)\}", text), "set")
    return load([Source(name, text)], [], env=env, read_file=lambda _: "a-secret\n")


@by_page
def test_whole_sink_files_load(page):
    for number, (language, block) in enumerate(FENCE.findall(TEXTS[page])):
        if language not in ("yaml", "yml"):
            continue
        tree = yaml.safe_load(block)
        if isinstance(tree, dict) and "name" in tree:
            assert _load(f"{_id(page)}[{number}]", block).name == tree["name"]


def test_the_readme_has_a_whole_sink_file():
    blocks = [block for language, block in FENCE.findall(README) if language == "yaml"]
    assert any("name" in yaml.safe_load(block) for block in blocks)


@pytest.mark.parametrize("path", EXAMPLES, ids=_id)
def test_examples_load(path):
    text = path.read_text(encoding="utf-8")
    settings = _load(_id(path), text)
    assert settings.table.columns is not None
    assert not settings.table.columns.problems
    # A secret is a reference, never a word of the file.
    for line in text.splitlines():
        if re.search(r"(secret_access_key|password|session_token):", line):
            assert re.search(r": \"\$\{(file|env|dir)?:?.+\}\"", line), line


def test_every_example_is_listed():
    listed = TEXTS[ROOT / "examples" / "README.md"]
    for path in EXAMPLES:
        assert f"({path.parent.name}/" in listed, (
            f"examples/README.md says nothing of {path.parent}"
        )


# --- names -------------------------------------------------------------------------------------


def _slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@by_page
def test_links_within_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if re.match(r"https?://", target):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        assert path.exists(), f"{_id(page)}: {target} is not there"
        if anchor:
            text = path.read_text(encoding="utf-8")
            assert anchor in _slugs(text), f"{_id(page)}: {target} has no such heading"


FOLDERS = ("delta_sink/", "tests/", "docs/", "examples/", "benchmarks/", "schemas/", ".ci/")


@by_page
def test_paths_in_the_docs_exist(page):
    for text in _ticked(page):
        if text.startswith(FOLDERS) and re.fullmatch(r"[\w./-]+", text):
            assert (ROOT / text).exists(), f"{_id(page)}: {text} is not there"


def test_modules_of_the_map_exist():
    """ARCHITECTURE.md and the ADRs name modules relative to the package."""
    for page in [ROOT / "ARCHITECTURE.md", *(ROOT / "docs" / "adr").glob("*.md")]:
        for text in _ticked(page):
            if not re.fullmatch(r"[a-z_]+(/[a-z_]+)*(\.py|/)", text):
                continue
            name = text.rstrip("/")
            places = [ROOT, ROOT / "delta_sink", ROOT / "delta_sink/decode"]
            places += [ROOT / "delta_sink/delta"]
            assert any((place / name).exists() for place in places), f"{_id(page)}: {text}"


FREE = {("kafka",), ("table", "properties"), ("control", "signing_keys"), ("source", "start")}


def _key_exists(path: tuple[str, ...]) -> bool:
    kind: object = Settings
    for depth, key in enumerate(path):
        if path[:depth] in FREE:
            return True
        if not dataclasses.is_dataclass(kind):
            return False
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if key not in fields:
            return False
        kind = _group_of(kind, key)
    return True


def _group_of(kind: object, key: str) -> object:
    """The dataclass behind a field, or None where it holds a value."""
    import typing

    hint = typing.get_type_hints(kind, include_extras=False)[key]
    candidates = [hint, *typing.get_args(hint)]
    return next((found for found in candidates if dataclasses.is_dataclass(found)), None)


@by_page
def test_configuration_keys_exist(page):
    groups = {field.name for field in dataclasses.fields(Settings)}
    for text in _ticked(page):
        match = re.fullmatch(r"([a-z_]+(?:\.[a-zA-Z_.]+)+)(?:: .*)?", text)
        if match is None or re.search(r"\.(py|md|yaml|json|db)$", match[1]):
            continue
        path = tuple(match[1].split("."))
        if path[0] in groups:
            assert _key_exists(path), f"{_id(page)}: there is no key {match[1]}"


def test_wrong_keys_are_noticed():
    assert _key_exists(("flush", "interval_ms"))
    assert _key_exists(("table", "storage", "fsync"))
    assert _key_exists(("kafka", "bootstrap", "servers"))
    assert not _key_exists(("flush", "interval"))
    assert not _key_exists(("table", "storage", "sync"))
    assert not _key_exists(("flush", "interval_ms", "more"))


# --- docs/json.md: every row is decoded ----------------------------------------------------------

JSON_PAGE = ROOT / "docs" / "json.md"


def _rows(header: str) -> list[tuple[str, ...]]:
    """The rows below a table's header, their cells without the ticks around them."""
    lines = TEXTS[JSON_PAGE].splitlines()
    found = []
    for line in lines[lines.index(header) + 2 :]:
        if not line.startswith("|"):
            break
        found.append(tuple(cell.strip() for cell in line.strip("| ").split(" | ")))
    assert found, header
    return found


def _bare(cell: str) -> str:
    return cell.strip("`")


def _shown(value: object) -> str:
    """A value of the table as the page writes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case bytes():
            return f"0x{value.hex()}"
        case dt.datetime():
            return value.replace(tzinfo=None).isoformat() + ("Z" if value.tzinfo else "")
        case dt.date():
            return value.isoformat()
        case Decimal():
            return format(value, "f")
        case str():
            return repr(value) if value.isprintable() else ascii(value)
        case [(_, _), *_]:
            return "{" + ", ".join(f"{_shown(k)}: {_shown(v)}" for k, v in value) + "}"
        case list():
            return "[" + ", ".join(map(_shown, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) + "}"
        case _:
            return repr(value)


def _decided(column_type: str, value: bytes, **options: object) -> str:
    """What the page must say of a value: decided alone, and among values that are right."""
    column = {"name": "a", "type": yaml.safe_load(column_type)}
    parsed = parse_columns([column], "the page", ())
    assert not parsed.problems, parsed.problems
    spec = DecodeSpec(TableSchema(parsed.fields), record_bytes_max=8 << 20, **options)
    answers = set()
    for values, place in (([value], 0), ([b"{}"] * 20 + [value] + [b"{}"] * 20, 20)):
        records = Records(TopicPartition("t", 0), len(values), range(len(values)), values)
        decoded = JsonDecoder(spec).decode([records])
        (part,) = decoded.parts
        if part.bad:
            assert [bad.index for bad in part.bad] == [place]
            answers.add(f"bad: `{part.bad[0].reason}`")
        else:
            answers.add(f"`{_shown(decoded.rows.column(0)[place].as_py())}`")
    assert len(answers) == 1, answers
    return answers.pop()


def _literal(text: str) -> bytes:
    """The bytes that a cell spells: byte strings, added and repeated."""
    tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        allowed = ast.Expression | ast.BinOp | ast.Add | ast.Mult | ast.Constant
        assert isinstance(node, allowed), text
    value = eval(compile(tree, "docs/json.md", "eval"))  # only constants, sums and products
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize("row", _rows("| column type | value | in the table |"), ids=str)
def test_the_page_says_what_becomes_of_a_value(row):
    column_type, value, said = row
    assert _decided(_bare(column_type), b'{"a": %s}' % _bare(value).encode()) == said


@pytest.mark.parametrize("row", _rows("| value | in column `a`, a `string` |"), ids=str)
def test_the_page_says_what_becomes_of_a_whole_value(row):
    value, said = row
    assert _decided("string", _literal(_bare(value))) == said


@pytest.mark.parametrize("row", _rows("| setting | column type | value | in the table |"), ids=str)
def test_the_page_says_what_settings_change(row):
    setting, column_type, value, said = row
    path, option = _bare(setting).split(": ")
    assert _key_exists(tuple(path.split(".")))
    options = {path.removeprefix("value."): option}
    assert _decided(_bare(column_type), b'{"a": %s}' % _bare(value).encode(), **options) == said


def test_the_page_has_every_reason():
    listed = {
        text for (cell, *_) in _rows("| reason | the record |") for text in IN_TICKS.findall(cell)
    }
    assert listed == set(Reason.__args__)
