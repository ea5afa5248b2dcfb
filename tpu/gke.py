"""A run on GKE: one JobSet, a Job for each slice, a pod for each host; Kubernetes starts it again by the same rules."""

import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

import yaml

from stagjax.errors import RunFailed, UserError
from tpu.options import GkeOptions, parse_mount
from tpu.restarts import restartable
from tpu.shell import Shell

JOB = "worker"
CONTAINER = "stagjax"
_POLL_SECONDS = 30.0


def job_set(options: GkeOptions, command: Sequence[str]) -> dict[str, Any]:
    """Return the JobSet's manifest.

    The JobSet makes a headless service of its name, by which pods find each other; GKE tells each container its place
    (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, and MEGASCALE_* where there are several slices), which JAX reads.

    A pod that ends with 75 or by a signal fails its Job at once (`backoffLimit: 0`), and the JobSet starts all Jobs
    again. With any other status `podFailurePolicy` marks the Job's failure as final, and so the JobSet's. A pod that
    Kubernetes evicts counts as preempted, whatever its status.

    Raises:
      UserError: a mount that GKE has no volume for.
    """
    hosts = options.slice.gke_hosts
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "NotIn",
                        "values": restartable(options.restart_on),
                    },
                },
            ]
        },
        "template": pod_template(options, command),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            "namespace": options.namespace,
            # One Job a node pool: a slice is never shared.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": options.name},
            "failurePolicy": {
                "maxRestarts": options.max_restarts,
                "rules": [
                    {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                ],
            },
            "replicatedJobs": [{"name": JOB, "replicas": options.slices, "template": {"spec": job}}],
        },
    }


def pod_template(options: GkeOptions, command: Sequence[str]) -> dict[str, Any]:
    """Return the template of every pod: the same line on every host."""
    volumes, mounts, annotations = _volumes(options.mounts)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": options.slice.family.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": options.slice.layout,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.capacity == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"})
    if options.reservation:
        selector["cloud.google.com/reservation-name"] = options.reservation
    chips = str(options.slice.gke_chips_per_host)
    container = {
        "name": CONTAINER,
        "image": options.image,
        "command": list(command),
        "env": [{"name": name, "value": value} for name, value in options.environment.items()],
        # Of libtpu between the chips' hosts, of its profiler, and of JAX's coordinator.
        "ports": [{"containerPort": 8471}, {"containerPort": 8431}, {"containerPort": 8476}],
        "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
        # libtpu and Python processes hand over arrays there; a container has 64 MB of it otherwise.
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}, *mounts],
    }
    pod = {
        # podFailurePolicy asks for Never: a container alone cannot rejoin the others.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}, *volumes],
    }
    if options.slices > 1 and "gke-gcsfuse/volumes" not in annotations:
        # Traffic between slices is faster without the pods' virtual network, which GKE's gcsfuse asks for.
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    return {"metadata": {"annotations": annotations}, "spec": pod} if annotations else {"spec": pod}


def _volumes(mounts: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Return volumes, their mounts and the pod's annotations for read-only data."""
    volumes, places, annotations = [], [], {}
    for index, mount in enumerate(mounts):
        what, where = parse_mount(mount)
        volume: dict[str, Any] = {"name": f"data-{index}"}
        if what.startswith("gs://"):
            bucket, _, prefix = what.removeprefix("gs://").partition("/")
            only = f",only-dir={prefix}" if prefix else ""
            volume["csi"] = {
                "driver": "gcsfuse.csi.storage.gke.io",
                "readOnly": True,
                "volumeAttributes": {"bucketName": bucket, "mountOptions": f"implicit-dirs{only}"},
            }
            annotations["gke-gcsfuse/volumes"] = "true"
        elif what.startswith("pvc:"):
            volume["persistentVolumeClaim"] = {"claimName": what.removeprefix("pvc:"), "readOnly": True}
        else:
            raise UserError(f"--mount={mount}: on GKE use gs://BUCKET:/DIRECTORY or pvc:CLAIM:/DIRECTORY")
        volumes.append(volume)
        places.append({"name": volume["name"], "mountPath": where, "readOnly": True})
    return volumes, places, annotations


class Gke:
    """What a user does with a JobSet, by kubectl or xpk.

    Args:
      options: where and what.
      shell: runs gcloud, kubectl and xpk.
    """

    def __init__(self, options: GkeOptions, shell: Shell):
        self.options, self._shell = options, shell

    def create_pools(self) -> None:
        """Create one node pool for each slice in a cluster that is there."""
        o = self.options
        capacity = {
            "spot": ["--spot"],
            "reserved": ["--reservation-affinity=specific", f"--reservation={o.reservation}"],
            "on-demand": [],
        }[o.capacity]
        # GKE makes the compact placement of several hosts by itself from the topology.
        topology = [f"--tpu-topology={o.slice.layout}"] if o.slice.gke_hosts > 1 else []
        for pool in self._pools():
            self._shell.run(
                [
                    *("gcloud", "container", "node-pools", "create", pool, f"--cluster={o.cluster}", *self._place()),
                    f"--node-locations={o.zone}",
                    f"--machine-type={o.slice.gke_machine}",
                    *topology,
                    f"--num-nodes={o.slice.gke_hosts}",
                    *capacity,
                ]
            )

    def delete_pools(self) -> None:
        """Delete those node pools; the cluster, disks and buckets are left alone."""
        for pool in self._pools():
            command = ["gcloud", "container", "node-pools", "delete", pool, f"--cluster={self.options.cluster}"]
            self._shell.run([*command, *self._place(), "--quiet"])

    def connect(self) -> None:
        """Point kubectl at the cluster."""
        command = ["gcloud", "container", "clusters", "get-credentials", self.options.cluster, *self._place()]
        self._shell.run(command, quiet=True)

    def is_there(self) -> bool:
        """Return whether the JobSet is under way already.

        Raises:
          UserError: it is there and has ended.
        """
        query = ["--ignore-not-found", "--output=jsonpath={.metadata.name}/{.status.terminalState}"]
        name, _, end = self._shell.run([*self._kubectl("get", "jobset", self.options.name), *query]).partition("/")
        if end:
            raise UserError(
                f"--name={name}: that JobSet has ended ({end}); remove it with `gke stop`, or use another name"
            )
        return bool(name)

    def apply(self, command: Sequence[str]) -> None:
        """Create the JobSet."""
        manifest = yaml.safe_dump(job_set(self.options, command), sort_keys=False)
        print(self._shell.run(["kubectl", "create", "--filename=-"], text=manifest), end="")

    def submit_by_xpk(self, command: Sequence[str]) -> None:
        """Hand the same line to xpk, which writes a JobSet of its own.

        Raises:
          UserError: mounts, which xpk has of its own making.
        """
        o = self.options
        if o.mounts:
            raise UserError(
                f"--mount={o.mounts[0]}: xpk attaches storage of its own (xpk storage attach); leave it out"
            )
        also = ",".join(map(str, [75, *o.restart_on]))
        print(
            self._shell.run(
                [
                    *("xpk", "workload", "create", f"--cluster={o.cluster}", f"--workload={o.name}"),
                    *(f"--project={o.project}", f"--zone={o.zone}"),
                    f"--tpu-type={o.slice.accelerator_type}",
                    f"--num-slices={o.slices}",
                    f"--docker-image={o.image}",
                    f"--max-restarts={o.max_restarts}",
                    f"--restart-on-exit-codes={also}",
                    f"--termination-grace-period-seconds={o.grace}",
                    *(f"--env={name}={value}" for name, value in o.environment.items()),
                    # xpk runs it in a shell of its own: exec hands it the signals.
                    f"--command=exec {shlex.join(command)}",
                ]
            ),
            end="",
        )

    def watch(self) -> int:
        """Wait for the JobSet's end, printing what changes; return 0 if it completed, 3 if it failed.

        Raises:
          RunFailed: kubectl fails.
        """
        seen = None
        while True:
            template = "{.status.terminalState}/{.status.restarts}"
            state = self._shell.run(
                [*self._kubectl("get", "jobset", self.options.name), f"--output=jsonpath={template}"]
            )
            if self._shell.dry_run:
                return 0
            end, _, restarts = state.partition("/")
            if state != seen:
                print(f"{self.options.name}: {end or 'running'}, {restarts or 0} restarts", flush=True)
                seen = state
            if end:
                return 0 if end == "Completed" else 3
            time.sleep(_POLL_SECONDS)

    def status(self) -> None:
        """Print the JobSet and its pods."""
        for command in (
            self._kubectl("get", "jobset", self.options.name, "--output=wide"),
            self._kubectl("get", "pods", self._selector(), "--output=wide"),
        ):
            print(self._shell.run(command), end="")

    def gather(self) -> pathlib.Path:
        """Write every pod's log to LOGS/POD.log and return LOGS.

        Raises:
          RunFailed: kubectl fails.
        """
        folder = self.options.logs
        names = self._shell.run([*self._kubectl("get", "pods", self._selector()), "--output=name"]).split()
        for name in names or (["pod/NAME"] if self._shell.dry_run else []):
            out = self._shell.run(self._kubectl("logs", name, f"--container={CONTAINER}"))
            if not self._shell.dry_run:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name.removeprefix('pod/')}.log").write_text(out)
        if not names and not self._shell.dry_run:
            raise RunFailed(f"{self.options.name} has no pods; those of earlier restarts are in Cloud Logging")
        return folder

    def delete(self) -> None:
        """Delete the JobSet with its pods."""
        print(self._shell.run(self._kubectl("delete", "jobset", self.options.name)), end="")

    def _pools(self) -> list[str]:
        return [f"{self.options.name}-{index}" for index in range(self.options.slices)]

    def _place(self) -> list[str]:
        return [f"--project={self.options.project}", f"--location={self.options.location or self.options.zone}"]

    def _kubectl(self, *words: str) -> list[str]:
        return ["kubectl", f"--namespace={self.options.namespace}", *words]

    def _selector(self) -> str:
        return f"--selector=jobset.sigs.k8s.io/jobset-name={self.options.name}"
