"""The JobSet's manifest, held to the official Kubernetes client's types and to JobSet's own fields."""

import base64
import json
import re
import typing

import kubernetes.client
import pytest
import yaml

from stagjax.errors import RunFailed, UserError
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
    bucket, disk, _ = pod["spec"]["volumes"][1:]
    assert bucket["csi"]["volumeAttributes"] == {"bucketName": "rows", "mountOptions": "implicit-dirs,only-dir=pile"}
    assert disk["persistentVolumeClaim"] == {"claimName": "rows", "readOnly": True}
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    mounts = pod["spec"]["containers"][0]["volumeMounts"][1:-1]
    assert [(mount["mountPath"], mount["readOnly"]) for mount in mounts] == [("/mnt/pile", True), ("/mnt/disk", True)]
    with pytest.raises(UserError, match="on GKE use gs://BUCKET"):
        pod_template(options(mounts=("/dev/sdb:/mnt",)), LINE)


def commands(capsys, verb, wanted):
    getattr(Gke(wanted, Shell(dry_run=True)), verb)()
    return capsys.readouterr().out.splitlines()


def test_node_pools(capsys):
    (create,) = commands(capsys, "create_pools", VARIANTS["reserved"])
    (delete,) = commands(capsys, "delete_pools", VARIANTS["reserved"])
    for part in ("pile-1-0", "--tpu-topology=4x4x8", "--num-nodes=32", "--machine-type=ct5p-hightpu-4t"):
        assert part in create
    assert "--reservation-affinity=specific --reservation=ours" in create and "--spot" not in create
    assert delete.startswith("gcloud container node-pools delete pile-1-0 --cluster=a-cluster")


def test_a_policy_lays_out_the_slices_of_newer_chips(capsys):
    wanted = options("tpu7x:4x4x4", slices=2)
    policy, *pools = commands(capsys, "create_pools", wanted)
    assert "gcloud beta compute resource-policies create workload-policy pile-1-layout" in policy
    assert "--region=a " in policy and "--accelerator-topology=4x4x4" in policy
    assert len(pools) == 2
    assert all("--placement-policy=pile-1-layout" in pool and "--tpu-topology" not in pool for pool in pools)
    *_, last = commands(capsys, "delete_pools", wanted)
    assert last.startswith("gcloud compute resource-policies delete pile-1-layout")
    # One host needs none.
    assert "policy" not in "".join(commands(capsys, "create_pools", options("tpu7x:2x2x1")))


def test_flex_start_waits_for_nodes_that_go_again(capsys):
    wanted = options("v6e:4x4", capacity="flex-start", max_run_duration="12h")
    (pool,) = commands(capsys, "create_pools", wanted)
    for part in ("--flex-start", "--enable-autoscaling", "--num-nodes=0", "--max-nodes=4", "--max-run-duration=12h"):
        assert part in pool
    pod = pod_template(wanted, LINE)["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-flex-start"] == "true"
    with pytest.raises(UserError, match="there is none for v4"):
        Gke(options("v4:2x2x1", capacity="flex-start"), Shell(dry_run=True)).create_pools()


class Kubectl:
    """Notes what the launcher asks of a cluster; every verb that `fails` names does, but for the secret."""

    dry_run = False

    def __init__(self, fails="nothing"):
        self.calls, self.fails = [], fails

    def run(self, command, *, text=None, shown=None, quiet=False):
        self.calls.append((command, text, shown))
        if self.fails in command and '"Secret"' not in (text or ""):
            raise RunFailed("it failed")
        return "an-identity" if "--output=jsonpath={.metadata.uid}" in command else ""

    attempt = run


def test_the_secret_is_made_for_the_launch_and_goes_with_the_job_set():
    names = set()
    for _ in range(2):
        kubectl = Kubectl()
        Gke(VARIANTS["plain"], kubectl).submit(LINE)
        (_, made, shown), (_, job, _), (patch, _, _) = kubectl.calls
        secret, manifest = json.loads(made), json.loads(job)
        value = base64.b64decode(secret["data"]["secret"]).decode()
        assert re.fullmatch("[0-9a-f]{64}", value)
        # By standard input alone, and not in what is shown of it.
        told = str([command for command, _, _ in kubectl.calls]) + job + shown
        assert value not in told and secret["data"]["secret"] not in told
        name = secret["metadata"]["name"]
        pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert pod["volumes"][-1]["secret"] == {"secretName": name, "defaultMode": 0o600}
        (container,) = pod["containers"]
        path = container["volumeMounts"][-1]["mountPath"]
        assert container["env"][-1] == {"name": "STAGJAX_SECRET_FILE", "value": path}
        (owner,) = json.loads(patch[-1].removeprefix("--patch="))["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("JobSet", "pile-1", "an-identity")
        assert name in patch
        names |= {name, value}
    assert len(names) == 4


def test_a_secret_without_a_job_set_is_not_left_behind():
    kubectl = Kubectl(fails="create")
    with pytest.raises(RunFailed):
        Gke(VARIANTS["plain"], kubectl).submit(LINE)
    name = json.loads(kubectl.calls[0][1])["metadata"]["name"]
    assert kubectl.calls[-1][0][2:] == ["delete", "secret", name]


def test_a_dry_run_shows_the_secrets_name_and_not_its_value(capsys):
    place = ["--name=pile-1", "--project=p", "--zone=z", "--cluster=c", "--image=i", "--topology=v5p:4x4x8"]
    for using in ("kubectl", "xpk"):
        assert main(["gke", "run", *place, f"--using={using}", "--slices=2", "--dry-run", "--", "echo", "$P"]) == 0
        out = capsys.readouterr().out
        assert '"secretName": "pile-1-secret-launch"' in out and "(64 hex digits, made at the launch)" in out
        assert not re.search("[0-9a-f]{40}", out) and '"$$P"' in out
    assert out.index("xpk workload create") < out.index("kubectl --namespace=default create")


def test_a_spot_pod_has_half_of_the_machines_notice(capsys):
    place = ["--name=pile-1", "--project=p", "--zone=z", "--cluster=c", "--image=i", "--topology=v5p:4x4x8"]
    assert main(["gke", "run", *place, "--capacity=spot", "--dry-run", "--", "echo"]) == 0
    assert "kills a spot pod about 15 s after SIGTERM" in capsys.readouterr().out
