#!/usr/bin/env bash
# jax.distributed of jax 0.10.2: `heartbeat_timeout_seconds` is not how long a process may be silent. A process gives a
# sign of life every half of it, and is lost when the last sign is as old as the whole: one that stops (SIGSTOP, a
# machine that is suspended) is given up after anything between half of the timeout and all of it, by when it stopped.
# A watchdog of one's own that is to speak first has half of the timeout, 50 s by default. Measured with 20 s, a process
# stopped 8.5 s after it has connected, and one 11 s after that: the other one ends, by SIGABRT, about 12 and 20 s later.
# Exits with 1 where the first of the two is given the 20 s, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/member.py" <<'PYTHON'
import sys
import time

import jax

jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[1]), heartbeat_timeout_seconds=20)
print("connected", flush=True)
time.sleep(300)
PYTHON
cat > "$folder/try.py" <<'PYTHON'
import pathlib
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax

member = pathlib.Path(__file__).with_name("member.py")


def survived(seconds):
    """Return how long the first of two processes goes on after the second has stopped, and its exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, member, str(index), place], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for index in range(2)
    ]
    try:
        for process in processes:
            process.stdout.readline()
        time.sleep(seconds)
        processes[1].send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        return processes[0].wait(60), time.monotonic() - begun
    finally:
        for process in processes:
            process.kill()


print(f"jax {jax.__version__}, heartbeat_timeout_seconds=20")
stops = (8.5, 11.0)
with ThreadPoolExecutor() as pool:
    ends = list(pool.map(survived, stops))
for stop, (status, after) in zip(stops, ends):
    print(f"  stopped {stop} s after connecting: the other ended with {status} after {after:.1f} s")
sys.exit(not (ends[0][1] < 16 < ends[1][1]))
PYTHON
python3 -m venv "$folder/venv"
export JAX_PLATFORMS=cpu
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 jax==0.10.2
"$folder/venv/bin/python" "$folder/try.py"
