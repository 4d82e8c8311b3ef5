"""Every error of delta-sink, by what the worker's loop does about it.

    DeltaSinkError
    ├── RetriableError          back off and try again, a bounded number of times
    │   ├── StoreUnavailable    the store gave no usable answer; a PUT may have landed
    │   ├── CommitUnknown       the answers ran out; the commit may have landed: open the log anew
    │   └── BrokerUnavailable   Kafka gave no answer in time
    ├── FencedError             drop the work, read the log again
    │   └── CommitConflict      the log moved on so that the plan is wrong now; nothing of it landed
    ├── DataError               this record is bad: dead letter, or stop, by the operator's policy
    └── FatalError              stop with one sentence and an exit code that is not zero
        ├── ConfigError         the configuration is wrong; all problems at once
        ├── StoreRefused        the store said a definite no (403, no such bucket, read-only disk)
        ├── TableRefused        the table is not one that this sink may write to
        └── SourceRefused       the topic is not what the log says it was (gap, re-created, taken)
    ObjectMissing               no object of that name; the caller knows what that means

A message is one sentence in lower case: what, where, got, wanted. A record's value stands in no
message but `DataError.message`, which goes into the dead letter and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence


class DeltaSinkError(Exception):
    """The root of all errors that delta-sink raises on purpose."""


class RetriableError(DeltaSinkError):
    """The same call may succeed later. The caller backs off; its tries have a named limit."""


class StoreUnavailable(RetriableError):
    """The object store gave no usable answer (time-out, reset, 5xx, 429).

    After a read: read again. After a PUT the outcome is unknown: it may land later. Only the log
    says what happened (DESIGN, "Unknown outcome").
    """


class CommitUnknown(RetriableError):
    """A commit was sent and never answered. Open the log anew, drop the plan, do as the log says."""


class BrokerUnavailable(RetriableError):
    """Kafka did not answer in time. Nothing is known; ask again."""


class FencedError(DeltaSinkError):
    """Somebody else moved an offset of this plan. Drop files and offsets together and re-read."""


class CommitConflict(FencedError):
    """The table changed so that the plan must be made again (schema, protocol, vacuum's fence)."""


class DataError(DeltaSinkError):
    """One record cannot become a row.

    Attributes:
        reason: a short, bounded name for metrics (`type_mismatch`, `invalid_json`, …).
        message: the sentence for the dead letter. It may show the value.
        redacted: the same sentence without the value: for logs and for the process's last words.
    """

    def __init__(self, *, reason: str, message: str, redacted: str) -> None:
        super().__init__(redacted)
        self.reason = reason
        self.message = message
        self.redacted = redacted


class FatalError(DeltaSinkError):
    """Nothing that this process can do helps. Its message is the one sentence a person reads."""


class ConfigError(FatalError):
    """The configuration is wrong. `problems` holds every one, each `path: sentence`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class StoreRefused(FatalError):
    """The object store answered with a definite no: credentials, rights, no bucket, disk full."""


class TableRefused(FatalError):
    """The table uses something that this sink does not implement, or is not the expected one."""


class SourceRefused(FatalError):
    """The topic and the log disagree in a way that only a person can settle."""


class ObjectMissing(DeltaSinkError):
    """The store holds no object of that name."""
