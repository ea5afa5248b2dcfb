"""TPU VMs: queued resources, set-up of every worker, and a run on them that outlives the connection."""

import pathlib
import re
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Sequence

from stagjax.errors import RunFailed
from stagjax.hosts import secret
from tpu import source
from tpu.options import VmOptions
from tpu.restarts import KILLED, WorkerState
from tpu.shell import Shell

HERE = pathlib.Path(__file__).parent
_REMOTE = "stagjax-run"  # in the home directory of a worker
_LINE = re.compile(r"^stagjax-worker (\S+) (running|ended|absent)(?: (\d+) ([\d.]+) ?(.*))?$", re.MULTILINE)
_GONE = {"SUSPENDED", "SUSPENDING", "FAILED", "PREEMPTED", "TERMINATED"}
_UNREACHABLE_POLLS = 20


class VmTarget:
    """The workers of one queued resource.

    The command runs in the background of every worker under `worker.sh`, which keeps its log and exit status: neither a
    closed laptop nor a lost connection ends it.

    Args:
      options: where, what and how.
      command: the line that every worker runs.
      shell: runs gcloud.
      say: takes one line for the user.
    """

    detached = True

    def __init__(self, options: VmOptions, command: Sequence[str], shell: Shell, say: Callable[[str], None] = print):
        self.options, self.command, self._shell, self._say = options, list(command), shell, say
        self.poll_seconds = options.poll_seconds
        self._unreachable = 0
        self._is_set_up = False

    @property
    def nodes(self) -> list[str]:
        """Return the names of its TPU VMs: one for each slice."""
        name, slices = self.options.name, self.options.slices
        return [name] if slices == 1 else [f"{name}-{index}" for index in range(slices)]

    @property
    def num_workers(self) -> int:
        """Return how many hosts there are."""
        return self.options.slice.vm_hosts * self.options.slices

    # Capacity.

    def prepare(self) -> None:
        """Have the machines: create what is missing, replace what was preempted, wait, set up what is new."""
        state = self.state()
        if state in _GONE:
            self._say(f"{self.options.name} is {state}: deleting it, to ask for capacity again")
            self.delete()
            state = None
        if state is None:
            self._shell.run(self.create_command())
        if state != "ACTIVE":
            self.wait_until_active()
            self._is_set_up = False
        if not self._is_set_up:
            self.set_up()
            self._is_set_up = True

    def create_command(self) -> list[str]:
        """Return the command that asks for the machines: of the alpha track where only that has what is asked for."""
        o = self.options
        nodes = [f"--node-id={o.name}"] if o.slices == 1 else [f"--node-count={o.slices}", f"--node-prefix={o.name}"]
        capacity = {
            "on-demand": [],
            "spot": ["--spot"],
            "reserved": ["--reserved"],
            "flex-start": ["--provisioning-model=flex-start", f"--max-run-duration={o.max_run_duration}"],
        }[o.capacity]
        kind = [f"--accelerator-type={o.slice.accelerator_type}"]
        if not o.slice.is_named_by_type:
            kind = [f"--type={o.slice.family.accelerator}", f"--topology={o.slice.layout}"]
        alpha = o.capacity == "flex-start" or not o.slice.is_named_by_type
        return [
            *_gcloud(alpha, "queued-resources", "create", o.name),
            *self._place(),
            *kind,
            f"--runtime-version={o.runtime or o.slice.family.runtime}",
            *nodes,
            *capacity,
            *o.create_flags,
        ]

    def state(self) -> str | None:
        """Return "ACTIVE" where all machines are ready, None where there are none, else what they or one of them are.

        Raises:
          RunFailed: gcloud fails otherwise than by not finding them.
        """
        resource = self._described("queued-resources", self.options.name, "state.state")
        if resource != "ACTIVE" and not self._shell.dry_run:
            return resource
        nodes = [self._described("tpu-vm", node, "state") or "TERMINATED" for node in self.nodes]
        if self._shell.dry_run:
            return None
        return next((node for node in nodes if node in _GONE), None) or next(
            (node for node in nodes if node != "READY"), "ACTIVE"
        )

    def wait_until_active(self) -> None:
        """Wait for capacity as long as it takes; say when the state changes.

        Raises:
          RunFailed: the request failed.
        """
        seen = None
        while True:
            state = self.state()
            if state == "ACTIVE" or self._shell.dry_run:
                return
            if state != seen:
                self._say(f"{self.options.name}: {state}")
                seen = state
            if state is None or state in _GONE:
                raise RunFailed(f"{self.options.name} is {state} before it was ever active; see `vm status`")
            time.sleep(self.poll_seconds)

    def set_up(self) -> None:
        """Copy the clone to every worker and install it, in the versions that the run's first set-up installed."""
        lock = self.options.requirements or self.options.logs / f"{self.options.name}.requirements.txt"
        with tempfile.TemporaryDirectory() as scratch:
            archive = pathlib.Path(scratch) / "source.tar.gz"
            if not self._shell.dry_run:
                self._say(f"the clone: {source.pack(self.options.source, archive)}")
            files = [archive, HERE / "setup.sh", HERE / "worker.sh"]
            if lock.exists():
                files.append(lock)
            self._on_all(f"mkdir -p {_REMOTE}")
            self._copy(*files)
        locked = f" --lock {shlex.quote(lock.name)}" if lock.exists() else ""
        mounts = "".join(f" --mount {shlex.quote(mount)}" for mount in self.options.mounts)
        self._on_all(f"bash {_REMOTE}/setup.sh{locked}{mounts}")
        if not locked:
            self._keep_versions(lock)
        if not self._shell.dry_run:
            self._say(f"set up on {self.num_workers} workers, versions as in {lock}")

    def _keep_versions(self, lock: pathlib.Path) -> None:
        """Write down what the first worker installed, so that whatever is set up later for this run installs the same.

        Raises:
          RunFailed: the worker does not say.
        """
        node, remote = self.nodes[0], f"bash {_REMOTE}/setup.sh --versions"
        out = self._shell.run(self._ssh(node, remote, worker="0"), quiet=True)
        versions = [line for line in out.splitlines() if line.startswith("# Python ") or "==" in line]
        if self._shell.dry_run:
            return
        if not versions:
            raise RunFailed(f"{node} does not say which versions it has installed; run `vm create` again")
        lock.parent.mkdir(parents=True, exist_ok=True)
        partial = lock.with_name(lock.name + ".partial")
        partial.write_text("\n".join(versions) + "\n")
        partial.replace(lock)

    # The run.

    def running(self) -> bool:
        """Return whether any worker is at this run already."""
        if self._shell.dry_run or self.state() != "ACTIVE":
            return False
        return any(found[1] == "running" for found in self._ask())

    def start(self, attempt: int) -> None:
        """Start the same line on every worker, with a secret of this attempt alone.

        It goes as a file: gcloud gives all workers' connections one standard input, of which one of them gets all.
        """
        with tempfile.TemporaryDirectory() as scratch:
            file = pathlib.Path(scratch) / "secret"
            if not self._shell.dry_run:
                secret.environment(file.parent)
            self._copy(file, to=f"{self.options.run}.secret")
        told = "".join(f"{name}={shlex.quote(value)} " for name, value in self.options.environment.items())
        self._on_all(f"{told}bash {_REMOTE}/worker.sh start {self.options.run} {shlex.join(self.command)}")
        self._unreachable = 0

    def states(self) -> Sequence[WorkerState]:
        """Return every worker's state; of machines that are gone, one that ended as if killed.

        Raises:
          RunFailed: workers cannot be reached though their machines are said to be well.
        """
        found = self._ask()
        states = [
            WorkerState(
                name, None if what == "running" else int(status or KILLED), float(when or time.time()), said=said
            )
            for name, what, status, when, said in found
        ]
        if len(found) >= self.num_workers:
            self._unreachable = 0
            return states
        if (state := self.state()) != "ACTIVE":
            # Whatever the other workers say is a consequence.
            return [WorkerState(self.options.name, KILLED, 0.0, f"its machines are {state or 'gone'}")]
        self._unreachable += 1
        if self._unreachable >= _UNREACHABLE_POLLS:
            missing = self.num_workers - len(found)
            raise RunFailed(f"{missing} of {self.num_workers} workers cannot be reached; see `vm status` and `vm logs`")
        return [WorkerState("workers that answer late"), *(state for state in states if state.status is None)]

    def stop(self, number: int) -> None:
        """Send a signal to every worker's command; it has the grace time to save before it is killed."""
        name = signal.Signals(number).name.removeprefix("SIG")
        grace = f"{self.options.grace:g}"
        self._on_all(f"bash {_REMOTE}/worker.sh stop {self.options.run} {name} {grace}", may_fail=True)

    def gather(self, attempt: int) -> str:
        """Fetch every worker's log into one file each: LOGS/NODE/WORKER.log."""
        for node in self.nodes:
            folder = self.options.logs / node
            if self._shell.dry_run:
                self._shell.run(["mkdir", "-p", str(folder)])
            else:
                folder.mkdir(parents=True, exist_ok=True)
            command = self._ssh(node, f"bash {_REMOTE}/worker.sh log {self.options.run}")
            self._shell.attempt([*command, f"--output-directory={folder}"])
        return str(self.options.logs)

    def status(self) -> list[str]:
        """Return lines for people: the resource's state and every worker's."""
        state = self.state()
        lines = [f"{self.options.name}: {state or 'there is no such queued resource'}"]
        if state != "ACTIVE" and not self._shell.dry_run:
            return lines
        return lines + [" ".join(part for part in found if part) for found in self._ask()]

    def delete(self) -> None:
        """Give the machines back. Buckets and disks are left alone."""
        command = [*_gcloud(False, "queued-resources", "delete", self.options.name), *self._place()]
        self._shell.run([*command, "--force", "--quiet"], quiet=True)

    # gcloud.

    def _place(self) -> list[str]:
        return [f"--project={self.options.project}", f"--zone={self.options.zone}"]

    def _described(self, kind: str, name: str, field: str) -> str | None:
        """Return one field of a resource, None where there is no such resource."""
        command = [*_gcloud(False, kind, "describe", name), *self._place(), f"--format=value({field})"]
        status, out, err = self._shell.attempt(command)
        if status and "not_found" not in err.lower() and "not found" not in err.lower():
            raise RunFailed(f"gcloud cannot describe {name}: {_last_line(err)}")
        return out.strip() or None if not status else None

    def _tpu_vm(self, verb: str, *words: str, worker: str = "all") -> list[str]:
        """Return a command of ssh or scp: of the alpha track where it is to go through IAP or in batches."""
        flags = self.options.ssh_flags
        alpha = any(flag.startswith(("--tunnel-through-iap", "--batch-size")) for flag in flags)
        return [*_gcloud(alpha, "tpu-vm", verb), *words, *self._place(), f"--worker={worker}", *flags]

    def _ssh(self, node: str, remote: str, worker: str = "all") -> list[str]:
        return [*self._tpu_vm("ssh", node, worker=worker), f"--command={remote}"]

    def _copy(self, *files: pathlib.Path, to: str = "") -> None:
        for node in self.nodes:
            self._shell.run(self._tpu_vm("scp", *map(str, files), f"{node}:{_REMOTE}/{to}"), quiet=True)

    def _on_all(self, remote: str, may_fail: bool = False) -> None:
        for node in self.nodes:
            if may_fail:
                self._shell.attempt(self._ssh(node, remote))
            else:
                self._shell.run(self._ssh(node, remote), quiet=True)

    def _ask(self) -> list[tuple[str, str, str, str, str]]:
        """Return (worker, what, status, when, last line of its log) of every worker that answers."""
        found = []
        for node in self.nodes:
            _, out, _ = self._shell.attempt(self._ssh(node, f"bash {_REMOTE}/worker.sh status {self.options.run}"))
            found += _LINE.findall(out)
        return found


def _gcloud(alpha: bool, *words: str) -> list[str]:
    """Return a gcloud command on TPUs; the beta track has none of them."""
    return ["gcloud", *(["alpha"] if alpha else []), "compute", "tpus", *words]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it says nothing"
