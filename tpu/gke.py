"""A run on GKE: one JobSet, a Job for each slice, a pod for each host; Kubernetes starts it again by the same rules."""

import base64
import json
import pathlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

from stagjax.errors import RunFailed, UserError
from stagjax.hosts.secret import VARIABLE
from tpu import node_pools, xpk
from tpu.kubernetes import CONTAINER, SECRET_VOLUME, check_generated, literal
from tpu.options import GkeOptions, parse_mount
from tpu.restarts import restartable
from tpu.shell import Shell

JOB = "worker"
_POLL_SECONDS = 30.0
_SECRET_FILE = "/etc/stagjax/secret"
_LABEL = "stagjax/jobset"
_API = "jobset.x-k8s.io/v1alpha2"


def job_set(options: GkeOptions, command: Sequence[str], secret_name: str = "") -> dict[str, Any]:
    """Return the JobSet's manifest.

    The JobSet makes a headless service of its name, by which pods find each other; GKE tells each container its place
    (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, and MEGASCALE_* where there are several slices), which JAX reads.

    A pod that ends with 75 or by a signal fails its Job at once (`backoffLimit: 0`), and the JobSet starts all Jobs
    again. With any other status `podFailurePolicy` marks the Job's failure as final, and so the JobSet's. A pod that
    Kubernetes evicts counts as preempted, whatever its status.

    Args:
      options: of the run.
      command: the line that every pod runs, as the user wrote it.
      secret_name: of the Kubernetes Secret that holds the secret of the run; by default that of a dry run.

    Raises:
      UserError: a mount that GKE has no volume for, or a text that no manifest can hold.
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
        "template": pod_template(options, command, secret_name),
    }
    return {
        "apiVersion": _API,
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


def pod_template(options: GkeOptions, command: Sequence[str], secret_name: str = "") -> dict[str, Any]:
    """Return the template of every pod: the same line, variables and secret on every host."""
    volumes, mounts, annotations = _volumes(options.mounts)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": options.slice.family.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": options.slice.layout,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.capacity == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"})
    if options.capacity == "flex-start":
        selector["cloud.google.com/gke-flex-start"] = "true"
    if options.reservation:
        selector["cloud.google.com/reservation-name"] = options.reservation
    environment = {**options.environment, VARIABLE: _SECRET_FILE}
    chips = str(options.slice.gke_chips_per_host)
    container = {
        "name": CONTAINER,
        "image": options.image,
        "command": [literal(word) for word in command],
        "env": [{"name": name, "value": literal(value)} for name, value in environment.items()],
        # Of libtpu between the chips' hosts, of its profiler, and of JAX's coordinator.
        "ports": [{"containerPort": 8471}, {"containerPort": 8431}, {"containerPort": 8476}],
        "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
        # libtpu and Python processes hand over arrays there; a container has 64 MB of it otherwise.
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *mounts,
            # As a file of its own: a whole volume would hold links to it.
            {"name": SECRET_VOLUME, "mountPath": _SECRET_FILE, "subPath": "secret", "readOnly": True},
        ],
    }
    pod = {
        # podFailurePolicy asks for Never: a container alone cannot rejoin the others.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            *volumes,
            {
                "name": SECRET_VOLUME,
                "secret": {"secretName": secret_name or _secret_name(options), "defaultMode": 0o600},
            },
        ],
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


def check_names(options: GkeOptions, using: str = "kubectl") -> None:
    """Raise `UserError` where what is named after --name would have a longer name than it may have.

    Args:
      options: of the run or its node pools.
      using: "kubectl" or "xpk", which calls its Jobs otherwise.
    """
    job = f"-{xpk.JOB if using == 'xpk' else JOB}-{options.slices - 1}"
    generated = {
        "a node pool": (f"-{options.slices - 1}", 40),
        "the JobSet's service": ("", 63),
        "a Job": (job, 63),
        "its secret": ("-secret-00000000", 253),
    }
    if options.slice:
        generated["a pod"] = (f"{job}-{options.slice.gke_hosts - 1}-00000", 63)
        if options.slice.family.by_policy:
            generated["the workload policy"] = (node_pools.policy(options).removeprefix(options.name), 63)
    check_generated(options.name, generated)


def _secret_name(options: GkeOptions, launch: str = "launch") -> str:
    return f"{options.name}-secret-{launch}"


def _secret(options: GkeOptions, name: str, encoded: str) -> dict[str, Any]:
    """Return the manifest of the Kubernetes Secret; what is encoded is the file's content in base64."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": options.namespace, "labels": {_LABEL: options.name}},
        "type": "Opaque",
        "immutable": True,
        "data": {"secret": encoded},
    }


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
        for command in node_pools.create_commands(self.options):
            self._shell.run(command)

    def delete_pools(self) -> None:
        """Delete those node pools; the cluster, disks and buckets are left alone."""
        for command in node_pools.delete_commands(self.options):
            self._shell.run(command)

    def connect(self) -> None:
        """Point kubectl at the cluster."""
        command = ["gcloud", "container", "clusters", "get-credentials", self.options.cluster]
        self._shell.run([*command, *node_pools.place(self.options)], quiet=True)

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

    def submit(self, command: Sequence[str], using: str = "kubectl") -> None:
        """Create the JobSet, and before it the secret of the run, which Kubernetes removes together with it.

        Args:
          command: the line that every pod runs.
          using: "kubectl", or "xpk" for a JobSet of its making.

        Raises:
          UserError: what Kubernetes, GKE or xpk does not have.
          RunFailed: one of the commands fails; nothing is left behind.
        """
        name = _secret_name(self.options, *([] if self._shell.dry_run else [secrets.token_hex(4)]))
        manifest = job_set(self.options, command, name)
        if using == "xpk":
            manifest = xpk.manifest(self.options, self._shell, manifest)
        shown = _secret(self.options, name, "(64 hex digits, made at the launch)")
        made = _secret(self.options, name, base64.b64encode(secrets.token_hex(32).encode()).decode())
        self._create(made, "name", shown)
        try:
            identity = self._create(manifest, "{.metadata.uid}") or "UID"
            owner = {"apiVersion": _API, "kind": "JobSet", "name": self.options.name, "uid": identity}
            patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
            self._shell.run(self._kubectl("patch", "secret", name, "--type=merge", f"--patch={patch}"), quiet=True)
        except RunFailed:
            self._shell.attempt(self._kubectl("delete", "secret", name))
            raise
        if not self._shell.dry_run:
            print(f"jobset {self.options.name} created, with secret {name}")

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
        """Delete the JobSet with its pods, and its secret."""
        print(self._shell.run(self._kubectl("delete", "jobset", self.options.name)), end="")
        # Kubernetes does so too, unless the launcher was killed in the midst of its work.
        self._shell.run(self._kubectl("delete", "secret", f"--selector={_LABEL}={self.options.name}"), quiet=True)

    def _create(self, manifest: dict[str, Any], output: str, shown: dict[str, Any] | None = None) -> str:
        """Create what a manifest says, by standard input; JSON leaves no doubt of what is a text and what a number."""
        text, instead = (found and json.dumps(found, indent=2) for found in (manifest, shown))
        output = output if output == "name" else f"jsonpath={output}"
        command = self._kubectl("create", "--filename=-", f"--output={output}")
        return self._shell.run(command, text=text, shown=instead).strip()

    def _kubectl(self, *words: str) -> list[str]:
        return ["kubectl", f"--namespace={self.options.namespace}", *words]

    def _selector(self) -> str:
        return f"--selector=jobset.sigs.k8s.io/jobset-name={self.options.name}"
