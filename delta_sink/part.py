"""What a writer knows of one partition that the group gave it."""

from __future__ import annotations

from msgspec import Struct

from delta_sink.claim import Start
from delta_sink.model import AppId, Run


class Part(Struct):
    """An assigned partition. `start` is set from its first settling on."""

    start: Start | None = None
    is_live: bool = False
    committed: int = 0
    offset_next: int = 0
    gone: tuple[Run, ...] = ()
    halted: str | None = None

    @property
    def reads_at(self) -> int:
        """The offset that is to be read next: behind what Kafka lost, if that was passed over."""
        return self.gone[-1][1] if self.gone else self.offset_next

    @property
    def app_id(self) -> AppId:
        """The name of its `txn`; only of a part that was settled."""
        assert self.start is not None
        return self.start.app_id
