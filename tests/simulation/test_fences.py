"""Vacuum's fence makes a writer upload again, however often; nobody else reads its partitions."""

import pytest

from tests.simulation.harness import simulation

FENCES = 5


@pytest.mark.parametrize("seed", range(3))
def test_vacuum_after_vacuum_a_writer_keeps_its_partitions(seed):
    """A fence falls whenever a commit is on its way: what it names was uploaded before."""
    with simulation(seed, partitions=1) as sim:
        w0 = sim.start()
        sim.fill(3)
        sim.run(lambda: sim.is_complete)
        for _ in range(FENCES):
            before = len(w0.named("fenced"))
            sim.fill(3)
            sim.world.at("store.put_if_absent begins", lambda _: sim.foreign_fence())
            sim.run(lambda n=before: len(w0.named("fenced")) > n)
            sim.run(lambda: sim.is_complete)
        assert len(w0.named("partitions_assigned")) == 1
        assert w0.named("rejoined") == []
        sim.finish()
