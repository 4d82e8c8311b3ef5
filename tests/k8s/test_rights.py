"""Who may do what: the pods nothing at all, their cloud roles by token, whoever installs no more."""

from __future__ import annotations

import pytest

from tests.chart.rendering import NAME, RELEASE, laid_over, whole_values
from tests.k8s.releases import refusal, templates
from tests.k8s.test_lines import INSTALLER, installer_lines
from tests.k8s.test_releases import SCALED, values_of
from tests.services.kube_api import place

WORKERS = ("writer", "compactor", "vacuum")
REVIEWS = "apis/authorization.k8s.io/v1"
EVERYBODY = ("system:serviceaccounts", "system:authenticated")
GROUPS = {
    "": ("configmaps", "secrets", "pods", "pods/exec", "pods/log", "serviceaccounts", "events"),
    "apps": ("deployments", "replicasets"),
    "batch": ("jobs", "cronjobs"),
    "policy": ("poddisruptionbudgets",),
    "coordination.k8s.io": ("leases",),
    "rbac.authorization.k8s.io": ("roles", "rolebindings"),
}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")


def account(namespace, name):
    return f"system:serviceaccount:{namespace}:{name}"


def as_account(api, namespace, name):
    groups = (*EVERYBODY, f"system:serviceaccounts:{namespace}")
    return api.impersonating(account(namespace, name), groups)


def rules(api, namespace, name):
    """Return what the API server lets an account of this name do."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    body = review | {"spec": {"namespace": namespace}}
    asked = as_account(api, namespace, name)
    status = asked.done("POST", f"{REVIEWS}/selfsubjectrulesreviews", body)["status"]
    assert not status["incomplete"]
    # In any order: rules of several bindings come as they are found.
    return sorted(map(str, status["resourceRules"])), sorted(map(str, status["nonResourceRules"]))


def may(api, namespace, name, verb, group, resource):
    resource, _, part = resource.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
    spec = {"user": account(namespace, name), "groups": list(EVERYBODY)}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
    body |= {"spec": spec | {"resourceAttributes": attributes | {"subresource": part}}}
    return api.done("POST", f"{REVIEWS}/subjectaccessreviews", body)["status"]["allowed"]


def rights(api, namespace, name):
    return [
        (verb, resource)
        for group, resources in GROUPS.items()
        for resource in resources
        for verb in VERBS
        if may(api, namespace, name, verb, group, resource)
    ]


@pytest.mark.parametrize("worker", WORKERS)
def test_an_account_may_do_what_everybody_may_and_nothing_more(releases, worker):
    releases.install(whole_values())
    api, namespace, name = releases.api, releases.namespace, f"{NAME}-{worker}"
    assert releases.api.one("ServiceAccount", namespace, name)
    nobody = rules(api, namespace, "an-account-that-nobody-made")
    assert nobody[0], "everybody may ask what they may"
    assert rules(api, namespace, name) == nobody
    assert rights(api, namespace, name) == []
    _bind(api, namespace, name)
    assert rules(api, namespace, name) != nobody, "a right would have been seen"
    assert ("get", "configmaps") in rights(api, namespace, name)


def _bind(api, namespace, name):
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    body = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}
    body |= {"metadata": {"name": "planted"}, "roleRef": role, "subjects": [subject]}
    api.done("POST", place("RoleBinding", namespace), body)


def tokens(pod):
    """Return the volumes of a pod that have a token for the API server."""
    return [
        volume["name"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "serviceAccountToken" in source
    ]


def test_no_pod_has_a_token(releases):
    values = values_of("everything")
    releases.install(values)
    running = [pod for worker in WORKERS for pod in releases.pods(worker).values()]
    assert len(running) == 6
    assert not any(tokens(pod) for pod in running)
    path, query = place("Pod", releases.namespace), {"dryRun": "All"}
    for name, template in templates(releases.objects(values)):
        asked = laid_over(template, {"metadata/name": "asked"})
        assert not tokens(releases.api.done("POST", path, asked, query=query)), name
        # The account says so too, for whoever leaves it out in a pod.
        left_out = laid_over(asked, {"spec/automountServiceAccountToken": ...})
        assert not tokens(releases.api.done("POST", path, left_out, query=query)), name
        wanted = laid_over(asked, {"spec/automountServiceAccountToken": True})
        assert tokens(releases.api.done("POST", path, wanted, query=query)), name


@pytest.mark.parametrize("worker", WORKERS)
def test_an_account_gets_a_token_for_its_cloud_role(releases, worker):
    """What a cloud's webhook asks for: a token for another audience, which names the account."""
    role = {"example.com/role": f"the-{worker}"}
    releases.install(laid_over(whole_values(), {f"{worker}/serviceAccount/annotations": role}))
    namespace, name = releases.namespace, f"{NAME}-{worker}"
    found = releases.api.one("ServiceAccount", namespace, name)
    assert found["metadata"]["annotations"].items() >= role.items()
    path = f"{place('ServiceAccount', namespace)}/{name}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
    given = releases.api.done("POST", path, body | {"spec": {"audiences": ["the-cloud"]}})
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}

    def reviewed(audience):
        spec = {"token": given["status"]["token"], "audiences": [audience]}
        path = "apis/authentication.k8s.io/v1/tokenreviews"
        return releases.api.done("POST", path, review | {"spec": spec})["status"]

    assert reviewed("the-cloud")["user"]["username"] == account(namespace, name)
    assert not reviewed("https://kubernetes.default.svc").get("authenticated")


# --- whoever installs ---------------------------------------------------------------------------


def test_the_rights_of_the_page_are_those_of_the_kinds(releases):
    values = laid_over(values_of("everything"), {"writer/replicas": None} | SCALED)
    used = {place(found["kind"], "x").rpartition("/")[2] for found in releases.objects(values)}
    named = [word for words in installer_lines() for word in words if "--resource=" in word]
    granted = {
        resource.partition(".")[0]
        for word in named
        for resource in word.removeprefix("--resource=").split(",")
    }
    # Helm keeps releases in secrets, and looks at replica sets while it waits.
    assert granted == used | {"secrets", "replicasets"}


@pytest.fixture
def installer(releases):
    """Return the options of helm for somebody who has the rights of docs/helm.md."""
    for words in installer_lines():
        where = words.index("--namespace") + 1
        words[where] = releases.namespace
        done = releases.kubernetes.kubectl(*words[1:])
        assert done.returncode == 0, done.stderr
    return ["--kube-as-user", INSTALLER]


def test_the_rights_of_the_page_are_enough(releases, installer):
    values = laid_over(values_of("everything"), {"writer/replicas": None} | SCALED)
    releases.install(values, *installer)
    releases.upgrade(laid_over(values, {"image/tag": "7"}), *installer)
    tested = releases.helm("test", RELEASE, "--timeout", "60s", *installer)
    assert tested.returncode == 0, tested.stderr
    removed = releases.helm("uninstall", RELEASE, *installer)
    assert removed.returncode == 0, removed.stderr


def test_without_them_nothing_is_installed(releases):
    done = releases.attempt("install", whole_values(), "--kube-as-user", INSTALLER)
    assert done.returncode != 0
    assert "forbidden" in done.stderr


def test_they_end_at_the_namespace_and_give_no_others(releases, installer):
    asked = releases.api.impersonating(installer[1], ("system:authenticated",))
    elsewhere = refusal(lambda: asked.done("GET", place("Deployment", "kube-system")))
    assert "forbidden" in elsewhere
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}
    path = place("RoleBinding", releases.namespace)
    assert "forbidden" in refusal(lambda: asked.done("POST", path, role))
    assert asked.items("Deployment", releases.namespace) == []
