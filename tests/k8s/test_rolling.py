"""What rolls pods and what does not; what a drain may take."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.chart.rendering import NAME, RELEASE, laid_over, whole_values
from tests.k8s.releases import Releases, wait_until
from tests.services.kube_api import MERGE, place

WORKERS = ("writer", "compactor", "vacuum")
THREE = {f"{worker}/replicas": 3 for worker in WORKERS}
CHANGED = {"config/flush": {"interval_ms": 250, "rows_max": 1_000_000}}


@contextmanager
def held(releases):
    """While it lasts, no new pod becomes ready."""
    releases.kubernetes.nodes.hold()
    try:
        yield
    finally:
        releases.kubernetes.nodes.release()


def deployment(releases: Releases, worker: str):
    return releases.api.one("Deployment", releases.namespace, f"{NAME}-{worker}")


def replica_sets(releases: Releases, worker: str) -> dict[str, int]:
    selector = f"app.kubernetes.io/component={worker}"
    found = releases.api.items("ReplicaSet", releases.namespace, labelSelector=selector)
    return {each["metadata"]["name"]: each["spec"]["replicas"] for each in found}


def jobs(releases: Releases) -> list[str]:
    return [
        found["metadata"]["name"]
        for found in releases.api.items("Job", releases.namespace)
        if found["status"].get("succeeded") == 1
    ]


def test_a_changed_configuration_rolls_the_pods_one_after_the_other(releases):
    values = laid_over(whole_values(), THREE)
    releases.install(values)
    before = {worker: set(releases.pods(worker)) for worker in WORKERS}
    sets = {worker: replica_sets(releases, worker) for worker in WORKERS}
    first = jobs(releases)
    with held(releases):
        done = releases.attempt("upgrade", laid_over(values, CHANGED))
        assert done.returncode == 0, done.stderr
        for worker in WORKERS:
            wait_until(lambda w=worker: len(releases.pods(w)) == 4, f"{worker}: one pod more")
            assert releases.ready(worker) == before[worker], "an old pod went before its time"
    for worker in WORKERS:
        wait_until(
            lambda w=worker: len(releases.ready(w)) == 3 and not releases.ready(w) & before[w],
            f"{worker}: three new pods",
        )
        wait_until(
            lambda w=worker: set(releases.pods(w)) == releases.ready(w), f"{worker}: no old pod"
        )
        now = replica_sets(releases, worker)
        assert len(now) == 2
        assert {name: now[name] for name in sets[worker]} == dict.fromkeys(sets[worker], 0)
    assert len(first) == 1
    wait_until(lambda: len(jobs(releases)) == 1 and jobs(releases) != first, "another init Job")


def test_an_upgrade_that_changes_nothing_leaves_the_pods(releases):
    values = laid_over(whole_values(), THREE)
    releases.install(values)
    before = {worker: set(releases.pods(worker)) for worker in WORKERS}
    generations = {w: deployment(releases, w)["metadata"]["generation"] for w in WORKERS}
    first = jobs(releases)
    releases.upgrade(values)
    # The same file with its keys in another order.
    config = dict(reversed(values["config"].items()))
    releases.upgrade(values | {"config": config})
    for worker in WORKERS:
        found = deployment(releases, worker)
        assert found["metadata"]["generation"] == generations[worker]
        assert found["status"]["observedGeneration"] == generations[worker]
        assert set(releases.pods(worker)) == before[worker]
        assert len(replica_sets(releases, worker)) == 1
    assert jobs(releases) == first


def test_pods_that_do_not_become_ready_leave_the_old_ones(releases):
    values = laid_over(whole_values(), THREE)
    releases.install(values)
    before = set(releases.pods("writer"))
    with held(releases):
        waiting = ["--wait", "--timeout", "3s"]
        done = releases.attempt("upgrade", laid_over(values, CHANGED), *waiting)
        assert done.returncode != 0
        assert releases.ready("writer") == before
        undone = releases.helm("rollback", RELEASE)
        assert undone.returncode == 0, undone.stderr
        wait_until(lambda: set(releases.pods("writer")) == before, "the old pods, and no other")


def test_what_an_autoscaler_decided_stays(releases):
    values = laid_over(whole_values(), {"keda/enabled": True})
    releases.install(values)
    path = f"{place('Deployment', releases.namespace)}/{NAME}-writer/scale"
    releases.api.done("PATCH", path, {"spec": {"replicas": 5}}, content_type=MERGE)
    wait_until(lambda: len(releases.ready("writer")) == 5, "five writers")
    releases.upgrade(laid_over(values, CHANGED))
    assert deployment(releases, "writer")["spec"]["replicas"] == 5


def test_a_release_that_is_handed_to_an_autoscaler_begins_with_one(releases):
    values = laid_over(whole_values(), THREE)
    releases.install(values)
    changed = laid_over(values, {"writer/replicas": None, "keda/enabled": True})
    releases.upgrade(changed)
    assert deployment(releases, "writer")["spec"]["replicas"] == 1
    assert deployment(releases, "compactor")["spec"]["replicas"] == 3


# --- drains -------------------------------------------------------------------------------------


def allowed(releases: Releases, worker: str) -> int:
    """Return how many pods the budget gives away now."""
    found = releases.api.one("PodDisruptionBudget", releases.namespace, f"{NAME}-{worker}")
    status = found["status"]
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        return -1
    return status["disruptionsAllowed"]


@pytest.mark.parametrize("worker", WORKERS)
def test_a_drain_is_held_by_the_budget_until_there_is_another_pod(releases, worker):
    releases.install(laid_over(whole_values(), THREE))
    wait_until(lambda: allowed(releases, worker) == 1, "one pod may go")
    first, second, third = releases.pods(worker).values()
    with held(releases):
        assert releases.evict(first) == 201
        assert releases.evict(second) == 429
        wait_until(
            lambda: first["metadata"]["uid"] not in releases.pods(worker), "the first one is gone"
        )
        wait_until(lambda: len(releases.pods(worker)) == 3, "another one is made")
        assert releases.evict(second) == 429
        assert releases.evict(third) == 429
        assert len(releases.ready(worker)) == 2
    wait_until(lambda: allowed(releases, worker) == 1, "the other one is ready")
    assert releases.evict(second) == 201


def test_without_a_budget_a_drain_takes_them_all(releases):
    values = laid_over(whole_values(), THREE | {"writer/podDisruptionBudget/enabled": False})
    releases.install(values)
    with held(releases):
        assert [releases.evict(pod) for pod in releases.pods("writer").values()] == [201] * 3


def test_kubectl_drains_a_node_and_never_takes_two(releases):
    kubectl = releases.kubernetes.kubectl
    assert kubectl("cordon", "two").returncode == 0
    try:
        releases.install(laid_over(whole_values(), THREE))
        assert {p["spec"]["nodeName"] for p in releases.pods("writer").values()} == {"one"}
        wait_until(lambda: allowed(releases, "writer") == 1, "one pod may go")
        kubectl("uncordon", "two")
        words = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout", "90s"]
        words += ["--pod-selector", f"app.kubernetes.io/instance={RELEASE}"]
        with ThreadPoolExecutor(1) as pool:
            drained = pool.submit(kubectl, "drain", "one", *words)
            fewest = dict.fromkeys(WORKERS, 3)
            while not drained.done():
                for worker in WORKERS:
                    fewest[worker] = min(fewest[worker], len(releases.ready(worker)))
        done = drained.result()
    finally:
        kubectl("uncordon", "one")
        kubectl("uncordon", "two")
    assert done.returncode == 0, done.stderr
    assert "would violate the pod's disruption budget" in done.stderr
    assert min(fewest.values()) == 2, fewest
    for worker in WORKERS:
        wait_until(lambda w=worker: len(releases.ready(w)) == 3, f"three of {worker}")
        assert {p["spec"]["nodeName"] for p in releases.pods(worker).values()} == {"two"}
