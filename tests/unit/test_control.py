"""Control messages: what is taken, what is refused and why, signatures, outcomes, schemas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.control import (
    COMMANDS,
    FUTURE_MS_MAX,
    LIFE_MS,
    STATES,
    TEXT_CHARACTERS_MAX,
    Checkpoint,
    CleanupLog,
    Command,
    Compact,
    Outcome,
    Part,
    Pause,
    Resume,
    Rules,
    Vacuum,
    encode_command,
    encode_outcome,
    outcome_of,
    parse_command,
    parse_outcome,
    read_command,
)
from delta_sink.control_message import (
    MESSAGE_BYTES_MAX,
    Refusal,
    Signer,
    canonical_json,
    iso_time,
    signature_of,
    time_ms,
)
from delta_sink.control_schema import command_schema, main, outcome_schema

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "control.md"
TABLE = "s3://lake/orders"
KEY = b"0123456789abcdef"
NOW_MS = time_ms("2026-11-24T10:30:00Z")
assert NOW_MS is not None

RULES = Rules(TABLE)
SIGNED = Rules(TABLE, signing_keys={"k0": b"another key, sixteen", "k1": KEY})
COMMAND_VALIDATOR = jsonschema.Draft202012Validator(command_schema())
OUTCOME_VALIDATOR = jsonschema.Draft202012Validator(outcome_schema())

# The example of the documentation, but for the id and the signature.
EXAMPLE = {
    "v": 1,
    "id": "01JDZ9",
    "command": "compact",
    "table": TABLE,
    "issued_at": "2026-11-24T10:00:00Z",
    "expires_at": "2026-11-24T11:00:00Z",
    "issuer": "ops",
    "args": {"where": "day >= '2026-11-01'", "sort_by": ["order_id"], "dry_run": False},
}


def message(change: dict | None = None, *, without: str | None = None, **args) -> dict:
    found = {**EXAMPLE, **(change or {})}
    if args:
        found["args"] = args
    return {name: value for name, value in found.items() if name != without}


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def parsed(value: object, rules: Rules = RULES, now_ms: int = NOW_MS):
    return parse_command(encoded(value), rules, now_ms=now_ms)


def refused(value: bytes | None, rules: Rules = RULES, now_ms: int = NOW_MS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_command(value, rules, now_ms=now_ms)
    refusal = caught.value
    assert refusal.message.count("\n") == 0
    assert len(refusal.message) < 12_000
    return refusal


def signed(value: dict, key: bytes = KEY, key_id: str = "k1") -> dict:
    digest = signature_of(value, key)
    return {**value, "signature": {"key_id": key_id, "hmac_sha256": digest}}


# --- what is taken -------------------------------------------------------------------------------


def test_the_example_is_taken():
    command = parsed(EXAMPLE)
    assert command == Command(
        id="01JDZ9",
        table=TABLE,
        args=Compact(where="day >= '2026-11-01'", sort_by=("order_id",)),
        issued_at_ms=NOW_MS - 1_800_000,
        expires_at_ms=NOW_MS + 1_800_000,
        issuer="ops",
    )
    assert command.command == "compact"
    assert json.loads(encode_command(command)) == EXAMPLE


@pytest.mark.parametrize(
    ("command", "args", "wanted"),
    [
        ("compact", {}, Compact()),
        (
            "compact",
            {"target_file_bytes": 4 << 20, "zorder_by": ["a", "b"], "where": None},
            Compact(target_file_bytes=4 << 20, zorder_by=("a", "b")),
        ),
        ("vacuum", {"dry_run": True}, Vacuum(True)),
        ("vacuum", {"dry_run": False, "retention_hours": 168}, Vacuum(False, 168)),
        ("checkpoint", {}, Checkpoint()),
        ("cleanup-log", {"dry_run": True}, CleanupLog(True)),
        ("pause", {"role": "writer"}, Pause("writer")),
        ("resume", {"role": "maintenance"}, Resume("maintenance")),
    ],
)
def test_every_command_is_taken(command, args, wanted):
    value = message({"command": command, "args": args})
    assert parsed(value).args == wanted
    COMMAND_VALIDATOR.validate(value)


def test_the_least_that_must_be_said():
    value = {"v": 1, "id": "x", "command": "checkpoint", "table": TABLE}
    command = parsed(value)
    assert command == Command("x", TABLE, Checkpoint())
    assert command.expiry_ms is None
    COMMAND_VALIDATOR.validate(value)
    assert parsed({**value, "args": None, "issuer": None, "part": None}) == command


def test_members_that_we_do_not_know_are_passed_over():
    assert parsed(message({"trace": {"depth": 1.5}})) == parsed(EXAMPLE)


@pytest.mark.parametrize("table", ["s3a://lake/orders", "s3://lake/orders/", "S3A://lake/orders//"])
def test_a_table_has_one_normal_form(table):
    assert parsed(message({"table": table})).table == TABLE


def test_a_local_table_has_one_normal_form():
    for table in ("/data/orders/", "file:///data/orders", "file://localhost/data/orders"):
        value = message({"table": table})
        assert parsed(value, Rules("/data/orders")).table == "/data/orders"


@pytest.mark.parametrize(
    "change",
    [
        {"table": "s3://lake/orders2"},
        {"table": "s3://Lake/orders"},
        {"table": "/lake/orders", "v": 99, "command": "explode", "id": None},
    ],
    ids=str,
)
def test_another_tables_command_is_nobodys_concern(change):
    assert parsed(message(change)) is None
    assert parsed(message(change), SIGNED) is None


def test_a_work_item_says_what_it_is_part_of():
    part = {"parent": "01JDZ9", "index": 2, "count": 5, "slot": 63}
    value = message({"id": "01JDZ9.2", "part": part})
    command = parsed(value)
    assert command.part == Part("01JDZ9", 2, 5, 63)
    assert json.loads(encode_command(command)) == value
    COMMAND_VALIDATOR.validate(value)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"compact",
        b"{",
        b"[1]",
        b'"compact"',
        b"null",
        b"\xff\xfe{}",
        b'{"v": 1, "v": 1}',
        b'{"args": {"dry_run": true, "dry_run": false}}',
        b'{"v": NaN}',
        b'{"id": "\\ud800"}',
        b"[" * 60_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"9" * 60_000,
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_message_is_malformed(value):
    refusal = refused(value)
    assert refusal.reason == "malformed"
    assert (refusal.id, refusal.table, refusal.command) == (None, None, None)


def test_what_is_too_large_is_not_read():
    value = message(where="day = '" + "x" * MESSAGE_BYTES_MAX + "'")
    assert refused(encoded(value)).reason == "oversize"
    just_fits = encoded(EXAMPLE).ljust(MESSAGE_BYTES_MAX)
    assert parse_command(just_fits, RULES, now_ms=NOW_MS) == parsed(EXAMPLE)
    assert refused(just_fits + b" ").reason == "oversize"


@pytest.mark.parametrize("name", ["v", "id", "command", "table"])
def test_what_must_be_said(name):
    value = message(without=name)
    refusal = refused(encoded(value))
    assert refusal.reason == "missing_field"
    assert f"'{name}'" in refusal.message
    assert list(COMMAND_VALIDATOR.iter_errors(value))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": 2}, "unknown_version"),
        ({"v": 10**4000}, "unknown_version"),
        ({"v": "1"}, "bad_field"),
        ({"v": True}, "bad_field"),
        ({"id": 7}, "bad_field"),
        ({"id": ""}, "bad_field"),
        ({"id": "a b"}, "bad_field"),
        ({"id": "a\nb"}, "bad_field"),
        ({"id": "x" * 129}, "bad_field"),
        ({"table": 7}, "bad_field"),
        ({"table": ""}, "bad_field"),
        ({"command": "explode"}, "unknown_command"),
        ({"command": ["compact"]}, "unknown_command"),
        ({"command": "Compact"}, "unknown_command"),
        ({"issuer": 7}, "bad_field"),
        ({"issuer": "x" * 257}, "bad_field"),
        ({"issued_at": "yesterday"}, "bad_field"),
        ({"issued_at": "2026-11-24T10:00:00"}, "bad_field"),
        ({"issued_at": 1_800_000_000}, "bad_field"),
        ({"expires_at": "2026-11-24"}, "bad_field"),
        ({"expires_at": "2026-11-31T10:00:00Z"}, "bad_field"),
        ({"args": []}, "bad_field"),
        ({"args": "where"}, "bad_field"),
        ({"part": {"parent": "a", "index": 5, "count": 5, "slot": 0}}, "bad_field"),
        ({"part": {"parent": "a", "index": 0, "count": 5, "slot": 64}}, "bad_field"),
        ({"part": {"index": 0, "count": 5, "slot": 6}}, "bad_field"),
        ({"part": [1]}, "bad_field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_member_that_is_wrong(change, reason):
    value = message(change)
    assert refused(encoded(value)).reason == reason
    # The numbers of a part, and the days of a month, are beyond a schema.
    if "5" not in str(change.get("part")) and change.get("expires_at") != "2026-11-31T10:00:00Z":
        assert list(COMMAND_VALIDATOR.iter_errors(value))


@pytest.mark.parametrize(
    ("command", "args", "sentence"),
    [
        ("compact", {"were": "a = 1"}, "'were' is none of its arguments: where,"),
        ("compact", {"retention_hours": 1}, "'retention_hours' is none of its arguments"),
        ("compact", {"where": 7}, "'where': expected a filter as text"),
        ("compact", {"target_file_bytes": "4MiB"}, "'target_file_bytes': expected a whole"),
        ("compact", {"target_file_bytes": 4e6}, "'target_file_bytes': expected a whole"),
        ("compact", {"target_file_bytes": 0}, "'target_file_bytes': expected a whole"),
        ("compact", {"target_file_bytes": True}, "'target_file_bytes': expected a whole"),
        ("compact", {"sort_by": "order_id"}, "'sort_by': expected a list"),
        ("compact", {"sort_by": []}, "'sort_by': expected a list"),
        ("compact", {"sort_by": ["a", "a"]}, "'sort_by': a column is named twice"),
        ("compact", {"zorder_by": [""]}, "'zorder_by': expected names"),
        ("compact", {"zorder_by": [1]}, "'zorder_by': expected names"),
        ("compact", {"sort_by": ["a"], "zorder_by": ["b"]}, "expected one of them"),
        ("compact", {"dry_run": "yes"}, "'dry_run': expected true or false"),
        ("compact", {"dry_run": 1}, "'dry_run': expected true or false"),
        ("vacuum", {}, "'dry_run': it must be said"),
        ("vacuum", {"dry_run": None}, "'dry_run': it must be said"),
        ("vacuum", {"dry_run": True, "retention_hours": -1}, "'retention_hours': expected"),
        ("vacuum", {"dry_run": True, "retention_hours": 0.5}, "'retention_hours': expected"),
        ("vacuum", {"dry_run": True, "retention_hours": "168"}, "'retention_hours': expected"),
        ("vacuum", {"dry_run": True, "retention_hours_min": 0}, "is none of its arguments"),
        ("checkpoint", {"version": 3}, "'version' is none of its arguments: dry_run"),
        ("cleanup-log", {"dry_run": 0}, "'dry_run': expected true or false"),
        ("pause", {}, "'role': it must be said"),
        ("pause", {"role": "all"}, "'role': expected writer or maintenance"),
        ("pause", {"role": ["writer"]}, "'role': expected writer or maintenance"),
        ("resume", {"role": "vacuum"}, "'role': expected writer or maintenance"),
    ],
    ids=str,
)
def test_an_argument_that_is_wrong(command, args, sentence):
    value = message({"command": command, "args": args})
    refusal = refused(encoded(value))
    assert refusal.reason in ("unknown_argument", "bad_argument")
    assert sentence in refusal.message
    assert (refusal.id, refusal.table, refusal.command) == ("01JDZ9", TABLE, command)
    if 4e6 not in args.values():  # to a schema that is a whole number
        assert list(COMMAND_VALIDATOR.iter_errors(value)), "the schema takes it"


def test_a_filter_is_looked_at_when_the_command_arrives():
    refusal = refused(encoded(message(where="day == 'x'")))
    assert refusal.reason == "bad_argument"
    assert "'where': character 6: expected" in refusal.message


def test_a_refusal_for_the_log_shows_nothing_of_the_message():
    refusal = refused(encoded(message(where="name = 'secret' and")))
    assert str(refusal) == "command 01JDZ9: refused: bad_argument"


# --- time ----------------------------------------------------------------------------------------


def test_a_command_expires_at_the_millisecond():
    expiry_ms = time_ms(EXAMPLE["expires_at"])
    assert parsed(EXAMPLE, now_ms=expiry_ms - 1) is not None
    refusal = refused(encoded(EXAMPLE), now_ms=expiry_ms)
    assert refusal.reason == "expired"
    assert "it expired at 2026-11-24T11:00:00Z" in refusal.message


def test_a_command_without_expiry_lasts_a_day_from_its_issue():
    value = message(without="expires_at")
    issued_ms = time_ms(EXAMPLE["issued_at"])
    assert parsed(value, now_ms=issued_ms + LIFE_MS - 1).expiry_ms == issued_ms + LIFE_MS
    assert refused(encoded(value), now_ms=issued_ms + LIFE_MS).reason == "expired"


def test_a_command_from_the_far_future_is_refused():
    issued_ms = time_ms(EXAMPLE["issued_at"])
    assert parsed(EXAMPLE, now_ms=issued_ms - FUTURE_MS_MAX) is not None
    refusal = refused(encoded(EXAMPLE), now_ms=issued_ms - FUTURE_MS_MAX - 1)
    assert refusal.reason == "issued_in_future"


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00.5+01:00", 500),
        ("1969-12-31T23:59:59.999Z", -1),
        ("1970-01-01T00:00:00.0019Z", 1),
        ("2026-11-24 10:00:00Z", None),
        ("20261124T100000Z", None),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000),
        ("\uff12\uff10\uff12\uff16-11-24T10:00:00Z", None),
    ],
)
def test_times(text, at_ms):
    assert time_ms(text) == at_ms


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_is_read_as_it_was_written(at_ms):
    assert time_ms(iso_time(at_ms)) == at_ms


# --- the floor -----------------------------------------------------------------------------------


def test_the_floor_is_the_workers():
    rules = Rules(TABLE, retention_hours_min=24)
    value = message({"command": "vacuum"}, dry_run=True, retention_hours=24)
    assert parsed(value, rules).args == Vacuum(True, 24)
    value["args"]["retention_hours"] = 23
    refusal = refused(encoded(value), rules)
    assert refusal.reason == "retention_below_floor"
    assert "23 is below 24" in refusal.message
    assert refused(encoded(signed(value)), SIGNED).reason == "retention_below_floor"


# --- signatures ----------------------------------------------------------------------------------


def test_a_signed_command_is_taken():
    assert parsed(signed(EXAMPLE), SIGNED) == parsed(EXAMPLE)
    command = parsed(EXAMPLE)
    value = encode_command(command, Signer("k1", KEY))
    assert parse_command(value, SIGNED, now_ms=NOW_MS) == command
    COMMAND_VALIDATOR.validate(json.loads(value))
    assert parse_command(value, RULES, now_ms=NOW_MS) == command, "without keys none is looked at"


def test_the_order_and_the_spaces_of_a_signed_message_do_not_matter():
    value = signed({**EXAMPLE, "issuer": "Zoë 🦊"})
    backwards = dict(reversed(value.items()))
    for text in (json.dumps(backwards, indent=4), json.dumps(value, ensure_ascii=False)):
        assert parse_command(text.encode(), SIGNED, now_ms=NOW_MS) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"id": "another"},
        {"command": "checkpoint", "args": {}},
        {"issuer": "someone"},
        {"expires_at": "2027-11-24T11:00:00Z"},
        {"args": {**EXAMPLE["args"], "dry_run": True}},
        {"args": {**EXAMPLE["args"], "dry_run": None}},
        {"extra": 1},
        {"table": "s3a://lake/orders"},
    ],
    ids=str,
)
def test_an_altered_command_is_refused(change):
    assert refused(encoded({**signed(EXAMPLE), **change}), SIGNED).reason == "bad_signature"


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (None, "unsigned"),
        ({}, "bad_signature"),
        ("abc", "bad_signature"),
        ({"key_id": "k1", "hmac_sha256": ""}, "bad_signature"),
        ({"key_id": "k1", "hmac_sha256": "é" * 64}, "bad_signature"),
        ({"key_id": "k1", "hmac_sha256": 7}, "bad_signature"),
        ({"key_id": ["k1"], "hmac_sha256": "0" * 64}, "bad_signature"),
        ({"key_id": "k9", "hmac_sha256": signature_of(EXAMPLE, KEY)}, "unknown_key"),
        ({"key_id": "k0", "hmac_sha256": signature_of(EXAMPLE, KEY)}, "bad_signature"),
    ],
    ids=str,
)
def test_a_wrong_signature_is_refused(signature, reason):
    refusal = refused(encoded({**EXAMPLE, "signature": signature}), SIGNED)
    assert refusal.reason == reason
    assert refusal.id == "01JDZ9"
    assert signature_of(EXAMPLE, KEY) not in refusal.message


def test_a_signature_may_be_in_capitals():
    value = signed(EXAMPLE)
    value["signature"]["hmac_sha256"] = value["signature"]["hmac_sha256"].upper()
    assert parsed(value, SIGNED) is not None


def test_a_signed_command_must_end_some_time():
    value = {"v": 1, "id": "x", "command": "checkpoint", "table": TABLE}
    assert refused(encoded(signed(value)), SIGNED).reason == "no_expiry"
    assert parsed(signed({**value, "issued_at": EXAMPLE["issued_at"]}), SIGNED) is not None
    assert refused(encoded(signed(EXAMPLE)), SIGNED, NOW_MS + LIFE_MS).reason == "expired"


def test_a_fraction_has_no_canonical_form():
    refusal = refused(encoded(signed({**EXAMPLE, "weight": 0.1})), SIGNED)
    assert refusal.reason == "bad_signature"
    assert "fraction" in refusal.message


def test_keys_are_in_no_repr():
    assert "0123456789" not in repr(SIGNED)
    assert "0123456789" not in repr(Signer("k1", KEY))


def _worked_example() -> tuple[str, str, str, str]:
    """Key, message as sent, canonical form and signature, as docs/control.md has them."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("## Signing") :]
    key = re.search(r"the key `([^`]+)`", section)
    blocks = re.findall(r"```(?:json|text)\n(.*?)```", section, re.DOTALL)
    assert key is not None
    return key[1], blocks[0], blocks[1].strip(), blocks[2].strip()


def test_the_worked_example_of_the_page_is_right():
    key, sent, canonical, digest = _worked_example()
    value = json.loads(sent)
    given = value.pop("signature")
    assert canonical_json(value).decode() == canonical
    assert signature_of(value, key.encode()) == digest == given["hmac_sha256"]
    rules = Rules(value["table"], signing_keys={given["key_id"]: key.encode()})
    now_ms = time_ms(value["issued_at"])
    assert parse_command(sent.encode(), rules, now_ms=now_ms) is not None


def test_the_shell_commands_of_the_page_sign_as_we_do():
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here")
    key, _, canonical, digest = _worked_example()
    done = subprocess.run(
        [openssl, "dgst", "-sha256", "-hmac", key],
        input=canonical.encode(),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().split()[-1] == digest


# --- outcomes ------------------------------------------------------------------------------------


def an_outcome(**change) -> Outcome:
    command = parsed(EXAMPLE)
    result = {"files_removed": 20, "files_added": 1, "dry_run": False}
    options = {"at_ms": NOW_MS, "worker": "w1", "message": "done", "result": result, **change}
    return outcome_of(command, "succeeded", **options)


def test_an_outcome_is_read_as_it_was_written():
    outcome = an_outcome()
    value = encode_outcome(outcome)
    assert parse_outcome(value) == outcome
    assert list(json.loads(value)) == sorted(
        ["v", "id", "table", "command", "state", "at", "worker", "message", "result"]
    )
    assert json.loads(value)["at"] == "2026-11-24T10:30:00Z"
    OUTCOME_VALIDATOR.validate(json.loads(value))


def test_a_part_of_an_outcome_says_so():
    command = parsed(message({"part": {"parent": "p", "index": 0, "count": 2, "slot": 1}}))
    outcome = outcome_of(command, "progress", at_ms=NOW_MS, worker="w1")
    assert parse_outcome(encode_outcome(outcome)) == outcome
    OUTCOME_VALIDATOR.validate(outcome.to_json())
    assert not outcome.is_final


def test_a_long_sentence_is_cut():
    value = encode_outcome(an_outcome(message="x" * 100_000))
    assert len(value) < MESSAGE_BYTES_MAX
    assert len(parse_outcome(value).message) == TEXT_CHARACTERS_MAX


@pytest.mark.parametrize(
    "change",
    [{"v": 2}, {"state": "done"}, {"at": "now"}, {"id": 7}, {"worker": None}, {"result": []}],
    ids=str,
)
def test_an_outcome_that_we_do_not_understand_is_none(change):
    value = {**an_outcome().to_json(), **change}
    assert parse_outcome(encoded(value)) is None
    assert list(OUTCOME_VALIDATOR.iter_errors(value))


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[", b"\xff", b"7"], ids=str)
def test_what_is_no_outcome_is_none(value):
    assert parse_outcome(value) is None


# --- anything at all -----------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
_FIELD = st.sampled_from([*EXAMPLE, "part", "signature", "args.where", "args.dry_run", "args.role"])


@settings(max_examples=400, deadline=None)
@given(
    changes=st.dictionaries(_FIELD, _JSON, max_size=3),
    command=st.sampled_from(COMMANDS),
    rules=st.sampled_from([RULES, SIGNED]),
    is_signed=st.booleans(),
)
def test_a_message_of_any_kind_is_taken_ignored_or_refused(changes, command, rules, is_signed):
    value = message({"command": command})
    for name, change in changes.items():
        group, _, key = name.rpartition(".")
        target = value.get(group) if group else value
        if isinstance(target, dict):
            value[group or name] = {**target, key: change} if group else change
    try:
        value = signed(value) if is_signed else value
    except ValueError:
        return  # half of a surrogate pair: cannot be signed, nor sent
    try:
        taken = parsed(value, rules)
    except Refusal:
        return
    if taken is not None:
        if not rules.signing_keys:  # then nobody looks at it
            value.pop("signature", None)
        COMMAND_VALIDATOR.validate(value)
        assert read_command(encode_command(taken), TABLE) == taken


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused(value):
    with pytest.raises(Refusal):
        parse_command(value, RULES, now_ms=NOW_MS)


# --- the published schemas -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schema"), [("command", command_schema()), ("outcome", outcome_schema())]
)
def test_the_schema_in_the_repository_is_the_one_of_the_code(name, schema):
    path = ROOT / "schemas" / f"control-{name}.schema.json"
    assert json.loads(path.read_text()) == schema, (
        f"run: python -m delta_sink.control_schema {name} > schemas/{path.name}"
    )
    jsonschema.Draft202012Validator.check_schema(schema)


def test_the_module_prints_the_schema():
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "delta_sink.control_schema", "outcome"],
        capture_output=True,
        check=True,
        cwd=ROOT,
        text=True,
    )
    assert json.loads(printed.stdout) == outcome_schema()


def test_main_knows_its_arguments(capsys):
    assert main(["everything"]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_schema_knows_every_word():
    text = json.dumps([command_schema(), outcome_schema()])
    for word in (*COMMANDS, *STATES):
        assert f'"{word}"' in text
