"""The operator of a simulated sink: reads the sentences of workers that stopped, and seeks.

All of it goes through the production code of `delta-sink seek`, as a task on a host of its own,
under the same faults as everybody else.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from delta_sink.claim import Source
from delta_sink.errors import FatalError, RetriableError, SourceRefused
from delta_sink.model import TopicPartition
from delta_sink.seek import SeekRequest, ToOffset, execute_seek
from delta_sink.start import StartEarliest, StartLatest
from delta_sink.testing import Task, make_log
from tests.simulation.harness import TOPIC, settings_of

if TYPE_CHECKING:
    from tests.simulation.chaos import Chaos

SENTENCES = {
    "gap": "are no longer in Kafka",
    "truncated": "it was truncated or created again",
    "recreated": "created again",
}


class Operator:
    """Mends what only a person can, one thing after another.

    Attributes:
        is_busy: a seek is under way, or something is still to be mended.
    """

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self._sim = chaos.sim
        self._expected: set[str] = set()
        self._truncated: set[int] = set()
        self._is_recreated = False
        self._task: Task | None = None
        self._request: SeekRequest | None = None
        self._number = 0
        self._heard: dict[int, int] = {}
        self._gaps: set[int] = set()
        self._restarts = 0

    @property
    def is_busy(self) -> bool:
        is_mending = self._truncated or self._is_recreated or self._gaps
        return bool(self._task or self._restarts or is_mending)

    def expect(self, what: str, partition: int | None = None) -> None:
        """Take note that workers will stop with this sentence."""
        self._expected.add(what)
        if what == "truncated":
            assert partition is not None
            self._truncated.add(partition)
        self._is_recreated = self._is_recreated or what == "recreated"

    def knows(self, error: BaseException) -> bool:
        """Whether the sentence is one that was to be expected."""
        return isinstance(error, SourceRefused) and any(
            SENTENCES[what] in str(error) for what in self._expected
        )

    def hear(self, sentence: str) -> None:
        """Adopt once more, as the sentence says, where a late claim was under the old topic id.

        Whoever asked before that claim landed was told that there is nothing to adopt.
        """
        if "recreated" in self._expected and "--adopt-topic" in sentence:
            self._is_recreated = True

    def seek_somewhere(self, random: Random) -> bool | None:
        """Seek one partition to some offset that Kafka has; False if this is no time for it."""
        if self.is_busy or self._chaos.is_quiet or self._sim.oracle.version < 1:
            return False
        partition = random.randrange(self._sim.partitions)
        log = self._sim.kafka.log(TopicPartition(TOPIC, partition))
        target = random.choice(
            (
                StartEarliest(),
                StartLatest(),
                ToOffset(random.randint(log.earliest, log.last_stable)),
                ToOffset(random.randint(log.earliest, log.last_stable)),
            )
        )
        self._seek(SeekRequest("ops", "a drill", target, TOPIC, (partition,)))
        return None

    def look(self) -> None:
        """Take the outcome of the last seek, read what workers say, begin the next seek."""
        self._listen()
        if self._task is not None:
            if not self._task.done:
                return
            self._take(self._task)
            self._task = None
        if self._chaos.is_quiet:
            return
        if self._is_recreated:
            self._seek(SeekRequest("ops", "created again", topic=TOPIC, adopt_topic=True))
        elif self._truncated:
            partition = min(self._truncated)
            self._seek(SeekRequest("ops", "truncated", StartLatest(), TOPIC, (partition,)))
        elif self._gaps:
            partition = min(self._gaps)
            self._seek(SeekRequest("ops", "a gap", StartEarliest(), TOPIC, (partition,)))

    def _listen(self) -> None:
        """Hear of partitions that were halted, and mend what it takes to go on."""
        for worker in self._sim.workers.values():
            events = worker.host.telemetry.events
            heard = self._heard.get(id(worker), 0)
            for _, name, _, fields in events[heard:]:
                if name == "partition_halted":
                    self._on_halted(worker, int(fields["partition"]), str(fields["error"]))
            self._heard[id(worker)] = len(events)

    def _on_halted(self, worker, partition: int, sentence: str) -> None:
        known = [what for what in self._expected if SENTENCES[what] in sentence]
        if not known:
            raise SourceRefused(sentence)
        self._chaos.done["partition halted"] += 1
        if "gap" in known and not self._is_recreated:
            self._gaps.add(partition)
        # It goes on without this partition; started again it reads it from where the seek says.
        self._restarts += 1
        self._sim.world.later(4_000, lambda: self._restart(worker))

    def _restart(self, worker) -> None:
        self._restarts -= 1
        if worker.is_up:
            worker.stop()

    def _seek(self, request: SeekRequest) -> None:
        world, sim = self._sim.world, self._sim
        self._number += 1
        name = f"ops{self._number}"
        host = world.host(name)
        request = SeekRequest(
            name,
            request.reason,
            request.target,
            request.topic,
            request.partitions,
            adopt_topic=request.adopt_topic,
        )
        source = Source(settings_of(), make_log(host, sim.store), sim.kafka.broker(host), None)
        self._request = request
        self._task = world.spawn(
            host,
            lambda: execute_seek(source, request),
            may_fail=(FatalError, RetriableError),
        )

    def _take(self, task: Task) -> None:
        """Judge what the seek said, and see what is left to mend."""
        request = self._request
        assert request is not None
        if task.error is None:
            version = task.result.version  # type: ignore[attr-defined]  # a `Sought`
            self._chaos.done["seek landed"] += version is not None
            if version is not None and version in self._sim.oracle.receipts:
                self._sim.oracle.check_seek(request.operator, version)
            self._mended(request)
        elif isinstance(task.error, SourceRefused) and "nothing to adopt" in str(task.error):
            self._mended(request)  # an earlier attempt has landed after all
        elif isinstance(task.error, SourceRefused) and "no writer has begun" in str(task.error):
            self._mended(request)

    def _mended(self, request: SeekRequest) -> None:
        if request.adopt_topic:
            self._is_recreated = False
            self._gaps.clear()
            self._chaos.stands_still.clear()
        elif request.reason == "truncated":
            self._truncated.difference_update(request.partitions)
            self._chaos.stands_still.difference_update(request.partitions)
        elif request.reason == "a gap":
            self._gaps.difference_update(request.partitions)
