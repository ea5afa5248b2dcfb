"""The sandbox: honest programs pass, no other does, nothing is harmed and nothing is left."""

import os
import pathlib
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

LIMITS = sandbox.Limits(
    wall_seconds=10,
    cpu_seconds=1,
    memory_bytes=256 << 20,
    processes=6,
    file_bytes=1 << 20,
    disk_bytes=4 << 20,
    open_files=32,
    output_bytes=1 << 16,
)
ROOT = pathlib.Path(__file__).parent.parent.parent
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
        assert "too far" not in str(error), "not the machine's lack but the sandbox's fault"
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
    """Return the outcome of every program, run together: what one does must not show in another."""
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_text("nobody's business")
    secret.parent.chmod(0o755)
    mounts, began = pathlib.Path("/proc/mounts").read_text(), time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        harms = {name: text for name, (text, _) in (programs.CHEATS | programs.HARMS).items()}
        texts = {"counts_processes": programs.COUNTS_PROCESSES} | harms | programs.HONEST | programs.FORBIDDEN
        told = {"SECRET": str(secret), "PORT": str(port), "OUTSIDE": str(os.getpid())}
        for name, value in told.items():
            texts = {key: text.replace(name, value) for key, text in texts.items()}
        outcomes = dict(zip(texts, machine.run(list(texts.values())), strict=True))
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert time.monotonic() - began < 120
    assert machine.left() == []
    assert pathlib.Path("/proc/mounts").read_text() == mounts
    return outcomes


@pytest.mark.parametrize("name", programs.HONEST)
def test_honest_programs_pass(outcomes, name):
    assert outcomes[name].passed, outcomes[name]
    assert outcomes[name].reason == "passed" and outcomes[name].seconds < 2


@pytest.mark.parametrize("name", programs.CHEATS | programs.HARMS)
def test_others_do_not_pass(outcomes, name):
    outcome, reasons = outcomes[name], (programs.CHEATS | programs.HARMS)[name][1]
    assert not outcome.passed
    assert outcome.reason in reasons.split(), outcome
    assert outcome.detail.isprintable()
    assert outcome.seconds < LIMITS.wall_seconds + 3 and len(outcome.output) <= 10_000


@pytest.mark.parametrize("name", programs.FORBIDDEN)
def test_what_is_forbidden_fails(outcomes, name):
    assert outcomes[name].passed, outcomes[name]


def test_files_and_disk_have_limits_of_their_own(outcomes):
    assert outcomes["large_file"].detail == "OSError: [Errno 27] File too large"
    assert outcomes["many_files"].detail in (
        "OSError: [Errno 28] No space left on device",
        "more than 4194304 bytes or 1024 files written",
    )


def test_processes_are_counted(outcomes):
    assert outcomes["counts_processes"].passed
    # Sleeping copies count, and the program itself.
    assert int(outcomes["counts_processes"].output) == LIMITS.processes - 1


def test_busy_programs_are_stopped_by_their_own_time(machine):
    """Not by the time of the wall, within which a busy machine gives more or less."""
    for outcome in machine.run(list(programs.BUSY.values()), sandbox.Limits(wall_seconds=100, cpu_seconds=1)):
        assert outcome[:3] == (False, "time", "1 s of CPU time"), outcome


def test_bombs_end(machine, outcomes):
    assert int(outcomes["counts_processes"].output) < 10, "nothing would hold a bomb back"
    bombs = [text for text, _ in programs.BOMBS.values()]
    results = machine.run([*bombs, programs.HONEST["benchmark"]])
    for outcome, (_, reasons) in zip(results, programs.BOMBS.values(), strict=False):
        assert not outcome.passed and outcome.reason in reasons.split(), outcome
        assert outcome.seconds < LIMITS.wall_seconds + 3
    assert results[-1].passed
    assert machine.left() == []


def test_what_failed_is_told(machine):
    texts = ["print('so far')\nassert 1 == 2, 'unequal\\x1b[2J'", "x = 1\ny = undefined", "import time\ntime.sleep(9)"]
    unequal, undefined, slow = machine.run(texts, sandbox.Limits(wall_seconds=0.5))
    assert unequal[:3] == (False, "exception", "AssertionError: unequal [2J") and unequal.output == "so far\n"
    assert undefined.detail == "NameError: name 'undefined' is not defined"
    assert slow[:3] == (False, "time", "0.5 s of wall time")


def test_results_are_those_of_the_programs(machine):
    """Whoever runs what, and however long it takes."""
    done = []
    texts = [f"import time\ntime.sleep({0.2 * (n % 3)})\nassert {n} % 2" for n in range(12)]
    outcomes = machine.run(texts, on_progress=done.append)
    assert [outcome.passed for outcome in outcomes] == [bool(n % 2) for n in range(12)]
    assert done == list(range(1, 13))
    assert machine.run([]) == []


def test_sets_have_one_order(machine):
    """A program whose result depends on the order of a set has the same result whenever it is run."""
    first, second = (machine.run(["print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"])[0].output for _ in range(2))
    assert first == second != ""


def test_no_descriptor_is_inherited_however_many_are_open(machine):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1400:
        pytest.skip("this process may not open so many files")
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1200)]
    try:
        (outcome,) = machine.run([programs.HONEST["surroundings"]])
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert outcome.passed, outcome


def test_interrupted_leaves_nothing(machine):
    def interrupt(_):
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        machine.run(
            ["", "while True:\n    pass"], sandbox.Limits(wall_seconds=100, cpu_seconds=100), on_progress=interrupt
        )
    assert time.monotonic() - began < 20
    assert machine.left() == []


def test_killed_leaves_nothing(machine):
    """Nobody is left to clean up: the servers notice that nobody waits for them."""
    code = (
        "from stagjax.evaluation import sandbox\nchoose = sandbox._unused_users\n"
        "def tell(workers):\n    users = choose(workers)\n    print(users[0][0], flush=True)\n"
        "    return users\n"
        "sandbox._unused_users = tell\n"
        "texts, limits = ['', 'while True: pass'], sandbox.Limits(100, 100)\n"
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
    deadline = time.monotonic() + 20
    while machine.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert machine.left() == []


def test_broken_sandbox_is_no_result(machine, monkeypatch):
    """What the sandbox could not do must not count against a program."""
    with pytest.raises(RunFailed, match="the sandbox failed at program 0: OverflowError"):
        machine.run([""], sandbox.Limits(memory_bytes=1 << 64))
    monkeypatch.setattr(sandbox, "_CHILD", "raise OSError('no such thing'); ")
    with pytest.raises(RunFailed, match="does not start: OSError: no such thing"):
        machine.run([""])


def test_limits_are_checked():
    with pytest.raises(UserError, match=r"limits.wall_seconds=0 is not above 0; the default is 10.0"):
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
    assert sandbox_jail.holds_more(str(top), 1 << 40, 1 << 40), "a path too long to look at is too much"
    sandbox_jail.remove(str(top))
    assert os.listdir(tmp_path) == []


def test_counts_what_a_directory_holds(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"x" * 100_000)
    assert not sandbox_jail.holds_more(str(tmp_path), 200_000, 2)
    assert sandbox_jail.holds_more(str(tmp_path), 50_000, 2)
    assert sandbox_jail.holds_more(str(tmp_path), 200_000, 1)


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
        timeout=60,
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
