"""The sandbox: honest programs pass, no other does, nothing is harmed and nothing is left."""

import dataclasses
import os
import pathlib
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from stagjax.errors import RunFailed, UserError
from stagjax.evaluation import sandbox, sandbox_jail
from tests.evaluation import programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

# Time that no program here needs, on whatever machine: those that have no end have runs of their own.
LIMITS = sandbox.Limits(
    wall_seconds=600,
    cpu_seconds=60,
    memory_bytes=256 << 20,
    processes=6,
    file_bytes=1 << 20,
    disk_bytes=4 << 20,
    open_files=32,
    output_bytes=1 << 16,
)
ROOT = pathlib.Path(__file__).parent.parent.parent
OTHERS = programs.CHEATS | programs.HARMS | programs.FILLS
TOLD = {
    "renames": "import os\nos.mkdir('0')\nfor n in range(1200):\n    os.rename(str(n), str(n + 1))",
    "unequal": "print('so far')\nassert 1 == 2, 'unequal\\x1b[2J'",
    "undefined": "x = 1\ny = undefined",
    "set": "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))",
}
PASSED = str([False, *[True] * 5])
CONTAINER = (
    "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod setfcap"
)


class Machine:
    """One isolation, and what it may not leave: processes and files of its users, files in its directory."""

    def __init__(self, isolation, directory):
        self.isolation = isolation
        self.directory = directory
        self.users = []

    def run(self, texts, limits=LIMITS, **arguments):
        return sandbox.run_programs(texts, limits, workers=2, isolation=self.isolation, **arguments)

    def left(self):
        """Return all processes and files that are left."""
        places = [pathlib.Path(place) for place in ("/proc", "/tmp", "/var/tmp", "/dev/shm")]
        others = [entry for place in places if place.is_dir() for entry in place.iterdir()]
        return [entry for entry in others if owner(entry) in self.users] + list(self.directory.iterdir())


def owner(path):
    try:
        return path.lstat().st_uid
    except OSError:
        return None


@pytest.fixture(scope="module", params=["namespaces", "uid"] if os.geteuid() == 0 else ["user namespaces"])
def machine(request, tmp_path_factory):
    """Yield every isolation that works for this user on this machine."""
    mode = request.param
    try:
        sandbox._probe(mode)
    except sandbox._Unavailable as error:
        ours = re.search("too far|(Syntax|Name|Type|Attribute|Import|Value)Error", str(error))
        assert not ours, f"not the machine's lack but the sandbox's fault: {error}"
        pytest.skip(f"{mode}: {error}")
    machine = Machine(sandbox.Isolation(mode, ""), tmp_path_factory.mktemp("temporary"))
    choose = sandbox._unused_users

    def remember(workers):
        users = choose(workers)
        machine.users += [user for numbers in users for user in numbers[:2]]
        return users

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "_unused_users", remember)
        patch.setattr(tempfile, "tempdir", str(machine.directory))
        patch.setenv("STAGJAX_SECRET", "nobody's business")
        yield machine


@pytest.fixture(scope="module")
def outcomes(machine, tmp_path_factory):
    """Return the outcome of every program that ends, run together: what one does must not show in another.

    Meanwhile this process has more files open than a program may have, none of which may be inherited.
    """
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_text("nobody's business")
    secret.parent.chmod(0o755)
    mounts, done = pathlib.Path("/proc/mounts").read_text(), []
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1400
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1200 if room else 0)]
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0)
            others = {name: text for name, (text, _) in OTHERS.items()}
            texts = {"counts_processes": programs.COUNTS_PROCESSES} | others | programs.HONEST | programs.FORBIDDEN
            texts |= TOLD | {f"number {n}": f"print({n})\nassert {n} % 2" for n in range(6)}
            told = {"SECRET": str(secret), "PORT": str(listener.getsockname()[1]), "OUTSIDE": str(os.getpid())}
            for name, value in told.items():
                texts = {key: text.replace(name, value) for key, text in texts.items()}
            outcomes = dict(zip(texts, machine.run(list(texts.values()), on_progress=done.append), strict=True))
            with pytest.raises(BlockingIOError):
                listener.accept()
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert done == list(range(1, len(texts) + 1))
    assert machine.left() == []
    assert pathlib.Path("/proc/mounts").read_text() == mounts
    return outcomes


@pytest.fixture(scope="module")
def busy(machine, outcomes):
    """Return the outcome of every program that uses a processor without end, and of honest ones after them."""
    assert int(outcomes["counts_processes"].output) < 10, "nothing would hold a bomb back"
    texts = programs.BUSY | {name: text for name, (text, _) in programs.UNRULY.items()}
    texts |= {"afterwards": programs.HONEST["benchmark"], "set": TOLD["set"]}
    limits = dataclasses.replace(LIMITS, cpu_seconds=1, processes=2)
    outcomes = dict(zip(texts, machine.run(list(texts.values()), limits), strict=True))
    assert machine.left() == []
    return outcomes


@pytest.mark.parametrize("name", programs.HONEST)
def test_honest_programs_pass(outcomes, name):
    assert outcomes[name].passed, outcomes[name]
    assert outcomes[name].reason == "passed"


@pytest.mark.parametrize("name", OTHERS)
def test_others_do_not_pass(outcomes, name):
    outcome, reasons = outcomes[name], OTHERS[name][1]
    assert not outcome.passed
    assert outcome.reason in reasons.split(), outcome
    assert outcome.detail.isprintable()
    assert len(outcome.output) <= 10_000


@pytest.mark.parametrize("name", programs.FORBIDDEN)
def test_what_is_forbidden_fails(outcomes, name):
    assert outcomes[name].passed, outcomes[name]


def test_files_and_disk_have_limits_of_their_own(machine, outcomes):
    assert outcomes["large_file"].detail == "OSError: [Errno 27] File too large"
    for name in ("many_files", "empty_files"):
        assert outcomes[name].detail.startswith("OSError: [Errno 28] No space left on device"), outcomes[name]
    assert outcomes["lives_with_a_full_disk"].output == "No space left on device\n"
    # Moving names from one directory to another makes both as large; in memory they take nothing.
    assert outcomes["renames"].passed == (machine.isolation.mode != "uid"), outcomes["renames"]


@pytest.mark.parametrize("name", programs.FILLS)
def test_no_program_holds_more_disk_than_it_may(outcomes, name):
    """Whether or not a name leads to what it holds; some of it, else this would say nothing."""
    took = [int(number) for number in re.findall(r"took (\d+)", outcomes[name].output)]
    assert 0 < max(took, default="output" in name and 1) <= LIMITS.disk_bytes


def test_processes_are_counted(outcomes):
    assert outcomes["counts_processes"].passed
    # Sleeping copies count, and the program itself.
    assert int(outcomes["counts_processes"].output) == LIMITS.processes - 1


@pytest.mark.parametrize("name", programs.BUSY)
def test_busy_programs_are_stopped_by_their_own_time(busy, name):
    """Not by the time of the wall, within which a busy machine gives more or less."""
    assert busy[name][:3] == (False, "time", "1 s of CPU time")


@pytest.mark.parametrize("name", programs.UNRULY)
def test_unruly_programs_end(busy, name):
    assert not busy[name].passed and busy[name].reason in programs.UNRULY[name][1].split(), busy[name]


def test_programs_pass_after_busy_ones(busy):
    assert busy["afterwards"].passed


def test_idle_programs_are_stopped_by_the_time_of_the_wall(machine):
    outcomes = machine.run(list(programs.IDLE.values()), dataclasses.replace(LIMITS, wall_seconds=0.2))
    assert {outcome[:3] for outcome in outcomes} == {(False, "time", "0.2 s of wall time")}
    assert all(0.2 <= outcome.seconds < 600 for outcome in outcomes)
    assert machine.left() == []


def test_what_failed_is_told(outcomes):
    unequal, undefined = outcomes["unequal"], outcomes["undefined"]
    assert unequal[:3] == (False, "exception", "AssertionError: unequal [2J") and unequal.output == "so far\n"
    assert undefined.detail == "NameError: name 'undefined' is not defined"


def test_results_are_those_of_the_programs(machine, outcomes):
    """Whoever runs what."""
    told = [outcomes[f"number {n}"] for n in range(6)]
    assert [(outcome.passed, outcome.output) for outcome in told] == [(n % 2 == 1, f"{n}\n") for n in range(6)]
    assert machine.run([]) == []


def test_sets_have_one_order(outcomes, busy):
    """A program whose result depends on the order of a set has the same result whenever it is run."""
    assert outcomes["set"].output == busy["set"].output != ""


def test_interrupted_leaves_nothing(machine):
    """And ends what runs, which has no end of its own."""

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.run(["", "import time\ntime.sleep(1000)"], on_progress=interrupt)
    assert machine.left() == []


def test_killed_leaves_nothing(machine):
    """Nobody is left to clean up: the servers notice that nobody waits for them."""
    code = (
        "from stagjax.evaluation import sandbox\nchoose = sandbox._unused_users\n"
        "def tell(workers):\n    users = choose(workers)\n    print(users[0][0], flush=True)\n"
        "    return users\n"
        "sandbox._unused_users = tell\n"
        "texts, limits = ['', 'import time; time.sleep(1000)'], sandbox.Limits(600, 600)\n"
        f"isolation = sandbox.Isolation({machine.isolation.mode!r}, '')\n"
        "sandbox.run_programs(texts, limits, lambda _: print('one', flush=True), 1, isolation)\n"
    )
    environment = os.environ | {"TMPDIR": str(machine.directory)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(1 if machine.isolation.mode == "user namespaces" else 2)]
        assert lines[-1] == "one\n", lines
        process.kill()
    machine.users += [int(line) for line in lines[:-1]]
    deadline = time.monotonic() + 600  # as long as the program would go on
    while machine.left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert machine.left() == []


def test_broken_sandbox_is_no_result(machine, monkeypatch):
    """What the sandbox could not do must not count against a program."""
    with pytest.raises(RunFailed, match="the sandbox failed at program 0: OverflowError"):
        machine.run([""], sandbox.Limits(memory_bytes=1 << 64))
    monkeypatch.setattr(sandbox, "_CHILD", "raise OSError('no such thing'); ")
    with pytest.raises(RunFailed, match="does not start: OSError: no such thing"):
        machine.run([""])


def test_limits_are_checked():
    with pytest.raises(UserError, match=r"limits.wall_seconds=0 is not above 0; the default is 30.0"):
        sandbox.Limits(wall_seconds=0)
    with pytest.raises(UserError, match=r"limits.cpu_seconds=1.5 is not a whole number above 0; the default is 3"):
        sandbox.Limits(cpu_seconds=1.5)


def test_removes_directories_deeper_than_paths_are_long(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(tmp_path)
    (top / "wide").mkdir()
    (top / "wide" / "file").write_text("x")
    code = (
        "import os\nfor _ in range(1200):\n    os.mkdir('deeper')\n    os.chdir('deeper')\n    open('f', 'w').close()"
    )
    subprocess.run([sys.executable, "-S", "-c", code], cwd=top, check=True)
    sandbox_jail.remove(str(top))
    assert os.listdir(tmp_path) == []


def test_refuses_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="on Linux only, not on darwin"):
        sandbox.find_isolation.__wrapped__()


def test_refuses_without_isolation(monkeypatch):
    def fail(mode):
        raise sandbox._Unavailable(f"no {mode} today")

    monkeypatch.setattr(sandbox, "_probe", fail)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match=r"\(namespaces: no namespaces today; uid: no uid today\); allow the container"):
        sandbox.find_isolation.__wrapped__()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(
        UserError, match=r"user namespaces: no user namespaces today\); run as root, or allow user name"
    ):
        sandbox.find_isolation.__wrapped__()


def test_a_probe_that_comes_too_far_is_no_isolation(monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("not root")
    monkeypatch.setattr(sandbox, "_PROBE", "assert not 'the files of others'")
    with pytest.raises(sandbox._Unavailable, match="came too far"):
        sandbox._probe("uid")


def find_isolation(*prefix):
    """Return what another process, begun by a command, finds: its isolation and what passes in it, or the error."""
    forbidden = [programs.FORBIDDEN[name] for name in ("write_root", "write_library", "become_root", "call_unshare")]
    texts = ["assert False", "import os; os.fork(); os.fork()", *forbidden]
    code = (
        "from stagjax.evaluation import sandbox\nfrom stagjax.errors import UserError\n"
        "try:\n    print(sandbox.find_isolation().mode)\n"
        f"    print([outcome.passed for outcome in sandbox.run_programs({texts!r})])\n"
        "except UserError as error:\n    print(error)\n"
    )
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip(f"{prefix[0]} is not installed")
    python = [sys.executable, "-c", code]
    done = subprocess.run(
        [*prefix, *python],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if not done.stdout:
        pytest.skip(f"cannot be tried here: {done.stderr.strip()[-200:]}")
    return done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_another_user_alone_in_a_container():
    """With the privileges that a container has by default: no namespaces."""
    capabilities = ",".join(["-all", *(f"+{name}" for name in CONTAINER.split())])
    assert find_isolation("setpriv", f"--bounding-set={capabilities}") == ["uid", PASSED]


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_refuses_where_there_are_no_other_users():
    (text,) = find_isolation("unshare", "--user", "--map-root-user")
    assert "uid: " in text and "this user namespace has no users to spare" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
@pytest.mark.parametrize("allowed", [True, False])
def test_another_user_in_user_namespaces(allowed):
    """As somebody who is not root, for whom Python is mounted where only root could read it.

    The kernel refuses user namespaces to whoever's root directory is not that of the mounts.
    """
    base = pathlib.Path(sys.base_prefix)
    script = f"""
        set -e
        mount -t tmpfs none /mnt; mkdir /mnt/python; mount --bind {base} /mnt/python
        if [ {base.parts[1]} = root ]; then
            mount -t tmpfs -o mode=755 none /root; mkdir -p {base}; mount --move /mnt/python {base}
        fi
        become="setpriv --reuid 61234 --regid 61234 --clear-groups"
        {"" if allowed else 'mkdir /mnt/root; mount --rbind / /mnt/root; become="chroot /mnt/root $become"'}
        exec $become "$@"
    """
    said = find_isolation("unshare", "--mount", "bash", "-c", script, "bash")
    if allowed:
        assert said == ["user namespaces", PASSED]
    else:
        assert "unshare: Operation not permitted" in said[0] and "run as root, or allow user namespaces" in said[0]
