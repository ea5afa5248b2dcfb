"""A process of a run without JAX: joins, says what it hears, and does as it is told, for tests of `stagjax.hosts`.

python -m tests.hosts.member PROCESS_ID NUM_PROCESSES HOST:PORT TIMEOUT SILENCE FACTS ACTION
"""

import functools
import json
import sys
import time

from stagjax.errors import UserError
from stagjax.hosts.joining import join
from stagjax.hosts.place import Place


def main(process: str, count: str, coordinator: str, timeout: str, silence: str, facts: str, action: str) -> int:
    """Join, then act; the exit status is that of the command line."""
    say = lambda *words: print(*words, flush=True)
    link = None
    try:
        place = Place(int(process), int(count), coordinator)
        link = join(place, json.loads(facts), float(timeout), report=say, silence=float(silence))
        link.last_words = lambda: "the last good checkpoint is 7"
        say("joined", *link.hosts)
        ACTIONS[action](link, say)
    except UserError as error:
        complain = functools.partial(print, f"stagjax: {error}", file=sys.stderr)
        if link is None:
            complain()
        else:
            link.fail(2, str(error), complain)
        return 2
    link.part()
    return 0


def gather(link, say):
    """Exchange values twice."""
    say(link.gather("first", link.place.process_id * 10))
    say(link.gather("second", {"of": link.place.process_id}))


def differ(link, say):
    """Give what differs on process 1."""
    link.agree("their data", {"same": "1", "hash": str(link.place.process_id == 1)})


def steps(link, say):
    """Step at a pace of its own until all stop; a line of standard input is the signal of SIGTERM's number."""
    asked, done = None, 0
    if link.place.process_id == 1:
        time.sleep(0.3)
        asked = 15
    while not (signal := link.stop_here(asked if done >= 2 else None)):
        done += 1
        time.sleep(0.03 * (1 + link.place.process_id))
    say("stopped", done, signal)


def fail(link, say):
    """Fail on process 1, with a status of its own, while the others wait."""
    if link.place.process_id == 1:
        link.fail(3, "disk full; the last good checkpoint is 6", lambda: print("stagjax: disk full", file=sys.stderr))
    link.gather("never", None)


def wait(link, say):
    """Wait for what never comes."""
    time.sleep(60)


def chatter(link, say):
    """Write to standard error all the time, as a main thread may that runs into errors of its own."""
    while True:
        print("what follows from it", file=sys.stderr, flush=True)
        time.sleep(0.002)


def break_hub(link, say):
    """Let what joins the processes fail in process 0."""
    if link.place.process_id == 0:
        link._hub._hear = None  # whatever this process says from here on is heard later
    link.gather("never", None)


def leave_early(link, say):
    """Part at different times; nobody is lost by it."""
    time.sleep(0.5 * link.place.process_id)


ACTIONS = {action.__name__: action for action in (gather, differ, steps, fail, wait, chatter, break_hub, leave_early)}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
