"""The commit protocol, one schedule a test: the real code on a store that does what is written."""

import msgspec
import pytest

from delta_sink.delta.actions import Metadata, Txn, encode_entry
from delta_sink.delta.commit import (
    BACKOFF_MAX_MS,
    COMMIT_TRIES_MAX,
    DOUBT_MAX_MS,
    OPEN_TRIES_MAX,
    commit,
    follow,
    open_log,
)
from delta_sink.delta.logstore import entry_path
from delta_sink.delta.state import KNOWLEDGE_AGE_MAX_MS
from delta_sink.errors import (
    CommitConflict,
    CommitUnknown,
    FencedError,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
    TableRefused,
)
from tests.unit.scripted import (
    SCHEMA,
    Bench,
    after,
    first,
    info,
    lost_after,
    lost_before,
    nothing_landed,
    on_the_wire,
    refused,
)

MINUTE = KNOWLEDGE_AGE_MAX_MS


@pytest.fixture
def bench():
    return Bench()


def checkpoint_at(bench, version):
    """Let a checkpoint be listed. What is in it matters only to those who open the log."""
    bench.store.store(f"_delta_log/{version:020d}.checkpoint.parquet", b"")


# --- answers --------------------------------------------------------------------------------------


def test_created_is_done_in_one_request(bench):
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert bench.store.asked == [("put_if_absent", entry_path(1))]
    assert (state.version, state.txns["mine"]) == (1, 10)
    assert state.e_tag == bench.store.objects[entry_path(1)][1]
    assert bench.landed(plan) == [1]


def test_an_own_commit_does_not_make_knowledge_younger(bench):
    state = bench.state(age_ms=500)
    assert commit(bench.log, state, bench.plan()).looked_at_ms == state.looked_at_ms


def test_every_attempt_sends_the_same_bytes(bench):
    bench.store.script("put_if_absent", lost_before, lost_before)
    plan = bench.plan()
    commit(bench.log, bench.state(), plan)
    assert bench.store.objects[entry_path(1)][0] == plan.body
    assert bench.sent() == [1, 1, 1]


def test_exists_with_another_commit_means_the_next_version(bench):
    bench.other()
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1, 2]
    assert state.txns == {"other": 1, "mine": 10}
    assert bench.landed(plan) == [2]


def test_exists_and_not_there_opens_anew_and_tries_again(bench):
    bench.store.script("put_if_absent", nothing_landed)
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert bench.landed(plan) == [1]
    assert state.version == 1
    kinds = [kind for kind, _ in bench.store.asked]
    assert kinds == ["put_if_absent", "get", "get", "list", "get", "put_if_absent"]


def test_exists_and_not_there_in_doubt_gives_up(bench):
    """An unanswered PUT may still land, so that no other version may be tried."""
    bench.store.script("put_if_absent", on_the_wire(bench.store), nothing_landed)
    plan = bench.plan()
    with pytest.raises(CommitUnknown, match="the log decides"):
        commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1, 1]
    [late] = bench.store.late
    late()
    assert bench.landed(plan) == [1]


@pytest.mark.parametrize("lost", [lost_before, lost_after])
def test_a_lost_answer_is_settled_at_the_same_version(bench, lost):
    bench.store.script("put_if_absent", lost)
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1, 1]
    assert (state.version, bench.landed(plan)) == (1, [1])


def test_a_lost_answer_that_landed_with_another_commit_behind_it(bench):
    """CP8: landed, unanswered, and somebody else took the version after it: done, once."""
    bench.store.script("put_if_absent", lost_after, first(bench.other))
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert (state.version, bench.landed(plan), bench.sent()) == (1, [1], [1, 1])


def test_a_lost_request_with_another_commit_in_its_place(bench):
    bench.store.script("put_if_absent", lost_before, first(bench.other))
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert (state.version, bench.landed(plan), bench.sent()) == (2, [2], [1, 1, 2])


def test_a_late_put_cannot_land_after_its_version_was_read_as_another(bench):
    bench.store.script("put_if_absent", on_the_wire(bench.store), first(bench.other))
    plan = bench.plan()
    commit(bench.log, bench.state(), plan)
    [late] = bench.store.late
    late()
    assert bench.landed(plan) == [2]


def test_a_late_put_that_lands_between_two_attempts_is_recognised(bench):
    store = bench.store
    store.script("put_if_absent", on_the_wire(store), first(lambda: store.late[0]()))
    plan = bench.plan()
    assert commit(bench.log, bench.state(), plan).version == 1
    assert bench.landed(plan) == [1]


def test_the_entry_that_took_the_version_cannot_be_read_at_first(bench):
    bench.other()
    bench.store.script("get", lost_before)
    plan = bench.plan()
    commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1, 1, 2]
    assert bench.landed(plan) == [2]


# --- a definite no --------------------------------------------------------------------------------


def test_a_first_403_is_believed(bench):
    bench.store.script("put_if_absent", refused)
    plan = bench.plan()
    with pytest.raises(StoreRefused, match="403"):
        commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1]
    assert bench.landed(plan) == []


@pytest.mark.parametrize("lost", [lost_before, lost_after])
def test_a_403_after_silence_is_not_believed(bench, lost):
    bench.store.script("put_if_absent", lost, refused, refused)
    plan = bench.plan()
    assert commit(bench.log, bench.state(), plan).version == 1
    assert bench.landed(plan) == [1]


def test_a_403_is_believed_again_once_the_version_is_known_to_be_anothers(bench):
    bench.store.script("put_if_absent", lost_before, first(bench.other), refused)
    plan = bench.plan()
    with pytest.raises(StoreRefused):
        commit(bench.log, bench.state(), plan)
    assert bench.landed(plan) == []


@pytest.mark.parametrize("lost", [lost_before, lost_after])
def test_a_403_to_the_look_is_not_believed_in_doubt_either(bench, lost):
    def slow(honest):
        bench.clock.sleep_ms(MINUTE)
        return lost(honest)

    bench.store.script("put_if_absent", slow)
    bench.store.script("list", refused)
    plan = bench.plan()
    assert commit(bench.log, bench.state(), plan).version == 1
    assert bench.landed(plan) == [1]


def test_a_403_to_the_entry_is_not_believed_in_doubt_either(bench):
    bench.store.script("put_if_absent", lost_after)
    bench.store.script("get", refused)
    plan = bench.plan()
    assert commit(bench.log, bench.state(), plan).version == 1
    assert bench.landed(plan) == [1]


def test_a_403_that_lasts_gives_up_and_does_not_say_that_nothing_landed(bench):
    bench.store.script("put_if_absent", lost_after, *[refused] * COMMIT_TRIES_MAX)
    bench.store.script("list", *[refused] * COMMIT_TRIES_MAX)
    with pytest.raises(CommitUnknown):
        commit(bench.log, bench.state(), bench.plan())


def test_a_403_to_the_look_is_believed_without_doubt(bench):
    bench.store.script("list", refused)
    with pytest.raises(StoreRefused):
        commit(bench.log, bench.state(age_ms=MINUTE), bench.plan())


# --- fences ---------------------------------------------------------------------------------------


def test_a_fenced_plan_sends_nothing(bench):
    plan = bench.plan(expected=5)
    with pytest.raises(FencedError, match="mine: expected txn 5, the log has None at version 0"):
        commit(bench.log, bench.state(), plan)
    assert bench.store.asked == []


def test_a_plan_is_fenced_by_the_entry_that_took_its_version(bench):
    bench.other("mine", 7)
    plan = bench.plan()
    with pytest.raises(FencedError, match="expected txn None, the log has 7 at version 1"):
        commit(bench.log, bench.state(), plan)
    assert bench.landed(plan) == []


def test_conditions_are_checked_after_every_entry_that_is_applied(bench):
    """An offset that moves and comes back (two seeks) is seen to have moved."""
    bench.other("mine", 0)
    state = follow(bench.log, bench.state())
    bench.other("mine", 7)
    bench.other("mine", 0)
    plan = bench.plan(expected=0)
    with pytest.raises(FencedError, match="the log has 7 at version 2"):
        commit(bench.log, state, plan)
    assert bench.landed(plan) == []


def test_a_fence_met_while_in_doubt_means_that_nothing_landed(bench):
    """The plan went to version 1 alone, and version 1 is another's."""
    bench.store.script(
        "put_if_absent", on_the_wire(bench.store), first(lambda: bench.other("mine", 7))
    )
    plan = bench.plan()
    with pytest.raises(FencedError):
        commit(bench.log, bench.state(), plan)
    bench.store.late[0]()
    assert bench.landed(plan) == []


def test_two_lost_races_are_followed_by_a_look(bench):
    for _ in range(6):
        bench.other()
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1, 2, 7]
    assert bench.store.count("list") == 1
    assert (state.version, bench.landed(plan)) == (7, [7])


def test_a_fence_is_found_by_a_look_too(bench):
    for _ in range(3):
        bench.other()
    bench.other("mine", 3)
    with pytest.raises(FencedError, match="version 4"):
        commit(bench.log, bench.state(), bench.plan())


# --- age of knowledge -----------------------------------------------------------------------------


def test_old_knowledge_looks_before_it_sends(bench):
    plan = bench.plan()
    state = commit(bench.log, bench.state(age_ms=MINUTE), plan)
    assert [kind for kind, _ in bench.store.asked] == ["list", "put_if_absent"]
    assert state.looked_at_ms == bench.clock.now_ms


def test_knowledge_of_just_under_a_minute_sends_at_once(bench):
    commit(bench.log, bench.state(age_ms=MINUTE - 1), bench.plan())
    assert [kind for kind, _ in bench.store.asked] == ["put_if_absent"]


def test_the_age_of_a_look_counts_from_its_beginning(bench):
    bench.store.script("list", first(lambda: bench.clock.sleep_ms(MINUTE)))
    began_ms = bench.clock.now_ms
    state = commit(bench.log, bench.state(age_ms=MINUTE), bench.plan())
    assert [kind for kind, _ in bench.store.asked] == ["list", "list", "put_if_absent"]
    assert state.looked_at_ms == began_ms + MINUTE


def cleaned_up(bench, versions=5):
    """Let the log grow to `versions`, be checkpointed there, and lose what is below."""
    while bench.head < versions:
        bench.other()
    write_checkpoint(bench, versions, {"other": 1})
    bench.remove(*range(versions))


def write_checkpoint(bench, version, txns):
    lines = [
        {"protocol": msgspec.to_builtins(bench.protocol)},
        {"metaData": msgspec.to_builtins(bench.metadata)},
        *({"txn": {"appId": app_id, "version": v}} for app_id, v in txns.items()),
    ]
    path = f"_delta_log/{version:020d}.checkpoint.01234567-89ab-cdef-0123-456789abcdef.json"
    bench.store.store(path, b"\n".join(map(msgspec.json.encode, lines)))


def test_a_created_that_comes_after_a_clean_up_is_not_believed(bench):
    """The entry stands where nobody will ever read it. The plan is in doubt and dropped."""
    plan = bench.plan()

    def meanwhile():
        cleaned_up(bench)
        bench.clock.sleep_ms(MINUTE)

    bench.store.script("put_if_absent", first(meanwhile))
    with pytest.raises(CommitUnknown, match="behind a checkpoint"):
        commit(bench.log, bench.state(), plan)
    assert bench.landed(plan) == [1]
    assert "mine" not in open_log(bench.log).txns


def test_a_created_that_comes_late_but_without_a_clean_up_is_found_to_be_ours(bench):
    bench.store.script("put_if_absent", after(lambda: bench.clock.sleep_ms(MINUTE)))
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert (state.version, bench.landed(plan), bench.sent()) == (1, [1], [1])


def test_an_exists_that_comes_after_a_clean_up_is_not_believed(bench):
    """Version 1 was another's, is cleaned up, and the answer to it is a minute old."""
    plan = bench.plan()
    bench.other()

    def meanwhile():
        cleaned_up(bench)
        bench.clock.sleep_ms(MINUTE)

    bench.store.script("put_if_absent", after(meanwhile))
    with pytest.raises(CommitUnknown):
        commit(bench.log, bench.state(), plan)
    assert bench.landed(plan) == []


def test_an_exists_with_the_own_commit_in_a_place_that_was_cleaned_up(bench):
    """The late PUT landed where nobody reads: finding it there is no proof that it counts."""
    store = bench.store

    def meanwhile():
        cleaned_up(bench)
        store.late[0]()
        bench.clock.sleep_ms(MINUTE)

    store.script("put_if_absent", on_the_wire(store), first(meanwhile))
    plan = bench.plan()
    with pytest.raises(CommitUnknown):
        commit(bench.log, bench.state(), plan)
    assert bench.landed(plan) == [1]
    assert "mine" not in open_log(bench.log).txns


def test_an_exists_whose_entry_is_cleaned_up_before_it_is_read(bench):
    """Within the minute: nothing of ours was taken, so that the plan goes to the new head."""
    plan = bench.plan()
    bench.other()
    bench.store.script("get", first(lambda: cleaned_up(bench)))
    state = commit(bench.log, bench.state(), plan)
    assert (state.version, bench.landed(plan)) == (6, [6])


def test_an_entry_that_is_read_too_late_is_not_believed(bench):
    plan = bench.plan()
    bench.other()
    bench.store.script("get", after(lambda: bench.clock.sleep_ms(MINUTE)))
    state = commit(bench.log, bench.state(), plan)
    assert [kind for kind, _ in bench.store.asked][:4] == ["put_if_absent", "get", "list", "get"]
    assert (state.version, bench.landed(plan)) == (2, [2])


def test_old_knowledge_behind_a_checkpoint_opens_anew_and_commits_at_the_head(bench):
    """D12: a PUT of version 1 would succeed there and be lost."""
    state = bench.state(age_ms=MINUTE)
    cleaned_up(bench)
    plan = bench.plan()
    found = commit(bench.log, state, plan)
    assert (found.version, bench.landed(plan), bench.sent()) == (6, [6], [6])


def test_what_a_look_has_shown_is_read_again_and_not_sent_to(bench):
    """Seed 507834. A checkpoint and a clean-up come while a read of old entries is tried again.

    A PUT to an entry that was there a moment ago would be created, and never be read.
    """
    plan = bench.plan()
    for _ in range(3):
        bench.other()
    bench.store.script("get", first(lambda: cleaned_up(bench), lost_before))
    state = commit(bench.log, bench.state(age_ms=MINUTE), plan)
    assert (state.version, bench.landed(plan), bench.sent()) == (6, [6], [6])
    assert open_log(bench.log).txns["mine"] == 10


def test_what_a_look_has_shown_is_not_sent_to_in_doubt_either(bench):
    """The PUT of version 1 had no answer, and the look shows that somebody has version 1."""

    def long_silence(honest):
        for _ in range(3):
            bench.other()
        bench.clock.sleep_ms(MINUTE)
        return lost_before(honest)

    bench.store.script("put_if_absent", long_silence)
    bench.store.script("get", first(lambda: cleaned_up(bench), lost_before))
    plan = bench.plan()
    with pytest.raises(CommitUnknown, match="behind a checkpoint"):
        commit(bench.log, bench.state(), plan)
    assert (bench.landed(plan), bench.sent()) == ([], [1])


def test_a_read_that_fails_after_a_look_goes_on_where_it_was(bench):
    plan = bench.plan()
    for _ in range(3):
        bench.other()
    bench.store.script("get", lambda honest: honest(), lost_before, lost_before)
    state = commit(bench.log, bench.state(age_ms=MINUTE), plan)
    assert bench.store.count("list") == 1
    assert [path for kind, path in bench.store.asked if kind == "get"] == [
        entry_path(version) for version in (1, 2, 2, 2, 3)
    ]
    assert (state.version, bench.sent()) == (4, [4])


def test_old_knowledge_that_is_fenced_behind_a_checkpoint(bench):
    state = bench.state(age_ms=MINUTE)
    bench.other("mine", 4)
    write_checkpoint(bench, 1, {"mine": 4})
    bench.remove(0)
    plan = bench.plan()
    with pytest.raises(FencedError):
        commit(bench.log, state, plan)
    assert bench.landed(plan) == []


def test_old_knowledge_with_an_unanswered_put_is_renewed_and_sent_again(bench):
    def slow_silence(honest):
        bench.clock.sleep_ms(MINUTE)
        return lost_before(honest)

    bench.store.script("put_if_absent", slow_silence)
    plan = bench.plan()
    commit(bench.log, bench.state(), plan)
    assert [kind for kind, _ in bench.store.asked] == ["put_if_absent", "list", "put_if_absent"]
    assert bench.sent() == [1, 1]
    assert bench.landed(plan) == [1]


def test_old_knowledge_with_an_unanswered_put_behind_a_checkpoint_is_dropped(bench):
    def long_silence(honest):
        cleaned_up(bench)
        bench.clock.sleep_ms(MINUTE)
        return on_the_wire(bench.store)(honest)

    bench.store.script("put_if_absent", long_silence)
    plan = bench.plan()
    with pytest.raises(CommitUnknown):
        commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1]
    bench.store.late[0]()
    assert "mine" not in open_log(bench.log).txns


def test_an_unanswered_put_is_recognised_by_the_look(bench):
    def landed_in_silence(honest):
        honest()
        bench.other()
        bench.clock.sleep_ms(MINUTE)
        raise StoreUnavailable("timed out")

    bench.store.script("put_if_absent", landed_in_silence)
    plan = bench.plan()
    state = commit(bench.log, bench.state(), plan)
    assert (state.version, bench.sent(), bench.landed(plan)) == (1, [1], [1])


def test_a_changed_e_tag_opens_anew(bench):
    """The table was dropped and made again: another entry 0, with its own rows."""
    state = bench.state(age_ms=MINUTE)
    bench.store.objects.clear()
    bench.head = -1
    again = Metadata("another-id", SCHEMA, configuration=bench.metadata.configuration)
    bench.other(protocol=bench.protocol, metadata=again)
    found = commit(bench.log, state, bench.plan())
    assert found.metadata.id == "another-id"


def test_a_table_that_is_gone_is_no_table_to_go_on_with(bench):
    state = bench.state(age_ms=MINUTE)
    bench.store.objects.clear()
    with pytest.raises(TableRefused, match="gone"):
        commit(bench.log, state, bench.plan())
    with pytest.raises(TableRefused, match="gone"):
        follow(bench.log, state)


def test_a_look_minds_a_checkpoint_above(bench):
    """Entry 0 is there and all that came after it is not: a clean-up that was not ours."""
    state = bench.state(age_ms=MINUTE)
    while bench.head < 5:
        bench.other()
    write_checkpoint(bench, 5, {"other": 1})
    bench.remove(1, 2, 3, 4, 5)
    plan = bench.plan()
    assert commit(bench.log, state, plan).version == 6
    assert bench.sent() == [6]


def test_a_checkpoint_at_the_known_version_renews(bench):
    """It proves that nothing above was cleaned up: clean-up removes what lies below one."""
    checkpoint_at(bench, 0)
    commit(bench.log, bench.state(age_ms=MINUTE), bench.plan())
    assert [kind for kind, _ in bench.store.asked] == ["list", "put_if_absent"]


# --- giving up ------------------------------------------------------------------------------------


def test_silence_without_end_gives_up_and_sends_to_no_other_version(bench):
    bench.store.script("put_if_absent", *[lost_before] * COMMIT_TRIES_MAX)
    began_ms = bench.clock.now_ms
    with pytest.raises(CommitUnknown, match="version 1: no certain answer"):
        commit(bench.log, bench.state(), bench.plan())
    assert set(bench.sent()) == {1}
    assert DOUBT_MAX_MS <= bench.clock.now_ms - began_ms <= DOUBT_MAX_MS + 2 * BACKOFF_MAX_MS


def test_a_store_that_answers_nothing_at_all_gives_up(bench):
    bench.store.script("put_if_absent", *[lost_before] * COMMIT_TRIES_MAX)
    bench.store.script("list", *[lost_before] * COMMIT_TRIES_MAX)
    began_ms = bench.clock.now_ms
    with pytest.raises(CommitUnknown):
        commit(bench.log, bench.state(), bench.plan())
    assert set(bench.sent()) == {1}
    assert bench.clock.now_ms - began_ms <= DOUBT_MAX_MS + 2 * BACKOFF_MAX_MS


def test_pauses_between_silences_grow_and_are_bounded(bench):
    bench.store.script("put_if_absent", *[lost_before] * 12)
    commit(bench.log, bench.state(), bench.plan())
    slept = bench.clock.slept_ms
    assert slept[:4] == [50, 100, 200, 400]
    assert slept == sorted(slept)
    assert max(slept) == BACKOFF_MAX_MS


def test_races_without_end_give_up(bench):
    def race(honest):
        bench.other()
        return honest()

    bench.store.script("put_if_absent", *[race] * (COMMIT_TRIES_MAX + 1))
    plan = bench.plan()
    with pytest.raises(CommitUnknown, match="attempts"):
        commit(bench.log, bench.state(), plan)
    assert bench.landed(plan) == []


# --- reading back ---------------------------------------------------------------------------------


def test_reading_back_costs_one_request_and_finds_the_own_commit():
    bench = Bench(readback=True)
    plan = bench.plan()
    assert commit(bench.log, bench.state(), plan).version == 1
    assert [kind for kind, _ in bench.store.asked] == ["put_if_absent", "get"]


def test_reading_back_notices_that_the_store_let_two_win():
    """D16: a store whose condition fails under faults. The entry read decides."""
    bench = Bench(readback=True)
    plan = bench.plan()

    def overwritten():
        bench.store.objects.pop(entry_path(1))
        bench.head = 0
        bench.other()

    bench.store.script("put_if_absent", after(overwritten))
    state = commit(bench.log, bench.state(), plan)
    assert (state.version, bench.landed(plan)) == (2, [2])


def test_a_created_that_cannot_be_read_back_is_in_doubt():
    """It was acknowledged, so that it may appear: the plan must not go to another version."""
    bench = Bench(readback=True)
    plan = bench.plan()
    bench.store.script("put_if_absent", after(lambda: bench.store.delete(entry_path(1))))
    with pytest.raises(CommitUnknown):
        commit(bench.log, bench.state(), plan)
    assert bench.sent() == [1]


# --- following ------------------------------------------------------------------------------------


def test_following_applies_what_is_new_and_renews(bench):
    state = bench.state(age_ms=MINUTE)
    for version in range(3):
        bench.other(f"app{version}", version)
    found = follow(bench.log, state)
    assert (found.version, found.looked_at_ms) == (3, bench.clock.now_ms)
    assert found.txns == {"app0": 0, "app1": 1, "app2": 2}


def test_following_past_an_entry_that_is_cleaned_up_meanwhile(bench):
    state = bench.state()
    bench.other()
    bench.store.script("get", first(lambda: cleaned_up(bench)))
    assert follow(bench.log, state).version == 5


def test_following_an_unchanged_log_costs_one_request(bench):
    assert follow(bench.log, bench.state()).version == 0
    assert [kind for kind, _ in bench.store.asked] == ["list"]


@pytest.mark.parametrize("error", [lost_before, refused])
def test_following_says_what_the_store_says(bench, error):
    bench.store.script("list", error)
    with pytest.raises((StoreUnavailable, StoreRefused)):
        follow(bench.log, bench.state())


def test_protocol_and_metadata_of_later_entries_are_known(bench):
    changed = Metadata("table-id", SCHEMA, configuration={"delta.appendOnly": "true"})
    bench.other(metadata=changed)
    assert follow(bench.log, bench.state()).metadata == changed


# --- opening --------------------------------------------------------------------------------------


def test_there_is_no_table_yet():
    bench = Bench()
    bench.store.objects.clear()
    assert open_log(bench.log) is None


def test_opening_reads_from_the_newest_checkpoint_on_found_by_list(bench):
    for version in range(6):
        bench.other(f"app{version}", version)
    write_checkpoint(bench, 2, {"old": 1})
    write_checkpoint(bench, 4, {"newer": 2})
    bench.store.store("_delta_log/_last_checkpoint", b'{"version":2,"size":1}')
    state = open_log(bench.log)
    assert state.version == 6
    assert state.txns == {"newer": 2, "app4": 4, "app5": 5}


@pytest.mark.parametrize("hint", [b'{"version":5,"size":1}', b'{"version":-1}', b"nonsense", b""])
def test_a_wrong_hint_of_the_last_checkpoint_costs_a_list_and_nothing_else(bench, hint):
    for version in range(6):
        bench.other(f"app{version}", version)
    write_checkpoint(bench, 4, {"newer": 2})
    bench.store.store("_delta_log/_last_checkpoint", hint)
    state = open_log(bench.log)
    assert state.version == 6
    assert state.txns == {"newer": 2, "app4": 4, "app5": 5}


def test_the_hint_of_the_last_checkpoint_saves_listing_what_is_before_it(bench):
    for version in range(6):
        bench.other(f"app{version}", version)
    write_checkpoint(bench, 4, {"newer": 2})
    bench.store.store("_delta_log/_last_checkpoint", b'{"version":4,"size":1}')
    bench.store.asked.clear()
    assert open_log(bench.log).version == 6
    assert len([kind for kind, _ in bench.store.asked if kind == "list"]) == 1


def test_an_incomplete_checkpoint_in_parts_is_passed_over(bench):
    bench.other()
    for part in (1, 3):
        path = f"_delta_log/{1:020d}.checkpoint.{part:010d}.{3:010d}.parquet"
        bench.store.store(path, b"no parquet")
    assert open_log(bench.log).version == 1


def test_a_gap_in_the_log_is_refused(bench):
    for _ in range(4):
        bench.other()
    bench.remove(2)
    with pytest.raises(TableRefused, match="no entry 2 although it has later ones"):
        open_log(bench.log)


def test_a_gap_at_the_beginning_is_refused(bench):
    bench.other()
    bench.remove(0)
    with pytest.raises(TableRefused, match="no entry 0"):
        open_log(bench.log)


def test_a_gap_below_the_checkpoint_is_nobodys_business(bench):
    for _ in range(4):
        bench.other()
    write_checkpoint(bench, 3, {})
    bench.remove(0, 1, 2)
    assert open_log(bench.log).version == 4


def test_an_entry_that_vanishes_while_opening_is_behind_a_newer_checkpoint(bench):
    bench.other()
    bench.store.script("get", first(lambda: cleaned_up(bench)))
    assert open_log(bench.log).version == 5


def test_a_checkpoint_that_vanishes_while_opening(bench):
    write_checkpoint(bench, 0, {})
    old = "_delta_log/00000000000000000000.checkpoint.01234567-89ab-cdef-0123-456789abcdef.json"

    def replaced():
        cleaned_up(bench)
        bench.store.delete(old)

    bench.store.script("get", first(replaced))
    assert open_log(bench.log).version == 5


def test_a_log_that_never_holds_still_is_refused(bench):
    def vanish(honest):
        raise ObjectMissing("gone")

    # Each opening asks for the hint of the last checkpoint first, then for an entry.
    bench.store.script("get", *[vanish] * (2 * OPEN_TRIES_MAX))
    with pytest.raises(TableRefused, match=f"changed {OPEN_TRIES_MAX} times"):
        open_log(bench.log)


def test_an_entry_0_without_protocol_is_no_table(bench):
    bench.store.store(entry_path(0), b'{"txn":{"appId":"a","version":1}}')
    with pytest.raises(TableRefused, match="no Delta table"):
        open_log(bench.log)


@pytest.mark.parametrize("damage", [b"{", b"not json", b"[]", b'{"txn":{"appId":1}}'])
def test_a_damaged_entry_is_refused_with_its_place(bench, damage):
    bench.store.store(entry_path(1), b'{"txn":{"appId":"a","version":1}}\n' + damage)
    with pytest.raises(TableRefused, match=r"00001\.json line 2: expected a Delta action"):
        open_log(bench.log)


def test_a_state_from_a_checkpoint_without_its_entry_is_renewed_by_opening(bench):
    cleaned_up(bench)
    bench.remove(5)
    state = open_log(bench.log)
    assert (state.version, state.e_tag) == (5, "")
    assert follow(bench.log, state).version == 5
    assert commit(bench.log, state, bench.plan()).version == 6


# --- receipts -------------------------------------------------------------------------------------


def entry_with(bench, user_metadata):
    line = {"commitInfo": {"operation": "WRITE", "userMetadata": user_metadata}}
    bench.store.store(entry_path(1), msgspec.json.encode(line))


@pytest.mark.parametrize("reads", ["open", "follow", "commit"])
def test_a_receipt_of_a_newer_format_is_refused_by_whoever_reads_it(bench, reads):
    state = bench.state()
    entry_with(bench, '{"format":2,"kind":"append","commit_id":"x","what":[]}')
    calls = {
        "open": lambda: open_log(bench.log),
        "follow": lambda: follow(bench.log, state),
        "commit": lambda: commit(bench.log, state, bench.plan()),
    }
    with pytest.raises(TableRefused, match=r"version 1 .* newer delta-sink \(receipt format 2"):
        calls[reads]()


def test_a_damaged_receipt_is_refused(bench):
    entry_with(bench, '{"format":1,"commit_id":"x","kind":"append"}')
    with pytest.raises(TableRefused, match="version 1 of the table carries a damaged receipt"):
        open_log(bench.log)


@pytest.mark.parametrize(
    "theirs", ["free text", '{"format":7}', '{"commit_id":"x"}', "[1]", {"a": 1}, 5, None]
)
def test_what_others_write_there_is_not_ours(bench, theirs):
    entry_with(bench, theirs)
    assert commit(bench.log, bench.state(), bench.plan()).version == 2


def test_only_the_commit_id_makes_an_entry_ours(bench):
    """Same bytes but for the id: another worker's commit of the same offsets."""
    bench.store.store(entry_path(1), encode_entry([info("somebody"), Txn("mine", 10)]))
    with pytest.raises(FencedError):
        commit(bench.log, bench.state(), bench.plan())


def test_a_conflict_is_a_fence():
    assert issubclass(CommitConflict, FencedError)
