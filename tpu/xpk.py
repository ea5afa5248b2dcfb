"""A run by xpk: it writes the JobSet for its cluster (queue, priority, nodes), in which we put what it cannot be told.

Tried with xpk 1.16.0. It has no flag for a service account or a secret; restarts after 42 and 127 to 255 whatever it is
told; and puts the command, unquoted, into a shell that hands SIGTERM on up to 5 s late, and sees up to 5 s late that it
has ended, of the 15 s that a spot pod has. So it only writes the manifest (--dry-run --output-manifest-file).
"""

import pathlib
import tempfile
from typing import Any

import yaml

from stagjax.errors import RunFailed, UserError
from tpu.kubernetes import CONTAINER, SECRET_VOLUME
from tpu.options import GkeOptions
from tpu.shell import Shell

VERSION = "1.16.0"
JOB = "slice-job"


def manifest(options: GkeOptions, shell: Shell, own: dict[str, Any]) -> dict[str, Any]:
    """Return xpk's JobSet with our command, environment, secret, account, and rules of exit statuses.

    Args:
      options: of the run.
      shell: runs xpk.
      own: the JobSet that we would write ourselves.

    Raises:
      UserError: what xpk does not have.
      RunFailed: xpk fails, or writes no JobSet that we know.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "jobset.yaml"
        shell.run(command(options, file), quiet=True)
        if shell.dry_run:
            return _complete({"apiVersion": f"(all else as in {file})"} | _skeleton(), own)
        try:
            return _complete(yaml.safe_load(file.read_text()), own)
        except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            raise RunFailed(
                f"xpk wrote no JobSet like that of version {VERSION} ({type(error).__name__}); use --using=kubectl"
            ) from error


def command(options: GkeOptions, file: pathlib.Path) -> list[str]:
    """Return the command by which xpk writes its manifest to a file.

    Raises:
      UserError: mounts, which xpk has of its own making, or a slice that it does not know.
    """
    o = options
    if o.mounts:
        raise UserError(f"--mount={o.mounts[0]}: xpk attaches storage of its own (xpk storage attach); leave it out")
    if (o.slice.family.accelerator, o.slice.layout) in {("v5litepod", "1x1"), ("v5litepod", "2x2")}:
        raise UserError(f"--topology={o.slice.name}: xpk {VERSION} has v5e from 2x4 on; use that, or --using=kubectl")
    return [
        *("xpk", "workload", "create", f"--cluster={o.cluster}", f"--workload={o.name}"),
        *(f"--project={o.project}", f"--zone={o.zone}", f"--namespace={o.namespace}"),
        # Several layouts have as many chips, so that v5p-512 alone would mean another one than v5p-4x4x16.
        f"--tpu-type={o.slice.family.accelerator}-{o.slice.layout}",
        f"--num-slices={o.slices}",
        f"--docker-image={o.image}",
        f"--docker-name={CONTAINER}",
        f"--max-restarts={o.max_restarts}",
        f"--termination-grace-period-seconds={o.grace}",
        "--command=stagjax",  # its place is taken by the line
        *("--dry-run", "--skip-validation", f"--output-manifest-file={file}"),
    ]


def _complete(written: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return xpk's manifest with what it cannot be told from our own."""
    written["metadata"]["namespace"] = own["metadata"]["namespace"]
    job, ours = (found["spec"]["replicatedJobs"][0]["template"]["spec"] for found in (written, own))
    job["podFailurePolicy"] = ours["podFailurePolicy"]
    pod, our_pod = job["template"]["spec"], ours["template"]["spec"]
    pod["serviceAccountName"] = our_pod.get("serviceAccountName", "default")
    pod["volumes"] += [volume for volume in our_pod["volumes"] if volume["name"] == SECRET_VOLUME]
    (container,) = (found for found in pod["containers"] if found["name"] == CONTAINER)
    (our_container,) = our_pod["containers"]
    container |= {name: our_container[name] for name in ("command", "env")}
    container["volumeMounts"] += [mount for mount in our_container["volumeMounts"] if mount["name"] == SECRET_VOLUME]
    return written


def _skeleton() -> dict[str, Any]:
    """Return as much of xpk's manifest as a dry run needs to show what is put in."""
    pod = {"volumes": [], "containers": [{"name": CONTAINER, "volumeMounts": []}]}
    job = {"name": JOB, "template": {"spec": {"template": {"spec": pod}}}}
    return {"metadata": {}, "spec": {"replicatedJobs": [job]}}
