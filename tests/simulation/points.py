"""Where in its pipeline a worker is at a moment: the crash points, told from its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from delta_sink.testing import Task
    from tests.simulation.harness import Simulation, Worker

POINTS = {
    "CP1": "polled, not decoded",
    "CP2": "decoding",
    "CP3": "dead letters on their way, or out and their data not",
    "CP4": "a data file on its way",
    "CP5": "data durable, commit not sent",
    "CP6": "commit sent, not arrived",
    "CP7": "commit applied, its answer not arrived or lost",
    "CP8": "as CP7, and another commit landed meanwhile",
    "CP9": "commit acknowledged, not taken note of",
    "CP11": "committed, before the group's offsets are sent",
    "CP12": "the group's offsets are sent, the commit not reported yet",
    "CP13": "a checkpoint written, `_last_checkpoint` not",
}
"""CP10 belongs to the log store over DynamoDB and joins when that does."""


def points_of(sim: Simulation, worker: Worker) -> set[str]:
    """Return the crash points at which `worker` is now."""
    found = {point for task in worker.host.tasks if (point := _point(sim, task)) is not None}
    lane = worker.writer._lane
    if lane is not None and lane.sealed is not None and lane.job.is_done():
        found.add("CP9")
    return found


def _point(sim: Simulation, task: Task) -> str | None:
    at = task.at
    if task.name == "main":
        return _of_main(task)
    if task.name == "decode":
        return "CP2"
    if task.name == "encode":
        return "CP3" if at.startswith("producer.") else None
    if task.name == "put":
        return "CP5" if at == "store.put ends" else "CP4"
    if task.name != "commit":
        return None
    if at == "store.put_if_absent sent":
        return "CP6" if not _is_there(sim, str(task.detail)) else "CP7"
    if at == "store.put_if_absent ends":
        return "CP7"
    return "CP7" if at == "clock.sleep" else "CP5"


def _of_main(task: Task) -> str | None:
    detail = str(task.detail)
    if task.at == "consumer.poll ends" and "→" in detail:
        return "CP1"
    if task.at == "jobs.submit begins" and detail == "decode":
        return "CP1"
    return {"consumer.commit begins": "CP11", "consumer.commit ends": "CP12"}.get(task.at)


def _is_there(sim: Simulation, path: str) -> bool:
    return bool(sim.store.holds(path))
