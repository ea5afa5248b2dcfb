"""The JobSet's manifest, held to the official Kubernetes client's types and to JobSet's own fields."""

import re
import typing

import kubernetes.client
import pytest
import yaml

from stagjax.errors import UserError
from tpu.cli import main
from tpu.gke import Gke, job_set, pod_template
from tpu.options import GkeOptions
from tpu.shell import Shell
from tpu.topologies import find_slice

LINE = ["stagjax", "train", "--config=experiments/pile.py:separate_2x18", "--workdir=gs://bucket/run"]

# Fields of jobset.x-k8s.io/v1alpha2, of which there is no Python client.
JOB_SET = {"network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator", "managedBy"}
JOB_SET |= {"replicatedJobs", "ttlSecondsAfterFinished"}
NETWORK = {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"}
FAILURE_POLICY = {"maxRestarts", "rules", "restartStrategy"}
RULE = {"name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"}
REPLICATED_JOB = {"name", "groupName", "template", "replicas", "dependsOn"}


def options(topology="v5e:16x16", **fields):
    return GkeOptions("pile-1", "a-project", "a-zone", "a-cluster", "an-image", find_slice(topology), **fields)


VARIANTS = {
    "plain": options(),
    "spot": options(capacity="spot", slices=4),
    "reserved": options("v5p:4x4x8", capacity="reserved", reservation="ours", service_account="trainer"),
    "mounts": options("v6e:2x2", mounts=("gs://rows/pile:/mnt/pile", "pvc:rows:/mnt/disk"), environment={"A": "b"}),
}


def load(value, kind, path="pod"):
    """Build a type of the Kubernetes client from plain data; what the type does not know is an error."""
    # "List[X]" or "list[X]", "Dict[str, X]" or "dict(str, X)", by the client's release.
    if listed := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        assert isinstance(value, list), f"{path} is no list"
        return [load(item, listed[1], f"{path}[{n}]") for n, item in enumerate(value)]
    if mapped := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", kind):
        assert isinstance(value, dict), f"{path} is no mapping"
        return {load(key, "str", path): load(item, mapped[1], f"{path}.{key}") for key, item in value.items()}
    plain = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str, "object": typing.Any}
    if kind in plain:
        assert kind == "object" or type(value) is plain[kind], f"{path} is {value!r}, not {kind}"
        return value
    cls = getattr(kubernetes.client, kind)
    names = {name: field for field, name in cls.attribute_map.items()}
    assert isinstance(value, dict), f"{path} is no mapping"
    assert set(value) <= set(names), f"{path} has {sorted(set(value) - set(names))}, which {kind} does not know"
    fields = {names[key]: load(item, cls.openapi_types[names[key]], f"{path}.{key}") for key, item in value.items()}
    return cls(**fields)  # a field that is required and missing raises


def parsed(name):
    return yaml.safe_load(yaml.safe_dump(job_set(VARIANTS[name], LINE)))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_manifest_loads_into_the_clients_types(name):
    manifest = parsed(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    load(manifest["metadata"], "V1ObjectMeta")
    spec = manifest["spec"]
    assert set(spec) <= JOB_SET and set(spec["network"]) <= NETWORK and set(spec["failurePolicy"]) <= FAILURE_POLICY
    assert all(set(rule) <= RULE for rule in spec["failurePolicy"]["rules"])
    (replicated,) = spec["replicatedJobs"]
    assert set(replicated) <= REPLICATED_JOB
    job = load({"apiVersion": "batch/v1", "kind": "Job", **replicated["template"]}, "V1Job")
    assert isinstance(job.spec.template, kubernetes.client.V1PodTemplateSpec)
    assert job.spec.template.spec.containers[0].command == LINE


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pod: pod["spec"].update(nodeSelectors={}),
        lambda pod: pod["spec"]["containers"][0]["resources"].update(limit={}),
        lambda pod: pod["spec"]["containers"][0]["env"].append({"name": "A", "value": 1}),
        lambda pod: pod["spec"].pop("containers"),
        lambda pod: pod["spec"].update(terminationGracePeriodSeconds="30"),
    ],
)
def test_the_loader_is_strict(spoil):
    pod = pod_template(VARIANTS["plain"], LINE)
    load(pod, "V1PodTemplateSpec")
    spoil(pod)
    with pytest.raises((AssertionError, ValueError)):
        load(pod, "V1PodTemplateSpec")


def test_a_pod_for_each_host_and_a_job_for_each_slice():
    (replicated,) = parsed("spot")["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 4
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 64 and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
    # DNS names come from the headless service that the JobSet makes.
    assert parsed("spot")["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "pile-1"}


def verdict(manifest, status, disrupted=False):
    """Return what Kubernetes does when a pod ends so: the first rule that matches, else the back-off limit."""
    spec = manifest["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    reason = "BackoffLimitExceeded"
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if "onPodConditions" in rule and disrupted:
            assert rule["action"] == "Count"
            break
        if codes and codes["operator"] == "NotIn" and status not in codes["values"]:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    for rule in spec["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet" if spec["failurePolicy"]["maxRestarts"] else "FailJobSet"


@pytest.mark.parametrize("status", [75, 137, 143, 134])
def test_preempted_pods_start_all_again(status):
    assert verdict(parsed("plain"), status) == "RestartJobSet"


@pytest.mark.parametrize("status", [1, 2, 3, 127, 130])
def test_failures_are_final(status):
    assert verdict(parsed("plain"), status) == "FailJobSet"
    assert verdict(parsed("plain"), status, disrupted=True) == "RestartJobSet"
    added = job_set(options(restart_on=(status,)), LINE)
    assert verdict(added, status) == "RestartJobSet"


def test_kubernetes_accepts_the_list_of_statuses():
    rule = parsed("plain")["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"][1]
    values = rule["onExitCodes"]["values"]
    assert values == sorted(set(values)) and len(values) <= 255 and 0 not in values
    assert rule["onExitCodes"]["containerName"] == "stagjax"  # not the sidecar of gcsfuse


def test_data_are_mounted_read_only():
    pod = pod_template(VARIANTS["mounts"], LINE)
    bucket, disk = pod["spec"]["volumes"][1:]
    assert bucket["csi"]["volumeAttributes"] == {"bucketName": "rows", "mountOptions": "implicit-dirs,only-dir=pile"}
    assert disk["persistentVolumeClaim"] == {"claimName": "rows", "readOnly": True}
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    mounts = pod["spec"]["containers"][0]["volumeMounts"][1:]
    assert [(mount["mountPath"], mount["readOnly"]) for mount in mounts] == [("/mnt/pile", True), ("/mnt/disk", True)]
    with pytest.raises(UserError, match="on GKE use gs://BUCKET"):
        pod_template(options(mounts=("/dev/sdb:/mnt",)), LINE)


def test_node_pools(capsys):
    gke = Gke(VARIANTS["reserved"], Shell(dry_run=True))
    gke.create_pools()
    gke.delete_pools()
    create, delete = capsys.readouterr().out.splitlines()
    for part in ("pile-1-0", "--tpu-topology=4x4x8", "--num-nodes=32", "--machine-type=ct5p-hightpu-4t"):
        assert part in create
    assert "--reservation-affinity=specific --reservation=ours" in create and "--spot" not in create
    assert delete.startswith("gcloud container node-pools delete pile-1-0 --cluster=a-cluster")


def test_xpk_gets_the_same_line(capsys):
    place = ["--name=pile-1", "--project=p", "--zone=z", "--cluster=c", "--image=i", "--topology=v5p:4x4x8"]
    assert main(["gke", "run", *place, "--using=xpk", "--slices=2", "--dry-run", "--", *LINE]) == 0
    (create,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("xpk workload create")]
    for part in ("--tpu-type=v5p-256", "--num-slices=2", "--max-restarts=100", f"'--command=exec {' '.join(LINE)}'"):
        assert part in create
