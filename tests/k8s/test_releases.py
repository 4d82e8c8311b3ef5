"""Releases over many values: installed, upgraded, removed; every object is taken as it is written.

The namespace enforces Pod Security's "Restricted". Pod Security only warns of a Deployment, so that
each template is put before the API server as a Pod, too.
"""

from __future__ import annotations

import copy
import json
import re

import pytest
import yaml

from tests.chart.rendering import CHART, NAME, RELEASE, laid_over, one, whole_values
from tests.chart.test_page import VALUES as PAGE
from tests.k8s.releases import Releases, differences, refusal, templates, wait_until
from tests.services.kube_api import YAML, place

STRICT = {"fieldValidation": "Strict", "dryRun": "All"}
APPLY = "application/apply-patch+yaml"

SCHEDULES = [
    {"name": "nightly", "schedule": "0 3 * * *", "command": ["vacuum", "--execute"]},
    {"name": "noon", "schedule": "0 12 * * *", "command": ["compact"]},
]
SPREAD = {
    "maxSkew": 1,
    "topologyKey": "topology.kubernetes.io/zone",
    "whenUnsatisfiable": "DoNotSchedule",
    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "writer"}},
}
ANTI_AFFINITY = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "vacuum"}},
            }
        ]
    }
}
EVERYTHING = {
    "imagePullSecrets": [{"name": "pull"}],
    "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
    "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca", "optional": True}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/run/ca", "readOnly": True}],
    "commonLabels": {"team": "lake"},
    "podAnnotations": {"example.com/owner": "lake"},
    "config/http": {"port": 9000},
    "writer/replicas": 3,
    "writer/topologySpreadConstraints": [SPREAD],
    "writer/terminationGracePeriodSeconds": 120,
    "compactor/replicas": 2,
    "compactor/nodeSelector": {"kubernetes.io/hostname": "one"},
    "compactor/tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
    "vacuum/affinity": ANTI_AFFINITY,
    "vacuum/podDisruptionBudget/maxUnavailable": "50%",
    "schedules": SCHEDULES,
    "podMonitor": {"enabled": True, "interval": "10s", "labels": {"prometheus": "main"}},
    "networkPolicy": {
        "enabled": True,
        "ingressFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "egress": [{"ports": [{"port": 9092, "protocol": "TCP"}]}],
    },
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "more", "labels": {"app.kubernetes.io/instance": RELEASE}},
            "data": {"a": "b"},
        }
    ],
}
SCALED = {
    "keda/enabled": True,
    "keda/minReplicas": 0,
    "keda/maxReplicas": 8,
    "keda/authenticationRef": "kafka",
    "keda/metadata": {"tls": "enable", "sasl": "scram_sha512"},
}
BARE = {
    "writer/serviceAccount": {"create": False},
    "compactor/serviceAccount": {"create": False},
    "vacuum/serviceAccount": {"create": False},
    "writer/podDisruptionBudget/enabled": False,
    "compactor/podDisruptionBudget/enabled": False,
    "vacuum/podDisruptionBudget/enabled": False,
    "init/enabled": False,
}
ALONE = {
    "compactor/enabled": False,
    "vacuum/enabled": False,
    "config/control": ...,
    "config/locks": {"path": "/var/lib/delta-sink/locks.db"},
}

# What is laid over the values of a whole release.
SETS = {
    "the example": {},
    "everything": EVERYTHING,
    "scaled by KEDA": SCALED,
    "no accounts, budgets and Job": BARE,
    "one writer alone": ALONE,
    "maintenance alone": {"writer/enabled": False, "schedules": SCHEDULES},
    "a file that is there": {"config": None, "existingConfigMap": "mine"},
}
WORKERS = ("writer", "compactor", "vacuum")
# Where an object says which pods are its own.
SELECTORS = {
    "Deployment": "selector",
    "PodDisruptionBudget": "selector",
    "NetworkPolicy": "podSelector",
}

_BORNE_BY_ALL = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
CHANGE = {"image/tag": "0.2.0", "podAnnotations": {"example.com/change": "1"}}


def values_of(case):
    return laid_over(whole_values(), SETS[case])


@pytest.mark.parametrize("case", SETS)
def test_a_release_is_installed_upgraded_and_removed(releases, case):
    if case == "a file that is there":
        _make_file(releases)
    values = values_of(case)
    releases.install(values)
    _check_taken(releases, values)
    changed = laid_over(values, CHANGE)
    if values["config"]:
        changed = laid_over(changed, {"config/flush": {"interval_ms": 250}})
    releases.upgrade(changed)
    _check_taken(releases, changed)
    (listed,) = json.loads(releases.helm("list", "--output", "json").stdout)
    assert (listed["name"], listed["revision"], listed["status"]) == (RELEASE, "2", "deployed")
    removed = releases.helm("uninstall", RELEASE, "--wait", "--timeout", "60s")
    assert removed.returncode == 0, removed.stderr
    wait_until(lambda: releases.left() == [], "nothing of the release is left")


def test_the_values_of_the_page_are_installed(releases):
    releases.install(PAGE[0])
    _check_taken(releases, PAGE[0])
    assert len(releases.ready("writer")) == 3


def test_two_releases_of_one_namespace_leave_each_other_alone(releases):
    """One release is one sink, and there are many sinks: nothing of one selects a pod of another."""
    other = laid_over(whole_values(), {"config/name": "payments", "networkPolicy/enabled": True})
    releases.install(laid_over(whole_values(), {"networkPolicy/enabled": True}))
    before = {uid for worker in WORKERS for uid in releases.pods(worker)}
    words = ["--values", releases.write(other), "--wait", "--timeout", "60s"]
    done = releases.helm("install", "payments", str(CHART), *words)
    assert done.returncode == 0, done.stderr
    both = {uid for worker in WORKERS for uid in releases.pods(worker)}
    assert before < both
    selected = 0
    for kind, path in SELECTORS.items():
        for found in releases.api.items(kind, releases.namespace):
            selector = found["spec"][path]["matchLabels"]
            query = ",".join(f"{label}={value}" for label, value in selector.items())
            taken = releases.api.items("Pod", releases.namespace, labelSelector=query)
            owner = found["metadata"]["labels"]["app.kubernetes.io/instance"]
            owners = {pod["metadata"]["labels"]["app.kubernetes.io/instance"] for pod in taken}
            assert owners == {owner}, (kind, found["metadata"]["name"])
            selected += 1
    assert selected == 2 * (3 + 3 + 1)
    assert releases.helm("uninstall", "payments").returncode == 0
    wait_until(
        lambda: {uid for worker in WORKERS for uid in releases.pods(worker)} == before,
        "the pods of the one release, and no other",
    )


def test_a_release_with_the_longest_name_is_installed(releases):
    """Helm takes 53 letters; a CronJob's name has 52 of them at most."""
    longest = SCHEDULES[0] | {"name": "ten-letter"}
    path = releases.write(laid_over(whole_values(), {"schedules": [longest]}))
    name = "n" * 53
    done = releases.helm("install", name, str(CHART), "--values", path, "--wait")
    assert done.returncode == 0, done.stderr
    assert releases.helm("uninstall", name).returncode == 0


def _make_file(releases: Releases) -> None:
    text = json.dumps(whole_values()["config"])
    found = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}}
    path = place("ConfigMap", releases.namespace)
    releases.api.done("POST", path, found | {"data": {"sink.yaml": text}})


def _check_taken(releases: Releases, values) -> None:
    """Assert that everything stands as it is written, and that each template makes a pod."""
    texts = releases.rendered(values)
    objects = [yaml.safe_load(text) for text in texts]
    assert len(objects) >= 4
    for text, wanted in zip(texts, objects, strict=True):
        if wanted["kind"] != "Pod":  # the pod of `helm test` is there once it was asked for
            found = releases.live(wanted)
            assert not list(differences(wanted, found)), wanted["metadata"]["name"]
        for answer in (posted(releases, text), applied(releases, text)):
            assert answer.status in (200, 201), answer.message
            assert not answer.warnings
    made = [name for name, pod in templates(objects) if _made(releases, pod)]
    assert f"Pod/{NAME}-test" in made


def _made(releases: Releases, pod) -> bool:
    """Whether the API server takes the pod, after it was asked whether it would."""
    done = releases.api.done("POST", place("Pod", releases.namespace), _dry(pod), query=STRICT)
    # Every pod bears for a while that its node is away.
    borne = [each for each in done["spec"]["tolerations"] if each["key"] not in _BORNE_BY_ALL]
    found = done["spec"] | {"tolerations": borne}
    assert not list(differences(pod["spec"], found)), "the server has changed it"
    return True


def _dry(pod):
    """Return the pod under a name that nobody has."""
    return laid_over(pod, {"metadata/name": "asked"})


def posted(releases: Releases, text: str):
    """Return the answer to the text as a new object; fields are looked at strictly, none is kept."""
    path = place(yaml.safe_load(text)["kind"], releases.namespace)
    text = re.sub(r"^  name: .*$", "  name: asked", text, count=1, flags=re.MULTILINE)
    return releases.api.request("POST", path, text, query=STRICT, content_type=YAML)


def applied(releases: Releases, text: str):
    """Return the answer to the text over the object that is there; none of it is kept.

    This also finds what is twice in a list whose items have names.
    """
    found = yaml.safe_load(text)
    path = f"{place(found['kind'], releases.namespace)}/{found['metadata']['name']}"
    query = STRICT | {"fieldManager": "asked", "force": "true"}
    return releases.api.request("PATCH", path, text, query=query, content_type=APPLY)


# --- what the checks above would say of a fault -------------------------------------------------


@pytest.fixture
def texts(releases):
    """Return the texts of two releases' objects, every kind that the chart has among them."""
    values = laid_over(values_of("everything"), {"writer/replicas": None} | SCALED)
    return releases.rendered(values)


def test_a_field_that_is_none_is_found_in_every_kind(releases, texts):
    for text in texts:
        if yaml.safe_load(text)["kind"] != "Pod":  # its account is made by an installation
            assert posted(releases, text).status == 201
        answer = posted(releases, f"{text}\nplanted: 1\n")
        assert answer.status == 400, answer
        assert 'unknown field "planted"' in answer.message
    seen = {yaml.safe_load(text)["kind"] for text in texts}
    assert {"ConfigMap", "Deployment", "CronJob", "Job", "Pod", "ScaledObject"} <= seen
    assert {"PodMonitor", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"} <= seen


@pytest.mark.parametrize(
    ("kind", "written", "planted"),
    [
        ("Deployment", "volumeMounts:", "volumeMuonts:"),
        ("Deployment", "periodSeconds: 10", "periodSecond: 10"),
        ("CronJob", "concurrencyPolicy:", "concurencyPolicy:"),
        ("Job", "backoffLimit:", "backofLimit:"),
        ("NetworkPolicy", "ingress:", "ingres:"),
        ("PodDisruptionBudget", "maxUnavailable:", "maxUnavailble:"),
        ("ScaledObject", "cooldownPeriod:", "coolDownPeriod:"),
        ("PodMonitor", "interval:", "intervals:"),
    ],
)
def test_a_misspelt_field_is_found(releases, texts, kind, written, planted):
    text = next(t for t in texts if yaml.safe_load(t)["kind"] == kind and written in t)
    answer = posted(releases, text.replace(written, planted))
    assert answer.status == 400, answer
    assert f'{planted.partition(":")[0]}"' in answer.message
    assert "field not declared" in applied(releases, text.replace(written, planted)).message


def test_a_key_that_is_there_twice_is_found(releases, texts):
    text = next(t for t in texts if yaml.safe_load(t)["kind"] == "Deployment")
    doubled = text.replace("  revisionHistoryLimit: 3", "  revisionHistoryLimit: 3\n" * 2)
    answer = posted(releases, doubled)
    assert answer.status == 400, answer
    assert 'key "revisionHistoryLimit" already set' in answer.message


def _without(key, pod):
    for holder in [pod["spec"], *pod["spec"]["containers"]]:
        holder["securityContext"].pop(key, None)


def _with_path_of_the_machine(pod):
    pod["spec"]["volumes"].append({"name": "machine", "hostPath": {"path": "/var/log"}})


def _privileged(pod):
    pod["spec"]["containers"][0]["securityContext"]["privileged"] = True
    pod["spec"]["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")


def _as_root(pod):
    pod["spec"]["securityContext"]["runAsUser"] = 0


UNRESTRICTED = {
    "runAsNonRoot": lambda pod: _without("runAsNonRoot", pod),
    "allowPrivilegeEscalation": lambda pod: _without("allowPrivilegeEscalation", pod),
    "unrestricted capabilities": lambda pod: _without("capabilities", pod),
    "seccompProfile": lambda pod: _without("seccompProfile", pod),
    "hostPath": _with_path_of_the_machine,
    "privileged": _privileged,
    "runAsUser=0": _as_root,
}


@pytest.mark.parametrize("word", UNRESTRICTED)
def test_an_unrestricted_template_is_refused(releases, word):
    values = laid_over(whole_values(), {"schedules": SCHEDULES} | BARE | {"init/enabled": True})
    asked = 0
    for _, pod in templates(releases.objects(values)):
        assert _made(releases, pod)
        loosened = copy.deepcopy(pod)
        UNRESTRICTED[word](loosened)
        sentence = refusal(lambda pod=loosened: _made(releases, pod))
        assert 'violates PodSecurity "restricted' in sentence
        assert word in sentence
        asked += 1
    assert asked == 7  # three workers, the Job, two schedules, the test


def test_helm_warns_of_a_release_that_is_not_restricted(releases):
    values = laid_over(whole_values(), {"securityContext/allowPrivilegeEscalation": True})
    done = releases.attempt("install", values)
    assert "would violate PodSecurity" in done.stderr


# --- helm test ----------------------------------------------------------------------------------


def test_the_pod_of_helm_test_is_taken_and_awaited(releases):
    values = whole_values()
    releases.install(values)
    done = releases.helm("test", RELEASE, "--timeout", "60s")
    assert done.returncode == 0, done.stderr
    assert "Succeeded" in done.stdout
    # tests/chart/test_release.py runs the containers of this object, in their order.
    wanted = one(releases.objects(values), "Pod", f"{NAME}-test")
    found = releases.live(wanted)
    for group in ("initContainers", "containers"):
        commands = [[*c["command"], *c["args"]] for c in wanted["spec"][group]]
        assert [[*c["command"], *c["args"]] for c in found["spec"][group]] == commands
    assert [c["name"] for c in found["spec"]["initContainers"]] == ["check-config"]
    assert [c["name"] for c in found["spec"]["containers"]] == ["audit"]
    assert found["status"]["phase"] == "Succeeded"
