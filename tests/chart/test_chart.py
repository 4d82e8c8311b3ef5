"""The chart, rendered over many values: each object is valid, each value does what it says."""

from __future__ import annotations

import json
import re
import shutil

import kubernetes_validate
import pytest
import yaml

from delta_sink.config import Source, load
from tests.chart import readme
from tests.chart.rendering import (
    CHART,
    NAME,
    ROOT,
    containers,
    kinds,
    laid_over,
    one,
    pods,
    whole_values,
)

CUSTOM = {"ScaledObject", "PodMonitor"}
WORKERS = ("writer", "compactor", "vacuum")
SCHEDULE = {"name": "nightly", "schedule": "0 3 * * *", "command": ["compact"]}


def deployment(objects, component="writer"):
    return one(objects, "Deployment", f"{NAME}-{component}")["spec"]


def pod(objects, component="writer"):
    return deployment(objects, component)["template"]["spec"]


def account(objects, component="writer"):
    return one(objects, "ServiceAccount", f"{NAME}-{component}")


def scaled(objects):
    return one(objects, "ScaledObject", f"{NAME}-writer")["spec"]


def trigger(objects):
    return scaled(objects)["triggers"][0]["metadata"]


def job(objects):
    (found,) = [o for o in objects if o["kind"] == "Job"]
    return found


def init_args(objects):
    """Return the arguments of the first Job, without the file, which all containers have."""
    return job(objects)["spec"]["template"]["spec"]["containers"][0]["args"][:-2]


def cron(objects, name="nightly"):
    return one(objects, "CronJob", f"{NAME}-{name}")["spec"]


def policy(objects):
    return one(objects, "NetworkPolicy", NAME)["spec"]


def container(objects, component="writer"):
    return pod(objects, component)["containers"][0]


def each_container(key):
    return lambda objects: [found.get(key) for found in containers(objects)]


def all_of(wanted):
    return lambda found: found and all(each == wanted for each in found)


KEDA = {"keda/enabled": True}
ENV = [{"name": "REGION", "value": "eu"}]
VOLUME = [{"name": "ca", "secret": {"secretName": "ca"}}]
MOUNT = {"name": "ca", "mountPath": "/run/ca"}
SPREAD = {
    "maxSkew": 1,
    "topologyKey": "zone",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"a": "b"}},
}
TOLERATION = {"key": "spot", "operator": "Exists"}
AFFINITY = {"nodeAffinity": {}}
EXTRA = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "more"}, "stringData": {}}
DIGEST = "sha256:" + "a" * 64

# What is laid over the whole release's values, what of the objects is looked at, what it must be.
MATRIX = {
    "the image's tag is the chart's version": (
        {},
        each_container("image"),
        all_of("delta-sink:0.1.0"),
    ),
    "tag": ({"image/tag": "7"}, each_container("image"), all_of("delta-sink:7")),
    "digest": (
        {"image/tag": "7", "image/digest": DIGEST},
        each_container("image"),
        all_of(f"delta-sink@{DIGEST}"),
    ),
    "repository": ({"image/repository": "r.io/d"}, each_container("image"), all_of("r.io/d:0.1.0")),
    "pull policy": (
        {"image/pullPolicy": "Always"},
        each_container("imagePullPolicy"),
        all_of("Always"),
    ),
    "pull secrets": (
        {"imagePullSecrets": [{"name": "pull"}]},
        lambda o: [p.get("imagePullSecrets") for _, p in pods(o)],
        all_of([{"name": "pull"}]),
    ),
    "env": ({"env": ENV}, each_container("env"), all_of(ENV)),
    "no env": ({}, each_container("env"), all_of(None)),
    "envFrom": ({}, each_container("envFrom"), all_of([{"secretRef": {"name": "orders"}}])),
    "volumes": (
        {"extraVolumes": VOLUME, "extraVolumeMounts": [MOUNT]},
        lambda o: [VOLUME[0] in p["volumes"] for _, p in pods(o)],
        all_of(True),
    ),
    "mounts": (
        {"extraVolumes": VOLUME, "extraVolumeMounts": [MOUNT]},
        lambda o: [MOUNT in c["volumeMounts"] for c in containers(o)],
        all_of(True),
    ),
    "labels": (
        {"commonLabels": {"team": "lake"}},
        lambda o: [found["metadata"]["labels"].get("team") for found in o],
        all_of("lake"),
    ),
    "labels of pods": (
        {"commonLabels": {"team": "lake"}},
        lambda o: deployment(o)["template"]["metadata"]["labels"]["team"],
        "lake",
    ),
    "labels select nothing": (
        {"commonLabels": {"team": "lake"}},
        lambda o: "team" in deployment(o)["selector"]["matchLabels"],
        False,
    ),
    "annotations of pods": (
        {"podAnnotations": {"a/b": "c"}},
        lambda o: [deployment(o, w)["template"]["metadata"]["annotations"]["a/b"] for w in WORKERS],
        all_of("c"),
    ),
    "annotations of the job": (
        {"podAnnotations": {"a/b": "c"}},
        lambda o: job(o)["spec"]["template"]["metadata"]["annotations"]["a/b"],
        "c",
    ),
    "one writer": ({}, lambda o: deployment(o)["replicas"], 1),
    "writers": ({"writer/replicas": 12}, lambda o: deployment(o)["replicas"], 12),
    "no writer now": ({"writer/replicas": 0}, lambda o: deployment(o)["replicas"], 0),
    "compactors": ({"compactor/replicas": 3}, lambda o: deployment(o, "compactor")["replicas"], 3),
    "vacuums": ({"vacuum/replicas": 2}, lambda o: deployment(o, "vacuum")["replicas"], 2),
    "writers without a stated number of partitions": (
        {"partitions": ..., "writer/replicas": 50},
        lambda o: deployment(o)["replicas"],
        50,
    ),
    "no compactor": (
        {"compactor/enabled": False},
        lambda o: kinds(o).count("Deployment"),
        2,
    ),
    "writers alone": (
        {"compactor/enabled": False, "vacuum/enabled": False, "config/control": ...},
        lambda o: [f["metadata"]["name"] for f in o if f["kind"] == "Deployment"],
        [f"{NAME}-writer"],
    ),
    "one pod may keep its locks in a file": (
        {
            "compactor/enabled": False,
            "vacuum/enabled": False,
            "config/locks": {"path": "/var/lib/delta-sink/locks.db"},
        },
        lambda o: kinds(o).count("Deployment"),
        1,
    ),
    "maintenance alone": (
        {"writer/enabled": False},
        lambda o: sorted(f["metadata"]["name"] for f in o if f["kind"] == "Deployment"),
        [f"{NAME}-compactor", f"{NAME}-vacuum"],
    ),
    "maintenance alone has the account of the Job, the schedules and the test": (
        {"writer/enabled": False, "schedules": [SCHEDULE]},
        lambda o: (
            {p["serviceAccountName"] for _, p in pods(o)}
            - {f["metadata"]["name"] for f in o if f["kind"] == "ServiceAccount"}
        ),
        set(),
    ),
    "resources": (
        {"writer/resources": {"limits": {"memory": "3Gi"}}},
        lambda o: container(o)["resources"]["limits"]["memory"],
        "3Gi",
    ),
    "resources of init": (
        {"init/resources": {"limits": {"memory": "300Mi"}, "requests": {}}},
        lambda o: job(o)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"],
        {"memory": "300Mi"},
    ),
    "each component has its account": (
        {},
        lambda o: [pod(o, w)["serviceAccountName"] for w in WORKERS],
        [f"{NAME}-{w}" for w in WORKERS],
    ),
    "a cloud role": (
        {"vacuum/serviceAccount/annotations": {"role": "v"}},
        lambda o: account(o, "vacuum")["metadata"]["annotations"],
        {"role": "v"},
    ),
    "an account that is there": (
        {"writer/serviceAccount": {"create": False, "name": "mine"}},
        lambda o: (pod(o)["serviceAccountName"], kinds(o).count("ServiceAccount")),
        ("mine", 2),
    ),
    "the account of the namespace": (
        {"writer/serviceAccount": {"create": False}},
        lambda o: pod(o)["serviceAccountName"],
        "default",
    ),
    "an account by name": (
        {"writer/serviceAccount/name": "w"},
        lambda o: one(o, "ServiceAccount", "w")["automountServiceAccountToken"],
        False,
    ),
    "init and test have the writer's account": (
        {"writer/serviceAccount/name": "w"},
        lambda o: [p["serviceAccountName"] for k, p in pods(o) if k in ("Job", "Pod")],
        ["w", "w"],
    ),
    "grace": (
        {"writer/terminationGracePeriodSeconds": 300},
        lambda o: pod(o)["terminationGracePeriodSeconds"],
        300,
    ),
    "disruptions": (
        {"writer/podDisruptionBudget/maxUnavailable": "25%"},
        lambda o: one(o, "PodDisruptionBudget", f"{NAME}-writer")["spec"]["maxUnavailable"],
        "25%",
    ),
    "no budget": (
        {"vacuum/podDisruptionBudget/enabled": False},
        lambda o: kinds(o).count("PodDisruptionBudget"),
        2,
    ),
    "spread": (
        {"writer/topologySpreadConstraints": [SPREAD]},
        lambda o: (
            pod(o)["topologySpreadConstraints"],
            "topologySpreadConstraints" in pod(o, "vacuum"),
        ),
        ([SPREAD], False),
    ),
    "nodes": (
        {"compactor/nodeSelector": {"disk": "fast"}},
        lambda o: pod(o, "compactor")["nodeSelector"],
        {"disk": "fast"},
    ),
    "tolerations": (
        {"vacuum/tolerations": [TOLERATION]},
        lambda o: pod(o, "vacuum")["tolerations"],
        [TOLERATION],
    ),
    "affinity": ({"writer/affinity": AFFINITY}, lambda o: pod(o)["affinity"], AFFINITY),
    "init": (
        {},
        init_args,
        ["init"],
    ),
    "the table alone": (
        {"init/createTopics": False, "init/createLockTable": False},
        init_args,
        ["init", "--only", "table"],
    ),
    "topics and locks": (
        {"init/createTable": False},
        init_args,
        ["init", "--only", "topics", "--only", "locks"],
    ),
    "nothing to make": (
        {"init/createTable": False, "init/createTopics": False, "init/createLockTable": False},
        lambda o: "Job" in kinds(o),
        False,
    ),
    "no init": ({"init/enabled": False}, lambda o: "Job" in kinds(o), False),
    "a schedule": ({"schedules": [SCHEDULE]}, lambda o: cron(o)["schedule"], "0 3 * * *"),
    "a schedule is in UTC": ({"schedules": [SCHEDULE]}, lambda o: cron(o)["timeZone"], "Etc/UTC"),
    "what a schedule sends": (
        {"schedules": [SCHEDULE | {"command": ["vacuum", "--execute"]}]},
        lambda o: cron(o)["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"],
        ["control", "vacuum", "--execute", "--config", "/etc/delta-sink/sink.yaml"],
    ),
    "several schedules": (
        {"schedules": [SCHEDULE, SCHEDULE | {"name": "noon"}]},
        lambda o: kinds(o).count("CronJob"),
        2,
    ),
    "no schedule": ({}, lambda o: "CronJob" in kinds(o), False),
    "no autoscaler": ({}, lambda o: "ScaledObject" in kinds(o), False),
    "replicas are the autoscaler's": (KEDA, lambda o: "replicas" in deployment(o), False),
    "of writers alone": (KEDA, lambda o: deployment(o, "compactor")["replicas"], 1),
    "as many as partitions": (KEDA, lambda o: scaled(o)["maxReplicaCount"], 12),
    "fewer than partitions": (
        KEDA | {"keda/maxReplicas": 5},
        lambda o: scaled(o)["maxReplicaCount"],
        5,
    ),
    "to nothing": (KEDA | {"keda/minReplicas": 0}, lambda o: scaled(o)["minReplicaCount"], 0),
    "the pace of scaling": (
        KEDA | {"keda/pollingInterval": 7, "keda/cooldownPeriod": 9},
        lambda o: (scaled(o)["pollingInterval"], scaled(o)["cooldownPeriod"]),
        (7, 9),
    ),
    "what is scaled": (KEDA, lambda o: scaled(o)["scaleTargetRef"]["name"], f"{NAME}-writer"),
    "the trigger": (
        KEDA,
        trigger,
        {
            "bootstrapServers": "kafka:9092",
            "consumerGroup": "orders",
            "topic": "orders",
            "lagThreshold": "10000",
            "offsetResetPolicy": "earliest",
        },
    ),
    "a threshold above a million": (
        KEDA | {"keda/lagThreshold": 5_000_000},
        lambda o: trigger(o)["lagThreshold"],
        "5000000",
    ),
    "the trigger of several topics": (
        KEDA | {"config/source": {"topics": ["a", "b"]}},
        lambda o: "topic" in trigger(o),
        False,
    ),
    "the trigger's own brokers": (
        KEDA | {"keda/bootstrapServers": "k:1", "keda/offsetResetPolicy": "latest"},
        lambda o: (trigger(o)["bootstrapServers"], trigger(o)["offsetResetPolicy"]),
        ("k:1", "latest"),
    ),
    "the trigger's credentials": (
        KEDA | {"keda/authenticationRef": "kafka", "keda/metadata": {"tls": "enable"}},
        lambda o: (scaled(o)["triggers"][0]["authenticationRef"]["name"], trigger(o)["tls"]),
        ("kafka", "enable"),
    ),
    "a monitor": (
        {"podMonitor": {"enabled": True, "interval": "10s", "labels": {"prometheus": "main"}}},
        lambda o: (
            one(o, "PodMonitor", NAME)["metadata"]["labels"]["prometheus"],
            one(o, "PodMonitor", NAME)["spec"]["podMetricsEndpoints"],
        ),
        ("main", [{"port": "http", "path": "/metrics", "interval": "10s"}]),
    ),
    "no monitor": ({}, lambda o: "PodMonitor" in kinds(o), False),
    "a network policy": (
        {"networkPolicy/enabled": True},
        lambda o: (policy(o)["policyTypes"], policy(o)["ingress"]),
        (["Ingress"], [{"ports": [{"port": 8080, "protocol": "TCP"}]}]),
    ),
    "who may come in": (
        {"networkPolicy": {"enabled": True, "ingressFrom": [{"podSelector": {}}]}},
        lambda o: policy(o)["ingress"][0]["from"],
        [{"podSelector": {}}],
    ),
    "where pods may go": (
        {"networkPolicy": {"enabled": True, "egress": [{"ports": [{"port": 9092}]}]}},
        lambda o: (policy(o)["policyTypes"], policy(o)["egress"]),
        (["Ingress", "Egress"], [{"ports": [{"port": 9092}]}]),
    ),
    "a port": (
        {"config/http": {"port": 9000}},
        lambda o: (container(o)["ports"], "http.port=9000" in container(o)["args"]),
        ([{"name": "http", "containerPort": 9000}], True),
    ),
    "further objects": (
        {"extraObjects": [EXTRA | {"metadata": {"name": "more", "labels": {}}}]},
        lambda o: one(o, "Secret", "more")["kind"],
        "Secret",
    ),
    "a ConfigMap that is there": (
        {"config": ..., "existingConfigMap": "mine"},
        lambda o: ("ConfigMap" in kinds(o), pod(o)["volumes"][0]["configMap"]["name"]),
        (False, "mine"),
    ),
    "a ConfigMap that is there, and no file by null": (
        {"config": None, "existingConfigMap": "mine"},
        lambda o: ("ConfigMap" in kinds(o), container(o)["ports"][0]["containerPort"]),
        (False, 8080),
    ),
    "another user": (
        {"podSecurityContext/runAsUser": 20_000},
        lambda o: [p["securityContext"]["runAsUser"] for _, p in pods(o)],
        all_of(20_000),
    ),
    "another container security": (
        {"securityContext/privileged": False},
        lambda o: [c["securityContext"]["privileged"] for c in containers(o)],
        all_of(False),
    ),
    "the test checks and audits": (
        {},
        lambda o: [
            c["args"][:2]
            for c in [
                *one(o, "Pod", f"{NAME}-test")["spec"]["initContainers"],
                *one(o, "Pod", f"{NAME}-test")["spec"]["containers"],
            ]
        ],
        [["check-config", "--connect"], ["audit", "--config"]],
    ),
}


def test_there_are_many_cases():
    assert len(MATRIX) >= 60


@pytest.mark.parametrize("case", MATRIX)
def test_a_value_does_what_it_says(helm, case):
    over, look, wanted = MATRIX[case]
    objects = helm.objects(over)
    found = look(objects)
    assert wanted(found) if callable(wanted) else found == wanted, found
    _check(objects, laid_over(whole_values(), over))


def _check(objects, values):
    """Assert what holds for every release: valid, unique, labelled, restricted, loadable."""
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)
    for found in objects:
        assert len(found["metadata"]["name"]) <= 63
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, "1.31", strict=True)
        if found["metadata"]["name"] != "more":
            labels = found["metadata"]["labels"]
            assert labels["app.kubernetes.io/instance"] == "orders"
            assert found["metadata"]["namespace"] == "lake"
    for kind, found in pods(objects):
        _check_restricted(found)
        if kind != "Deployment":
            assert found["restartPolicy"] == "Never"
    for found in containers(objects):
        assert found["command"] == ["delta-sink"]
        assert found["args"][-2:] == ["--config", "/etc/delta-sink/sink.yaml"]
    if values.get("config"):
        text = one(objects, "ConfigMap", f"{NAME}-config")["data"]["sink.yaml"]
        settings = load(
            [Source("sink.yaml", text)], [], env={"KAFKA_PASSWORD": "x"}, read_file=lambda _: ""
        )
        assert settings.name == values["config"]["name"]
        assert settings.flush.rows_max == 1_000_000
        assert yaml.safe_load(text) == values["config"]


def _check_restricted(found):
    """Assert the Pod Security Standard "Restricted", as Kubernetes words it."""
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(found)
    assert found["automountServiceAccountToken"] is False
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["runAsUser"] > 0
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"configMap", "emptyDir", "secret", "projected"}
    assert all(set(volume) - {"name"} <= allowed for volume in found["volumes"])
    for each in [*found.get("initContainers", []), *found["containers"]]:
        security = each["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert each["resources"]["limits"]["memory"]
        mounts = {mount["mountPath"]: mount for mount in each["volumeMounts"]}
        assert mounts["/etc/delta-sink"]["readOnly"] is True
        assert {"/tmp", "/var/lib/delta-sink"} <= set(mounts)


WRONG = {
    "more writers than partitions": (
        {"writer/replicas": 13},
        "writer.replicas: 13 writers for 12 partitions",
    ),
    "the autoscaler above the partitions": (
        KEDA | {"keda/maxReplicas": 13},
        "keda.maxReplicas: 13 writers for 12 partitions",
    ),
    "replicas and autoscaler": (
        KEDA | {"writer/replicas": 2},
        "writer.replicas and keda.enabled: the autoscaler decides",
    ),
    "an autoscaler without bounds": (KEDA | {"partitions": ...}, "keda.enabled: needs partitions"),
    "an autoscaler that knows no group": (
        KEDA | {"config": ..., "existingConfigMap": "mine"},
        "the consumer group is not known with existingConfigMap",
    ),
    "no configuration": ({"config": ...}, "config: it is empty"),
    "no configuration by null": ({"config": None}, "config: it is empty"),
    "an autoscaler without a file": (
        KEDA | {"config": None, "existingConfigMap": "mine"},
        "the consumer group is not known with existingConfigMap",
    ),
    "two configurations": ({"existingConfigMap": "mine"}, "give one of them"),
    "retention below the floor": (
        {"config/vacuum": {"retention_hours": 24}},
        "config.vacuum.retention_hours: 24 is below retention_hours_min, which is 168",
    ),
    "a password": (
        {"config/kafka/sasl.password": "hunter2"},
        "config.kafka: sasl.password stands there as plain text",
    ),
    "a key of the store": (
        {"config/table/storage/secret_access_key": "abc"},
        "config.table.storage.secret_access_key: it stands there as plain text",
    ),
    "a token of the store": (
        {"config/table/storage/session_token": "abc"},
        "config.table.storage.session_token: it stands there as plain text",
    ),
    "a signing key": (
        {"config/control/signing_keys": {"k1": "abc"}},
        "config.control.signing_keys.k1: it stands there as plain text",
    ),
    "the registry's password": (
        {"config/registry": {"url": "https://r", "basic_auth": "a:b"}},
        "config.registry.basic_auth: it stands there as plain text",
    ),
    "a secret in the environment": (
        {"env": [{"name": "KAFKA_PASSWORD", "value": "x"}]},
        "env: KAFKA_PASSWORD looks like a secret",
    ),
    "a file of locks for many": (
        {"config/locks": {}},
        "config.locks: a SQLite file serves one pod",
    ),
    "a file of locks under an autoscaler": (
        KEDA
        | {"config/locks": {"store": "sqlite"}}
        | {"compactor/enabled": False, "vacuum/enabled": False},
        "config.locks: a SQLite file serves one pod",
    ),
    "a table within a pod": ({"config/table/uri": "/tmp/t"}, "is a path within a pod"),
    "maintenance without commands": ({"config/control": ...}, "compactor.enabled: needs the group"),
    "schedules without commands": (
        {
            "config/control": ...,
            "compactor/enabled": False,
            "vacuum/enabled": False,
            "schedules": [SCHEDULE],
        },
        "schedules: commands need the group control",
    ),
    "too little time to stop": (
        {"writer/terminationGracePeriodSeconds": 27},
        "writer.terminationGracePeriodSeconds: 27 is less than shutdown.grace_ms",
    ),
    "a label that is the chart's": (
        {"commonLabels": {"app.kubernetes.io/component": "x"}},
        "commonLabels: the chart sets app.kubernetes.io/component itself",
    ),
    "a monitor's label that is the chart's": (
        {"podMonitor/labels": {"helm.sh/chart": "x"}},
        "podMonitor.labels: the chart sets helm.sh/chart itself",
    ),
    "a monitor's label that everything has": (
        {"podMonitor/labels": {"team": "x"}, "commonLabels": {"team": "lake"}},
        "podMonitor.labels: team stands in commonLabels, too",
    ),
    "the checksum": (
        {"podAnnotations": {"checksum/config": "x"}},
        "podAnnotations: the chart sets checksum/config itself",
    ),
    "two schedules of one name": (
        {"schedules": [SCHEDULE, SCHEDULE]},
        "schedules: two have the name nightly",
    ),
    "more grace than time to stop": (
        {"config/shutdown": {"grace_ms": 120_000}},
        "writer.terminationGracePeriodSeconds: 60 is less than",
    ),
    "probes that reach nobody": ({"config/http": {"host": "127.0.0.1"}}, "config.http.host"),
    "any port": ({"config/http": {"port": 0}}, "config.http.port: probes need a port"),
    "a misspelt key": ({"writer/replcas": 2}, "additional properties 'replcas' not allowed"),
    "a misspelt group": ({"writers": {}}, "additional properties 'writers' not allowed"),
    "a text for a number": ({"partitions": "12"}, "/partitions"),
    "a command that is none": (
        {"schedules": [SCHEDULE | {"command": ["drop"]}]},
        "/schedules/0/command/0",
    ),
    "a schedule that is none": ({"schedules": [SCHEDULE | {"schedule": "often"}]}, "/schedules/0"),
    "a digest that is none": ({"image/digest": "abc"}, "/image/digest"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_contradicts_is_refused_with_a_sentence(helm, case):
    over, sentence = WRONG[case]
    assert sentence in helm.sentence(over)


def test_it_lints(helm):
    done = helm.run("lint", "--strict", values=whole_values())
    assert done.returncode == 0, done.stdout


def test_a_changed_configuration_rolls_the_pods_and_inits_again(helm):
    def marks(over):
        objects = helm.objects(over)
        rolled = {
            deployment(objects, w)["template"]["metadata"]["annotations"]["checksum/config"]
            for w in WORKERS
        }
        return rolled, job(objects)["metadata"]["name"]

    before, again = marks({}), marks({})
    assert before == again
    assert len(before[0]) == 1
    changed = marks({"config/flush": {"interval_ms": 500, "rows_max": 1_000_000}})
    assert changed[0] != before[0]
    assert changed[1] != before[1]
    image = marks({"image/tag": "7"})
    assert image[0] == before[0]
    assert image[1] != before[1], "a Job cannot be changed: another image needs another Job"


def test_probes_are_those_of_the_server(helm):
    for component in WORKERS:
        found = container(helm.objects({}), component)
        assert found["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
        assert found["startupProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
        assert found["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
        assert found["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "2"]
        assert found["args"][:2] == ["run", component]


def test_every_value_is_in_the_schema_and_the_other_way_round():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(value, node, path):
        if "$ref" in node:
            node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]]
        if "properties" not in node:
            return
        known = set(node["properties"]) - {"global"}
        assert set(value) == known, path
        for key in known:
            compare(value[key], node["properties"][key], f"{path}.{key}")

    compare(values, schema, "values")


def test_every_value_is_looked_at():
    """Each key of the values is in a case of the matrix, in a wrong one, or stands as it is."""
    over = [key for cases in (MATRIX, WRONG) for case in cases.values() for key in case[0]]
    named = {key.split("/")[0] for key in over}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) - named == {"envFrom"}, "envFrom is in the values that all cases begin with"


def test_the_readme_is_what_the_values_say():
    text = (CHART / "README.md").read_text(encoding="utf-8")
    assert text == readme.document(), (
        "run: python -m tests.chart.readme > helm/delta-sink/README.md"
    )


def test_the_chart_and_the_product_have_one_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{chart["appVersion"]}"' in project


@pytest.mark.parametrize("over", [{}, {"config": None, "existingConfigMap": "mine"}])
def test_notes_name_three_commands(helm, tmp_path, over):
    """`helm template` leaves notes out: a copy of the chart has them as an object too."""
    copied = tmp_path / "delta-sink"
    shutil.copytree(CHART, copied)
    shutil.copy(CHART / "templates" / "NOTES.txt", copied / "NOTES.txt")
    (copied / "templates" / "notes.yaml").write_text(
        'kind: Notes\ntext: {{ tpl (.Files.Get "NOTES.txt") . | quote }}\n'
    )
    values = laid_over(whole_values(), over)
    done = helm.run("template", "orders", "-n", "lake", values=values, chart=copied)
    (notes,) = [o["text"] for o in yaml.safe_load_all(done.stdout) if o["kind"] == "Notes"]
    assert len(re.findall(r"^  (?:helm|kubectl) ", notes, re.MULTILINE)) == 3
    assert f"deploy/{NAME}-writer" in notes
