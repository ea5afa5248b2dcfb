"""A gcloud of one queued resource whose workers are directories: `ssh` runs what it is given there, really.

CLOUD is its directory: `state` (of the queued resource), `node` (of the TPU VM), `workers` (how many), `unreachable`
(their indices), `calls` (a line of JSON each).
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

SET_UP = """#!/bin/bash
if [[ $1 == --versions ]]; then printf '# Python 3.12\\njax==0.12.0\\n'; else echo set up >> $HOME/set-up; fi
"""

CLOUD = pathlib.Path(os.environ["CLOUD"])


def flag(name, default=None):
    return next((word.partition("=")[2] for word in sys.argv if word.startswith(f"--{name}=")), default)


def read(name):
    file = CLOUD / name
    return file.read_text().strip() if file.exists() else None


def workers():
    for index in range(int(read("workers"))):
        home = CLOUD / f"worker-{index}"
        home.mkdir(exist_ok=True)
        yield index, home


def ssh():
    if read("node") != "READY":
        return 255
    unreachable = (read("unreachable") or "").split()
    folder = flag("output-directory")
    found = []
    for index, home in workers():
        if flag("worker") not in ("all", str(index)):
            continue
        if str(index) in unreachable:
            found.append((index, None))
            continue
        environment = os.environ | {"HOME": str(home), "USER": "user", "WORKER": str(index)}
        found.append(
            (
                index,
                subprocess.Popen(
                    ["bash", "-c", flag("command")],
                    cwd=home,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                ),
            )
        )
    worst = 0
    for index, process in found:
        if process is None:
            worst = 255
            continue
        out, _ = process.communicate()
        sys.stdout.write(out)
        if folder:
            (pathlib.Path(folder) / f"{index}.log").write_text(out)
        worst = worst or process.returncode
    return worst


def scp(words):
    *sources, target = [word for word in words if not word.startswith("--")]
    for _, home in workers():
        for source in sources:
            place = home / target.partition(":")[2]
            place = place / pathlib.Path(source).name if place.is_dir() else place
            shutil.copy(source, place)  # with its mode, as scp does
            if place.name == "setup.sh":
                # What a VM needs from the internet is left out.
                place.write_text(SET_UP)
    return 0


def main():
    with (CLOUD / "calls").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    group, verb, *words = sys.argv[3:]
    if verb == "describe":
        state = read("state" if group == "queued-resources" else "node")
        if state is None:
            sys.exit("ERROR: (gcloud) NOT_FOUND: there is no such resource")
        print(state)
        return 0
    if verb == "create":
        (CLOUD / "state").write_text("ACTIVE")
        (CLOUD / "node").write_text("READY")
        return 0
    if verb == "delete":
        (CLOUD / "state").unlink()
        (CLOUD / "node").unlink()
        return 0
    return {"ssh": ssh, "scp": lambda: scp(words)}[verb]()


sys.exit(main())
