#!/usr/bin/env python3
"""Instructions and allocations that one request costs a worker, counted by callgrind over the running gateway.

    cargo build --profile profiling --bin doorward
    benches/instructions/request.py [--browser] [--functions N]

Needs valgrind and wrk, and what benches/side-by-side needs for its upstream. The build has no link-time optimisation, so
the counts are higher than the release program's; they are for comparing one commit with another.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches/side-by-side"))

import load  # noqa: E402
import servers  # noqa: E402

PROGRAM = ROOT / "target/profiling/doorward"


def own_costs(profile):
    """Instructions of each function itself, and how often each was called, from callgrind's file."""
    names, costs, calls = {}, collections.Counter(), collections.Counter()
    function = called = None

    def name_of(text):
        number, _, name = text.partition(") ")
        if name:
            names[number] = name
        return names.get(number.rstrip(")"), names.get(number, "?"))

    pending = None
    for line in profile.read_text(errors="replace").splitlines():
        if line.startswith("fn="):
            function = name_of(line[3:])
        elif line.startswith("cfn="):
            called = name_of(line[4:])
        elif line.startswith("calls="):
            pending = int(line[6:].split()[0])
        elif line and (line[0].isdigit() or line[0] in "+-*"):
            fields = line.split()
            if pending is not None:
                calls[called] += pending
                pending = None
            elif len(fields) >= 2:
                costs[function] += int(fields[-1])
    return costs, calls


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--browser", action="store_true", help="a browser-sized head")
    arguments.add_argument("--functions", type=int, default=25, help="how many functions are listed")
    arguments.add_argument("--program", type=pathlib.Path, default=PROGRAM)
    options = arguments.parse_args()
    if not options.program.exists():
        arguments.error(f"{options.program} is not built")
    servers.DOORWARD = options.program
    with tempfile.TemporaryDirectory(prefix="instructions-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        upstream = servers.upstream(folder)
        ready = servers.doorward(folder, upstream)
        ready.wait_until_it_answers()
        ready.stop()
        cookie = f"access_token={servers.token()}"
        headers = load.BROWSER | {"Cookie": f"{load.CRUMBS}; {cookie}"} if options.browser else {"Cookie": cookie}
        lua = load.script(folder, "count", headers=headers)
        out = folder / "callgrind"
        server = servers.Server(
            "counted",
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--separate-threads=yes", "--instr-atstart=no",
             options.program, "serve", "--config", ready.config],
            ready.port, folder / "counted.log")
        server.wait_until_it_answers(seconds=300)

        def wrk(seconds):
            done = subprocess.run(
                ["taskset", "-c", servers.OTHER_CORE, "wrk", "-t1", "-c16", f"-d{seconds}s", "--timeout", "60s", "-s", lua,
                 f"http://127.0.0.1:{server.port}"], capture_output=True, text=True, check=True)
            return json.loads(done.stderr.strip().splitlines()[-1])["requests"]

        def control(*what):
            subprocess.run(["callgrind_control", *what, str(server.process.pid)], capture_output=True, check=True)

        wrk(3)
        control("-i", "on")
        requests = wrk(8)
        time.sleep(0.3)
        control("-i", "off")
        control("-d")
        server.stop()
        upstream.stop()
        # The worker is the thread that did most.
        profiles = [own_costs(path) for path in folder.glob("callgrind.1-*")]
        costs, calls = max(profiles, key=lambda profile: sum(profile[0].values()))
    # Whichever allocator stands behind it.
    allocations = sum(count for name, count in calls.items() if re.search(r"__rust_alloc(_zeroed)?$", name or ""))
    print(f"{requests} requests: {sum(costs.values()) / requests:,.0f} instructions and "
          f"{allocations / requests:.1f} allocations each\n")
    for function, cost in costs.most_common(options.functions):
        print(f"{cost / requests:8,.0f}  {calls[function] / requests:7.2f} calls  {re.sub('<.*?>', '<…>', function)[:100]}")


if __name__ == "__main__":
    main()
