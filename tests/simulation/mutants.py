"""Mutants: the production code with one rule taken out, and where that must show.

A mutant is a piece of source with a line changed, for the time of a run. `scenario` says what is
run. Those of `chaos` are random: `seed` is the first seed that catches the mutant, and the suite
replays it; `python -m tests.simulation.mutants` hunts anew, from seed 0 on, and prints how many
seeds each one took (after a change of the simulation every seed means another run). `seeds` is how
many it may take.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

from delta_sink import claim, pipeline, seek, writer
from delta_sink.delta import commit as protocol
from delta_sink.delta.plan import NoRival, Plan, StillSupported, TagAboveFence, TxnIs
from delta_sink.delta.state import LogState
from delta_sink.testing import Killed
from delta_sink.writer import Writer
from tests.simulation import foreign
from tests.simulation import test_crash_points as crash_points
from tests.simulation import test_starts as starts
from tests.simulation.run import prepare, run
from tests.unit import test_commit_protocol as unit
from tests.unit.scripted import Bench

HUNT_SEEDS_MAX = 3_000


def chaos(seed: int) -> None:
    """Everything at once."""
    outcome, _ = run(seed)
    for _, sentence in outcome.failures:
        raise AssertionError(sentence)


def seeded(test: Callable[[int], None]) -> Callable[[int], None]:
    """Return a directed test of a module that takes a seed as a scenario."""
    return test


def on_bench(test: Callable[[Bench], None]) -> Callable[[int], None]:
    """Return a protocol test as a scenario; it has no chance in it."""
    return lambda seed: test(Bench())


def at_crash_point(test: Callable, *args: object) -> Callable[[int], None]:
    """Return a crash-point test as a scenario."""

    def scenario(seed: int) -> None:
        context, sim = crash_points.filled(seed)
        try:
            test(sim, *args)
        finally:
            context.__exit__(None, None, None)

    return scenario


@dataclass(frozen=True)
class Change:
    """One replacement in the source of a function or method."""

    owner: object
    name: str
    old: str
    new: str

    def made(self) -> object:
        """Return the function with the replacement made."""
        function = inspect.getattr_static(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.name} has changed: mend its mutant"
        names: dict[str, object] = {}
        flags = __future__.annotations.compiler_flag
        code = compile(
            source.replace(self.old, self.new), f"<mutant of {self.name}>", "exec", flags
        )
        exec(code, function.__globals__, names)  # a test that changes what it tests
        return names[self.name]


@dataclass(frozen=True)
class Mutant:
    """A rule that is not kept, and where that must show within so many seeds."""

    name: str
    scenario: Callable[[int], None]
    changes: tuple[Change, ...]
    seeds: int = 1
    seed: int = 0

    def __str__(self) -> str:
        return self.name.replace(" ", "_")

    @contextmanager
    def applied(self):
        """Let the production code be the mutant's for the time of the block."""
        before = [inspect.getattr_static(change.owner, change.name) for change in self.changes]
        made = [change.made() for change in self.changes]
        for change, function in zip(self.changes, made, strict=True):
            setattr(change.owner, change.name, function)
        try:
            yield
        finally:
            for change, function in zip(self.changes, before, strict=True):
                setattr(change.owner, change.name, function)

    def caught_by(self, seed: int) -> str | None:
        """Return what the suite says of the mutant with this seed, None if it lives."""
        with self.applied():
            try:
                self.scenario(seed)
            except (Exception, Killed) as error:
                return f"{type(error).__name__}: {error}".splitlines()[0]
            except BaseException as error:  # `pytest.fail` is none of Exception's
                if type(error).__name__ != "Failed":
                    raise
                return str(error).splitlines()[0]
        return None


ATTEMPTS = protocol._Attempts
NO_ANSWER = "    except StoreUnavailable:\n        answer = None\n    except StoreRefused"
PLAN_TXN = "actions.append(Txn(app_id, covered.offset_next))"
START_COMMIT = "assert self._view is not None"
AGE_AFTER_ANSWER = "    if self._is_old():\n"


def no_answer(does: str) -> Change:
    return Change(ATTEMPTS, "_attempt", NO_ANSWER, NO_ANSWER.replace("answer = None", does))


MUTANTS = [
    Mutant(
        "trust a conflict alone: no look at txn",
        chaos,
        (Change(TxnIs, "check", "if found != self.expected:", "if False:"),),
        seeds=8,
    ),
    Mutant(
        "check txn on one snapshot and commit on another",
        chaos,
        (
            Change(
                Plan,
                "check",
                "in self.conditions:",
                "in () if entry is not None else self.conditions:",
            ),
        ),
        seeds=8,
    ),
    Mutant(
        "unknown outcome: retry at another version",
        chaos,
        (no_answer("self._state = replace(self._state, version=version); return False"),),
        seeds=8,
    ),
    Mutant(
        "unknown outcome: take it for done",
        chaos,
        (
            no_answer(
                "self._state = self._state.applied("
                "parse_entry(version, self._plan.body, '')); return True"
            ),
        ),
        seeds=12,
    ),
    Mutant(
        "unknown outcome: delete its files",
        chaos,
        (
            Change(
                ATTEMPTS,
                "_in_doubt",
                'self._count("unknown")',
                "[self._log.store.delete(add.path) "
                "for add in parse_entry(0, self._plan.body, '').adds]",
            ),
        ),
        seeds=8,
        seed=4,
    ),
    Mutant(
        "unknown outcome: send its files again after opening anew",
        on_bench(unit.test_exists_and_not_there_in_doubt_gives_up),
        (Change(ATTEMPTS, "_open_anew", "if self._doubt_since_ms is not None:", "if False:"),),
    ),
    Mutant(
        "a 403 is believed after silence",
        lambda seed: unit.test_a_403_after_silence_is_not_believed(Bench(), unit.lost_after),
        (Change(ATTEMPTS, "_attempt", "if self._doubt_since_ms is None:", "if True:"),),
    ),
    Mutant(
        "PUT from knowledge older than a clean-up",
        on_bench(unit.test_old_knowledge_behind_a_checkpoint_opens_anew_and_commits_at_the_head),
        (Change(LogState, "is_old", "return now_ms", "return False and now_ms"),),
    ),
    Mutant(
        "PUT from knowledge older than a clean-up, in the simulation",
        seeded(starts.test_after_a_long_night_in_which_the_log_was_cleaned_up),
        (Change(LogState, "is_old", "return now_ms", "return False and now_ms"),),
    ),
    Mutant(
        "what a look has shown is sent to",
        on_bench(unit.test_what_a_look_has_shown_is_read_again_and_not_sent_to),
        (Change(ATTEMPTS, "run", "elif self._state.version < self._shown_to:", "elif False:"),),
    ),
    Mutant(
        "believe an old created",
        seeded(starts.test_after_a_long_night_in_which_the_log_was_cleaned_up),
        (Change(ATTEMPTS, "_attempt", AGE_AFTER_ANSWER, "    if False:\n"),),
    ),
    Mutant(
        "believe an old exists",
        on_bench(unit.test_an_exists_with_the_own_commit_in_a_place_that_was_cleaned_up),
        (
            Change(ATTEMPTS, "_attempt", AGE_AFTER_ANSWER, "    if False:\n"),
            Change(ATTEMPTS, "_read", AGE_AFTER_ANSWER, "    if False:\n"),
        ),
    ),
    Mutant(
        "a look that does not mind a checkpoint above",
        on_bench(unit.test_a_look_minds_a_checkpoint_above),
        (
            Change(
                protocol,
                "_look",
                "if any(checkpoint.version > state.version for checkpoint in listing.checkpoints):",
                "if False:",
            ),
        ),
    ),
    Mutant(
        "a look that does not mind another e_tag",
        on_bench(unit.test_a_changed_e_tag_opens_anew),
        (Change(protocol, "_look", "or info.e_tag != state.e_tag", ""),),
    ),
    Mutant(
        "commit the files of a plan without its offsets",
        chaos,
        (Change(writer, "plan_append", PLAN_TXN, "pass"),),
    ),
    Mutant(
        "commit the offsets without the files",
        chaos,
        (
            Change(
                writer,
                "plan_append",
                "actions += [_add(file, now_ms) for file in encoded.files]",
                "pass",
            ),
        ),
    ),
    Mutant(
        "next is read later than its batch",
        chaos,
        (
            Change(
                Writer,
                "_start_commit",
                START_COMMIT,
                "owned = self._consumer.owned\n"
                "    from msgspec.structs import replace\n"
                "    later = tuple(\n"
                "        replace(c, offset_next=max(c.offset_next, owned[c.tp].position))\n"
                "        if c.tp in owned else c\n"
                "        for c in sealed.encoded.ranges\n"
                "    )\n"
                "    sealed.encoded = replace(sealed.encoded, ranges=later)",
            ),
        ),
        seeds=4,
    ),
    Mutant(
        "flush a revoked partition",
        seeded(starts.test_what_is_buffered_of_a_revoked_partition_is_dropped),
        (
            Change(
                Writer,
                "_on_event",
                "lost = [self._parts.pop(tp) for tp in event.partitions if tp in self._parts]",
                "lost = []",
            ),
        ),
        seeds=3,
    ),
    Mutant(
        "commit the group's offset first",
        chaos,
        (
            Change(
                Writer,
                "_start_commit",
                START_COMMIT,
                "self._consumer.commit({c.tp: c.offset_next for c in sealed.encoded.ranges})",
            ),
        ),
        seeds=2,
    ),
    Mutant(
        "skip dead letters before they are durable",
        chaos,
        (Change(pipeline, "encode_batch", "if letters:", "if False:"),),
        seeds=2,
    ),
    Mutant(
        "latest is resolved again on each assignment",
        seeded(starts.test_latest_means_the_same_moment_after_every_restart),
        (
            Change(
                claim,
                "_guarded",
                "starts[tp] = Start(app_id, offset, offset)",
                "starts[tp] = Start(app_id, offset, end[tp])",
            ),
        ),
    ),
    Mutant(
        "each worker claims a start of its own",
        seeded(starts.test_three_writers_at_once_agree_on_latest_while_records_arrive),
        (Change(claim, "_claim_plan", "TxnIs(str(app_id), None)", ""),),
        seeds=3,
    ),
    Mutant(
        "a sink that does not mind another sink",
        seeded(starts.test_of_two_sinks_that_claim_one_topic_at_once_one_wins),
        (Change(NoRival, "check", "for text, txn in state.txns.items():", "for text, txn in ():"),),
    ),
    Mutant(
        "an app id without the topic id",
        seeded(starts.test_a_topic_that_was_created_again_is_refused_at_the_start),
        (Change(claim.Source, "app_id", "if with_id else None", "if False else None"),),
    ),
    Mutant(
        "a topic that was created again is read on under the old name",
        seeded(starts.test_a_topic_that_is_filled_past_the_old_offset_is_not_taken_for_the_old_one),
        (Change(claim.Source, "confirm", "found.get(tp, app_id) != app_id", "False"),),
    ),
    Mutant(
        "an idle writer that does not look at the log",
        seeded(starts.test_an_idle_writer_notices_a_seek_within_two_minutes),
        (
            Change(
                Writer, "_next_for_lane", "if now_ms - self._patrolled_ms >=", "if False and 0 >="
            ),
        ),
    ),
    Mutant(
        "an idle writer that looks and does not compare",
        seeded(starts.test_an_idle_writer_notices_a_seek_within_two_minutes),
        (Change(Writer, "_compare_with_log", "if part.is_live and", "if False and"),),
    ),
    Mutant(
        "a writer that ignores vacuum's fence",
        chaos,
        (Change(TagAboveFence, "check", "if self.tag <= state.vacuum_fence:", "if False:"),),
        seeds=20,
        seed=4,
    ),
    Mutant(
        "a writer that does not mind a property it cannot keep",
        seeded(starts.test_a_property_that_is_not_supported_stops_the_worker),
        (
            Change(
                StillSupported,
                "check",
                "if entry is None or entry.metadata is not None or entry.protocol is not None:",
                "if False:",
            ),
        ),
    ),
    Mutant(
        "records behind a bad one join what came before it",
        seeded(starts.test_records_behind_a_bad_one_are_not_taken_for_its_successors),
        (Change(Writer, "_admit", "if self._stop_asked:", "if False:"),),
    ),
    Mutant(
        "a dropped batch goes on",
        chaos,
        (Change(pipeline.Pipeline, "clear", "self._sealed.clear()", "pass"),),
        seeds=8,
        seed=1,
    ),
    Mutant(
        "a fenced worker never joins again",
        seeded(starts.test_fenced_twice_it_leaves_the_group_and_joins_again),
        (Change(Writer, "_on_fenced", "if self._fences >= FENCES_BEFORE_REJOIN", "if False"),),
    ),
    Mutant(
        "a worker that does not know its own entry",
        at_crash_point(
            crash_points.test_cp8_another_commit_lands_before_the_retry,
            *(
                "500 after apply",
                crash_points.another_append,
            ),
        ),
        (Change(ATTEMPTS, "_take", "receipt.commit_id == self._plan.commit_id", "False"),),
    ),
    Mutant(
        "what a look has shown is sent to, at random",
        chaos,
        (Change(ATTEMPTS, "run", "elif self._state.version < self._shown_to:", "elif False:"),),
        seeds=1_500,
        seed=239,
    ),
    Mutant(
        "believe an old created, at random",
        chaos,
        (Change(ATTEMPTS, "_attempt", AGE_AFTER_ANSWER, "    if False:\n"),),
        seeds=400,
        seed=71,
    ),
    Mutant(
        "PUT from knowledge older than a clean-up, at random",
        chaos,
        (Change(LogState, "is_old", "return now_ms", "return False and now_ms"),),
        seeds=400,
        seed=54,
    ),
    Mutant(
        "believe an old exists, at random",
        chaos,
        (
            Change(
                ATTEMPTS,
                "_attempt",
                AGE_AFTER_ANSWER,
                "    if self._is_old() and not isinstance(answer, Exists):\n",
            ),
            Change(ATTEMPTS, "_read", AGE_AFTER_ANSWER, "    if False:\n"),
        ),
        seeds=1_500,
        seed=357,
    ),
    Mutant(
        "unknown outcome: send its files again after opening anew, at random",
        chaos,
        (Change(ATTEMPTS, "_open_anew", "if self._doubt_since_ms is not None:", "if False:"),),
        seeds=400,
        seed=16,
    ),
    Mutant(
        "an app id without the topic id, at random",
        chaos,
        (Change(claim.Source, "app_id", "if with_id else None", "if False else None"),),
        seeds=60,
    ),
    Mutant(
        "a topic that was created again is read on under the old name, at random",
        chaos,
        (Change(claim.Source, "confirm", "found.get(tp, app_id) != app_id", "False"),),
        seeds=400,
        seed=63,
    ),
    Mutant(
        "a seek that does not mind who moved the offset",
        chaos,
        (Change(seek, "_plan", "conditions.append(TxnIs(text, before))", "pass"),),
        seeds=400,
        seed=90,
    ),
    Mutant(
        "a topic that is adopted and the old name not retired",
        chaos,
        (Change(seek, "_plan", "move(app_id, txn, first=txn, after=RETIRED)", "pass"),),
        seeds=60,
        seed=2,
    ),
    Mutant(
        "a gap that is skipped and not recorded",
        chaos,
        (Change(Writer, "_on_settled", "part.gone = start.gone", "part.gone = ()"),),
        seeds=200,
        seed=13,
    ),
    Mutant(
        "a checkpoint that forgets txns",
        chaos,
        (Change(foreign, "checkpoint", "in oracle.txns.items()]", "in ()]"),),
        seeds=5,
        seed=1,
    ),
    Mutant(
        "clean-up of entries that are not below the newest checkpoint",
        chaos,
        (
            Change(
                foreign,
                "clean_up",
                "and int(info.path[11:31]) < newest",
                "and int(info.path[11:31]) <= newest + 2",
            ),
        ),
        seeds=40,
        seed=2,
    ),
    Mutant(
        "clean-up of entries that are young",
        chaos,
        (
            Change(
                foreign,
                "clean_up",
                "and sim.world.wall_ms - info.modified_ms > age_ms",
                "",
            ),
        ),
        seeds=400,
        seed=11,
    ),
    Mutant(
        "a vacuum that takes what nobody has committed yet, tag or not",
        chaos,
        (Change(foreign, "sweep", "int(path[5:25]) <= fenced if removed", "True if removed"),),
        seeds=60,
        seed=8,
    ),
]


def hunt(mutant: Mutant) -> tuple[int, str] | None:
    """Return the first seed that catches the mutant, and what it says."""
    limit = HUNT_SEEDS_MAX if mutant.scenario is chaos else mutant.seeds
    for seed in range(limit):
        sentence = mutant.caught_by(seed)
        if sentence is not None:
            return seed, sentence
    return None


def main() -> int:
    """Hunt every mutant (or those whose name has a word of the arguments) from seed 0 on."""
    prepare()
    alive = 0
    for mutant in MUTANTS:
        if sys.argv[1:] and not any(word in mutant.name for word in sys.argv[1:]):
            continue
        found = hunt(mutant)
        if found is None:
            alive += 1
            print(f"LIVES     {mutant.name}", flush=True)
        else:
            seed, sentence = found
            late = " TOO LATE" if seed >= mutant.seeds else ""
            print(f"seed {seed:>4}{late} {mutant.name}: {sentence[:110]}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
