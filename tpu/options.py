"""What a user says of a pod, checked before anything is asked of Google Cloud."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

from stagjax.errors import UserError
from tpu.topologies import Slice

CAPACITIES = ("on-demand", "spot", "reserved", "flex-start")


@dataclasses.dataclass(frozen=True)
class VmOptions:
    """TPU VMs and a run on them.

    Attributes:
      name: of the queued resource; its nodes are named after it.
      project: of Google Cloud.
      zone: where the TPUs are.
      slice: what each slice is; None for verbs that do not ask.
      slices: how many.
      capacity: "on-demand", "spot", "reserved" or "flex-start".
      max_run_duration: of flex-start capacity, e.g. "7d".
      run: name of the run on the workers.
      logs: where logs are gathered.
      source: the clone that is installed.
      requirements: the versions that are installed; written at the first set-up. None for LOGS/NAME.requirements.txt.
      runtime: of the TPU VM; empty for the family's own.
      mounts: "gs://BUCKET:/DIR" or "/dev/DISK:/DIR", read-only.
      environment: of the command.
      create_flags: passed on to `queued-resources create`.
      ssh_flags: passed on to `ssh` and `scp`, e.g. --internal-ip.
      grace: seconds to save after a signal.
      poll_seconds: between two looks at the workers.
    """

    name: str
    project: str
    zone: str
    slice: Slice | None
    slices: int = 1
    capacity: str = "on-demand"
    max_run_duration: str = "7d"
    run: str = "train"
    logs: pathlib.Path = pathlib.Path("logs")
    source: pathlib.Path = pathlib.Path(".")
    requirements: pathlib.Path | None = None
    runtime: str = ""
    mounts: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    create_flags: tuple[str, ...] = ()
    ssh_flags: tuple[str, ...] = ()
    grace: float = 120.0
    poll_seconds: float = 30.0


@dataclasses.dataclass(frozen=True)
class GkeOptions:
    """A JobSet on a GKE cluster.

    Attributes:
      name: of the JobSet.
      project: of Google Cloud.
      zone: where the TPUs are.
      cluster: its name.
      image: container image with stagjax.
      slice: what each slice is; None for verbs that do not ask.
      slices: how many: one Job each.
      capacity: "on-demand", "spot", "reserved" or "flex-start".
      max_run_duration: of flex-start capacity, e.g. "7d".
      location: of the cluster, where it is a region and not the zone.
      reservation: name of the reservation.
      namespace: of Kubernetes.
      service_account: of Kubernetes, which may read and write the bucket; empty for the namespace's default.
      mounts: "gs://BUCKET:/DIR" or "pvc:CLAIM:/DIR", read-only.
      environment: of the command.
      max_restarts: of the whole JobSet, over its life.
      restart_on: exit statuses that restart besides 75 and signals.
      grace: seconds to save after a signal.
      logs: where logs are gathered.
    """

    name: str
    project: str
    zone: str
    cluster: str
    image: str
    slice: Slice | None
    slices: int = 1
    capacity: str = "on-demand"
    max_run_duration: str = "7d"
    location: str = ""
    reservation: str = ""
    namespace: str = "default"
    service_account: str = ""
    mounts: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_restarts: int = 100
    restart_on: tuple[int, ...] = ()
    grace: int = 120
    logs: pathlib.Path = pathlib.Path("logs")


def required(**values: str | None) -> None:
    """Raise `UserError` for the first value that is missing: nothing has a default that belongs to somebody."""
    for name, value in values.items():
        if not value:
            raise UserError(f"--{name} is missing; there is no default: give --{name}={name.upper()}")


def check_name(flag: str, name: str, longest: int = 40) -> None:
    """Raise `UserError` where Google Cloud or Kubernetes would refuse a name."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > longest:
        raise UserError(
            f"--{flag}={name}: a name is of lower-case letters, digits and dashes, begins with a letter, does not end "
            f"with a dash and has at most {longest} characters; use e.g. pile-1"
        )


def check_kubernetes(flag: str, name: str, dots: bool = False) -> None:
    """Raise `UserError` where Kubernetes would refuse a name that is not ours; that of an account may have dots."""
    inner, longest = ("-.", 253) if dots else ("-", 63)
    if not re.fullmatch(rf"[a-z0-9]([{inner}a-z0-9]*[a-z0-9])?", name) or len(name) > longest:
        raise UserError(
            f"--{flag}={name}: Kubernetes' names are of lower-case letters, digits and {' or '.join(inner)} within, at "
            f"most {longest} characters; see `kubectl get {flag.replace('-', '')}s`"
        )


def check_duration(flag: str, text: str, days: int) -> None:
    """Raise `UserError` where a time, e.g. "1d12h", is none, is 0, or is more than Google Cloud gives."""
    seconds = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d{1,9})([dhms])", text, re.ASCII)
    wanted = sum(int(count) * seconds[unit] for count, unit in parts)
    if "".join(map("".join, parts)) != text or not 0 < wanted <= days * seconds["d"]:
        raise UserError(f"--{flag}={text}: a time of at most {days}d, in d, h, m and s; use e.g. {days}d or 1d12h")


def check_source(clone: pathlib.Path) -> None:
    """Raise `UserError` where a directory is no clone of stagjax."""
    if not (clone / "setup.py").exists():
        raise UserError(f"--source={clone} holds no setup.py; give a clone of stagjax")


def parse_mount(mount: str) -> tuple[str, str]:
    """Return what is mounted and where; both follow from "WHAT:/DIRECTORY".

    Raises:
      UserError: another form.
    """
    what, _, where = mount.rpartition(":")
    if not re.match("(?!gs://(/|$)|pvc:$).", what) or not re.match("/[^/]", where):
        raise UserError(f"--mount={mount}: use WHAT:/DIRECTORY, e.g. --mount=gs://BUCKET:/mnt/pile")
    return what, where


def parse_environment(pairs: list[str]) -> dict[str, str]:
    """Return the variables of "NAME=VALUE" words.

    Raises:
      UserError: a word without a name or "=".
    """
    environment = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"--env={pair}: use NAME=VALUE, e.g. --env=TPU_MIN_LOG_LEVEL=3")
        environment[name] = value
    return environment
