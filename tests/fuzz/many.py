"""Many cases with fresh seeds, each with a limit on time and memory: `make fuzz CASES=20000`."""

import argparse
import os
import resource
import secrets
import signal
import sys
import time
import traceback
from collections import Counter
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz.cases import run, valid
from fuzz.formats import FORMATS

SECONDS = 20  # for one case
MEMORY = 2**29  # bytes that a case may use beyond what the process has used before
BATCH = 200  # cases in one process


def work(cases: list[tuple[str, int]], pipe: Connection) -> None:
    """Run cases and tell each outcome; a process that dies or stalls has told how far it came."""
    for name in FORMATS:
        valid(name)
    pipe.send("ready")
    soft = 2 * MEMORY + int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    for name, seed in cases:
        try:
            with TemporaryDirectory(prefix="fuzz-") as folder:
                outcome = run(name, seed, Path(folder))
        except BaseException:
            outcome = traceback.format_exc()
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (now - used) * 1024 > MEMORY:
            outcome = f"{(now - used) // 1024} MiB"
        used = max(used, now)
        pipe.send(outcome)


def main() -> int:
    """Run the cases, and print those that failed and how many had which outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of the first case")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    os.environ["XDG_CACHE_HOME"] = (cache := TemporaryDirectory(prefix="fuzz-")).name
    formats = options.formats
    waiting = [(formats[i % len(formats)], options.seed + i // len(formats)) for i in range(options.cases)]
    context, outcomes, failed, slowest, began = get_context("forkserver"), Counter(), 0, 0.0, time.monotonic()
    context.set_forkserver_preload(["fuzz.cases"])
    while waiting:
        batch, waiting = waiting[:BATCH], waiting[BATCH:]
        pipe, end = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(batch, end))
        process.start()
        end.close()
        pipe.recv()
        while batch:
            start = time.monotonic()
            try:
                outcome = pipe.recv() if pipe.poll(SECONDS) else f"longer than {SECONDS} s"
            except EOFError:
                process.join()
                code = -(process.exitcode or 0)
                outcome = f"died: {signal.Signals(code).name if code > 0 else process.exitcode}"
            slowest = max(slowest, time.monotonic() - start)
            (name, seed), batch = batch[0], batch[1:]
            known = outcome in ("refused", "unchanged", "changed")
            outcomes[name, outcome if known else "failed"] += 1
            if not known:
                failed += 1
                print(f"FAILED {name}, seed {seed}: {outcome}", flush=True)
                if outcome.startswith(("longer", "died")):
                    break
        process.kill()
        process.join()
        waiting = batch + waiting
    for name in formats:
        counts = ", ".join(f"{count} {kind}" for (of, kind), count in sorted(outcomes.items()) if of == name)
        print(f"{name}: {counts}")
    seconds = time.monotonic() - began
    print(f"{options.cases} cases from seed {options.seed}, {failed} failed, {seconds:.0f} s, slowest {slowest:.1f} s")
    cache.cleanup()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
