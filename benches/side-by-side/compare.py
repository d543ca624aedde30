#!/usr/bin/env python3
"""Runs the scenarios and prints the table. The figures of record are medians over interleaved rounds."""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import load
import servers
from servers import ROOT, token

# Below this share of its core a server was waiting, so its rate and its latencies say nothing about it.
BUSY_ENOUGH = 0.90
# Medians with more spread than this between rounds are marked.
WIDE = 0.10


def median(values):
    return statistics.median(values)


class Rounds:
    """All rounds of one scenario, by server."""

    def __init__(self, title, baseline, saturates=True):
        self.title, self.baseline, self.saturates = title, baseline, saturates
        self.by_server = {}

    def add(self, name, figures):
        self.by_server.setdefault(name, []).append(figures)

    def of(self, name, key):
        return median(figures[key] for figures in self.by_server[name])

    def ratio(self, name, key, to=None):
        """Median of the ratios within each round, so that a slow minute hits both sides."""
        to = to or self.baseline
        return median(ours[key] / theirs[key] for ours, theirs in zip(self.by_server[name], self.by_server[to]))

    def was_busy(self, name):
        return not self.saturates or self.of(name, "busy") >= BUSY_ENOUGH

    def table(self):
        lines = [
            f"\n### {self.title}\n",
            f"| | CPU µs/request | user | system | spread | ratio to {self.baseline} | requests/s | ratio | p50 ms | p99 ms | ratio |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, rounds in self.by_server.items():
            costs = [figures["cpu"] for figures in rounds]
            spread = f"{min(costs):.1f}–{max(costs):.1f}"
            if max(costs) / min(costs) > 1 + 2 * WIDE:
                spread += " (noisy)"
            row = [f"{self.of(name, 'cpu'):.1f}", f"{self.of(name, 'user'):.1f}", f"{self.of(name, 'system'):.1f}",
                   spread, f"{self.ratio(name, 'cpu'):.2f}"]
            if self.was_busy(name) and self.was_busy(self.baseline):
                row += [f"{self.of(name, 'rate'):,.0f}", f"{self.ratio(name, 'rate'):.2f}", f"{self.of(name, 'p50'):.2f}",
                        f"{self.of(name, 'p99'):.2f}", f"{self.ratio(name, 'p99'):.2f}"]
            else:
                row += ["not reported"] + [""] * 4
            lines.append(f"| {name} | " + " | ".join(row) + " |")
        idle = [name for name in self.by_server if not self.was_busy(name)]
        if idle:
            shares = ", ".join(f"{name} {self.of(name, 'busy'):.0%}" for name in idle)
            lines.append(f"\nThe load generator or the upstream was the bottleneck (core of the server in use: {shares}), "
                         "so rates and latencies are not reported.")
        return "\n".join(lines)


class Comparison:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.upstream = servers.upstream(folder)
        self.started = [self.upstream]
        self.goals = []
        self.results = {}
        self.field = None

    def start(self, server):
        self.started.append(server)
        server.wait_until_it_answers()
        return server

    def stop(self):
        for server in reversed(self.started):
            server.stop()

    def everybody(self):
        """The compared programs, started once and shown to do the job."""
        if self.field is None:
            self.field = {}
            makers = [servers.nginx, lambda *a: servers.nginx(*a, True), lambda *a: servers.haproxy(*a, False),
                      lambda *a: servers.haproxy(*a, True)]
            makers += [] if self.options.without_envoy else [servers.envoy]
            if self.options.before:
                makers.append(lambda *a: servers.doorward(*a, name="doorward-before", program=self.options.before))
            for make in [*makers, servers.doorward]:
                server = self.start(make(self.folder, self.upstream))
                self.field[server.name] = server
            for server in self.field.values():
                check_the_job(server)
        return self.field

    def interleave(self, scenario, title, contenders, lua, connections=64, baseline="nginx", saturates=True):
        """A B C, A B C, …: one round of each before the next round of any."""
        rounds = Rounds(title, baseline, saturates)
        for server in contenders.values():
            load.run(server, lua, connections, 1)
        for _ in range(self.options.rounds):
            for name, server in contenders.items():
                rounds.add(name, load.run(server, lua, connections, self.options.seconds))
        self.results[scenario] = rounds.by_server
        print(rounds.table(), flush=True)
        return rounds

    def goal(self, what, value, must, aim=None, at_most=True, unit=""):
        self.goals.append((what, value, must, aim, at_most, unit))

    # Scenarios, in the order in which they run.

    def get(self):
        """1 KB GET, 64 connections"""
        lua = load.script(self.folder, "get", headers={"Cookie": f"access_token={token()}"})
        rounds = self.interleave("get", "1 KB GET, 64 connections", self.everybody(), lua)
        self.goal("CPU per request to nginx without authentication", rounds.ratio("doorward", "cpu"), 1.00, 0.90)
        if rounds.was_busy("doorward") and rounds.was_busy("nginx"):
            self.goal("requests/s to nginx without authentication", rounds.ratio("doorward", "rate"), 1.00, 1.20, False)
            self.goal("p99 to nginx without authentication", rounds.ratio("doorward", "p99"), 1.00, 0.80)
        if rounds.was_busy("doorward") and rounds.was_busy("haproxy-jwt"):
            ratio = rounds.ratio("doorward", "rate", "haproxy-jwt")
            self.goal("requests/s to HAProxy jwt_verify", ratio, 1.10, 1.40, False)

    def browser(self):
        """a browser-sized head: 12 headers, 6 cookies"""
        headers = load.BROWSER | {"Cookie": f"{load.CRUMBS}; access_token={token()}"}
        lua = load.script(self.folder, "browser", headers=headers)
        rounds = self.interleave("browser", "1 KB GET with a browser-sized head, 64 connections", self.everybody(), lua)
        self.goal("browser-sized head, CPU to nginx", rounds.ratio("doorward", "cpu"), 1.05, 0.85)

    def one(self):
        """one connection"""
        lua = load.script(self.folder, "one", headers={"Cookie": f"access_token={token()}"})
        self.interleave("one", "1 KB GET, 1 connection", self.everybody(), lua, 1, saturates=False)

    def many(self):
        """256 connections"""
        lua = load.script(self.folder, "many", headers={"Cookie": f"access_token={token()}"})
        self.interleave("many", "1 KB GET, 256 connections", self.everybody(), lua, 256)

    def download(self):
        """64 KB response"""
        lua = load.script(self.folder, "download", "/64k", headers={"Cookie": f"access_token={token()}"})
        rounds = self.interleave("download", "64 KB response, 64 connections", self.everybody(), lua)
        self.goal("64 KB response, CPU to nginx", rounds.ratio("doorward", "cpu"), 1.10, 0.90)

    def post(self):
        """16 KB POST"""
        lua = load.script(self.folder, "post", "/post", "POST", {"Cookie": f"access_token={token()}"}, body=16384)
        rounds = self.interleave("post", "16 KB POST, 64 connections", self.everybody(), lua)
        self.goal("16 KB POST, CPU to nginx", rounds.ratio("doorward", "cpu"), 1.10, 0.90)

    def users(self):
        """10,000 distinct tokens"""
        tokens = [token(number) for number in range(10_000)]
        many = load.script(self.folder, "users", tokens=tokens)
        single = load.script(self.folder, "single", tokens=tokens[:1])
        contenders = {name: server for name, server in self.everybody().items() if name in ("nginx", "doorward", "haproxy-jwt")}
        self.interleave("users", "10,000 distinct tokens, 64 connections", contenders, many)
        rounds = Rounds("Doorward: 10,000 distinct tokens beside one", "one token")
        server = self.everybody()["doorward"]
        for lua in (many, single):
            load.run(server, lua, 64, 1)
        for _ in range(self.options.rounds):
            rounds.add("one token", load.run(server, single, 64, self.options.seconds))
            rounds.add("10,000 tokens", load.run(server, many, 64, self.options.seconds))
        print(rounds.table(), flush=True)
        self.goal("10,000 distinct tokens to one, CPU", rounds.ratio("10,000 tokens", "cpu"), 1.10, 1.03)

    def renewal(self):
        """every request of a burst asks for a renewal"""
        fresh = load.script(self.folder, "fresh", headers={"Cookie": f"access_token={token()}"})
        old = load.script(self.folder, "old", tokens=[token(number, left=3 * servers.DAY) for number in range(100)])
        server = self.everybody()["doorward"]
        rounds = Rounds("Doorward: tokens past their half (each answer carries a new cookie) beside fresh ones", "fresh")
        for lua in (fresh, old):
            load.run(server, lua, 64, 1)
        for _ in range(self.options.rounds):
            rounds.add("fresh", load.run(server, fresh, 64, self.options.seconds))
            rounds.add("past the half", load.run(server, old, 64, self.options.seconds))
        self.results["renewal"] = rounds.by_server
        print(rounds.table(), flush=True)

    def growth(self):
        """2,000 routes against 10; 200,000 live revocations against none"""
        lua = load.script(self.folder, "growth", headers={"Cookie": f"access_token={token()}"})
        variants = {
            "10 routes, no revocation": {"routes": 10, "revocations": 0},
            "2,000 routes": {"routes": 2000, "revocations": 0},
            "200,000 revocations": {"routes": 10, "revocations": 200_000},
        }
        contenders = {}
        for number, (name, settings) in enumerate(variants.items()):
            contenders[name] = self.start(servers.doorward(self.folder, self.upstream, f"growth-{number}", **settings))
        rounds = self.interleave("growth", "Doorward as it grows", contenders, lua, baseline="10 routes, no revocation")
        none, most = (contenders[name].memory() for name in ("10 routes, no revocation", "200,000 revocations"))
        print(f"\nMemory of the whole process: {none / 2**20:.1f} MB without revocations, {most / 2**20:.1f} MB with 200,000. What "
              "they take in the set that requests are held against is bounded by a test (auth::revocation); the rest is the store's.")
        self.goal("2,000 routes to 10, CPU", rounds.ratio("2,000 routes", "cpu"), 1.10, 1.02)
        self.goal("200,000 revocations to none, CPU", rounds.ratio("200,000 revocations", "cpu"), 1.10, 1.02)

    def workers(self):
        """two workers against one"""
        lua = load.script(self.folder, "workers", headers={"Cookie": f"access_token={token()}"})
        both = f"{servers.MEASURED_CORE},{servers.OTHER_CORE}"
        one = self.start(servers.doorward(self.folder, self.upstream, "one-worker", 1))
        two = self.start(servers.doorward(self.folder, self.upstream, "two-workers", 2, both))
        rounds = Rounds("Doorward: two workers on both cores beside one", "one worker", saturates=False)
        contenders = {"one worker": one, "two workers": two}
        for server in contenders.values():
            load.run(server, lua, 64, 1)
        for _ in range(self.options.rounds):
            for name, server in contenders.items():
                rounds.add(name, load.run(server, lua, 64, self.options.seconds))
        self.results["workers"] = rounds.by_server
        print(rounds.table(), flush=True)
        print("\nThe load generator and the upstream share the two cores, so rates can't show it: what two workers can do "
              "against one is 2 x (CPU per request of one) / (CPU per request of two).")
        self.goal("two workers against one", 2 / rounds.ratio("two workers", "cpu"), 1.7, 1.9, False)

    def logins(self):
        """logins/s against bare bcrypt"""
        lua = load.sign_in_script(self.folder)
        cores = f"{servers.MEASURED_CORE},{servers.OTHER_CORE}"
        alone = self.start(servers.doorward(self.folder, self.upstream, "logins", cores=cores))
        program = newest("bcrypt_loop")
        # As many threads as the process gives to hashing: one core less than there are, at least one.
        threads = max(1, len(os.sched_getaffinity(0)) - 1)
        ratios = []
        for _ in range(self.options.rounds):
            bare = subprocess.run(["taskset", "-c", cores, program, str(threads), "10", "5"], capture_output=True, text=True, check=True)
            figures = load.run(alone, lua, 4 * threads, 5)
            ratios.append((figures["rate"], float(bare.stdout)))
        rates = [ours / bare for ours, bare in ratios]
        print(f"\n### Logins (bcrypt cost 10, {threads} hashing thread(s))\n\n{median(r[0] for r in ratios):.1f} logins/s; bare bcrypt "
              f"{median(r[1] for r in ratios):.1f}/s; ratio {median(rates):.2f} ({min(rates):.2f}–{max(rates):.2f})", flush=True)
        self.results["logins"] = ratios
        self.goal("logins/s to bare bcrypt", median(rates), 0.95, None, False)

    def memory(self):
        """memory idle and with 10,000 idle connections"""
        print("\n### Memory (PSS)\n\n| | idle | with 10,000 idle connections | each |\n|---|--:|--:|--:|", flush=True)
        for make in [servers.nginx, lambda *a: servers.haproxy(*a, False), lambda *a: servers.doorward(*a, "memory")]:
            folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
            server = self.start(make(folder, self.upstream))
            load.answer(server, "/", token())
            time.sleep(1)
            before = server.memory()
            opened = load.idle_connections(server, min(10_000, server.most_connections))
            time.sleep(1)
            after = server.memory()
            for connection in opened:
                connection.close()
            each = (after - before) / len(opened)
            count = "" if len(opened) == 10_000 else f" ({len(opened):,})"
            print(f"| {server.name} | {before / 2**20:.1f} MB | {after / 2**20:.1f} MB{count} | {each / 1024:.1f} KB |", flush=True)
            self.results.setdefault("memory", {})[server.name] = {"idle": before, "each": each}
            if server.name == "memory":
                self.goal("resident memory idle", before / 2**20, 15, 8, unit=" MB")
                self.goal("one of 10,000 idle connections", each / 1024, 8, 4, unit=" KB")

    def start_up(self):
        """start to the first answered request, 1,000 accounts"""
        server = servers.doorward(self.folder, self.upstream, "start", accounts=1000)
        server.wait_until_it_answers("/ping")
        times = []
        for _ in range(max(5, self.options.rounds)):
            took, server = start_anew(server)
            times.append(took)
        server.stop()
        print(f"\n### Start\n\nFrom the start of the process to the first answered request, 1,000 accounts: {median(times):.0f} ms "
              f"({min(times):.0f}–{max(times):.0f})", flush=True)
        self.results["start"] = times
        self.goal("start to first answer, 1,000 accounts", median(times), 100, 30, unit=" ms")

    def accounts(self):
        """100,000 accounts against 1,000: a request, a login, a start"""
        few, many = "1,000 accounts", "100,000 accounts"
        contenders = {}
        for name, count in [(few, 1000), (many, 100_000)]:
            # A core each for the worker and for the thread that hashes.
            cores = f"{servers.MEASURED_CORE},{servers.OTHER_CORE}"
            server = servers.doorward(self.folder, self.upstream, f"accounts-{count}", cores=cores, accounts=count)
            contenders[name] = self.start(server)
        lua = load.script(self.folder, "accounts", headers={"Cookie": f"access_token={token()}"})
        rounds = self.interleave("accounts", "Doorward as its accounts grow", contenders, lua, baseline=few, saturates=False)
        sign_in = load.sign_in_script(self.folder)
        logins = {name: [] for name in contenders}
        starts = {name: [] for name in contenders}
        for _ in range(self.options.rounds):
            for name, server in contenders.items():
                logins[name].append(load.run(server, sign_in, 4, self.options.seconds)["rate"])
        for server in contenders.values():
            self.started.remove(server)
        for _ in range(self.options.rounds):
            for name, server in contenders.items():
                took, contenders[name] = start_anew(server)
                starts[name].append(took)
        print("\n| | logins/s (bcrypt cost 10) | start to first answer | memory |\n|---|--:|--:|--:|")
        for name, server in contenders.items():
            print(f"| {name} | {median(logins[name]):.1f} | {median(starts[name]):.0f} ms | {server.memory() / 2**20:.1f} MB |",
                  flush=True)
            server.stop()
        self.results["accounts"] = {"requests": rounds.by_server, "logins": logins, "starts": starts}
        self.goal("100,000 accounts to 1,000, CPU of a request", rounds.ratio(many, "cpu"), 1.10, 1.02)
        ratio = median(m / f for m, f in zip(logins[many], logins[few]))
        self.goal("100,000 accounts to 1,000, logins/s", ratio, 0.95, None, False)


# Memory first: pages of the program that several gateways share would count for each of them in part only.
SCENARIOS = ["memory", "get", "browser", "one", "many", "download", "post", "users", "renewal", "growth", "accounts", "workers", "logins", "start_up"]


def start_anew(server):
    """Ends a gateway and starts it again: milliseconds from the start of the process to its first answer, and the new one."""
    server.stop()
    began = time.monotonic()
    again = servers.Server(server.name, [servers.DOORWARD, "serve", "--config", server.config], server.port, server.log)
    again.config = server.config
    while True:
        try:
            status, _ = load.answer(again, "/", token())
        except OSError:
            if again.process.poll() is not None:
                raise SystemExit(f"{server.name} did not start again; see {server.log}.errors") from None
            time.sleep(0.0005)
            continue
        if status == 200:
            return 1000 * (time.monotonic() - began), again


def check_the_job(server):
    """Before anything is measured: everybody forwards, and those that authenticate do authenticate."""
    name = server.name
    status, body = load.answer(server, "/whoami", token())
    if status != 200:
        raise SystemExit(f"{name} answers {status} to a valid token")
    if name in ("nginx", "nginx-buffered", "haproxy"):
        return
    if body != b"kim":
        raise SystemExit(f"{name} names {body!r} to the upstream, not the user")
    good = token()
    head, payload, signature = good.split(".")
    forged = f"{head}.{payload}.{'A' * len(signature)}"
    for what, cookie in [("no token", None), ("a forged token", forged), ("an expired token", token(left=-60))]:
        status, _ = load.answer(server, "/whoami", cookie)
        if status not in (401, 403):
            raise SystemExit(f"{name} answers {status} to {what}")


def newest(bench):
    """The newest build of a bench program."""
    found = [path for path in (ROOT / "target/release/deps").glob(f"{bench}-*") if os.access(path, os.X_OK) and path.suffix == ""]
    if not found:
        raise SystemExit(f"{bench} is not built: cargo build --release --bench {bench}")
    return max(found, key=lambda path: path.stat().st_mtime)


def versions():
    def first(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        return ((done.stdout or done.stderr).strip().splitlines() or ["?"])[0]

    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    yield f"- Machine: {model}, {os.cpu_count()} cores, Linux {platform.release()}"
    yield f"- {first('nginx', '-v')}; {first('haproxy', '-v')}; {first(servers.DOORWARD, '--version')}"
    if shutil.which("envoy"):
        yield f"- {first('envoy', '--version').strip()}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=3, help="of each round")
    arguments.add_argument("--only", default="", help="scenarios, with commas: " + " ".join(SCENARIOS))
    arguments.add_argument("--without-envoy", action="store_true")
    arguments.add_argument("--keep", help="a folder for the logs and settings of the run")
    arguments.add_argument("--program", type=pathlib.Path, help="the one to measure, not target/dist/doorward")
    arguments.add_argument("--before", type=pathlib.Path, help="another doorward, to be measured in the same rounds")
    arguments.add_argument("--list", action="store_true")
    options = arguments.parse_args()
    if options.list:
        for name in SCENARIOS:
            print(f"{name:10} {getattr(Comparison, name).__doc__}")
        return 0
    servers.DOORWARD = options.program or servers.DOORWARD
    chosen = options.only.split(",") if options.only else SCENARIOS
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        arguments.error(f"no such scenario: {', '.join(unknown)}")
    if len(os.sched_getaffinity(0)) < 2:
        arguments.error("two cores are needed: one for the measured server, one for the load and the upstream")
    # HAProxy and nginx go to users of their own, so the folder has to be open to them.
    folder = pathlib.Path(options.keep or tempfile.mkdtemp(prefix="side-by-side-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    print("\n".join(versions()))
    print(f"- {options.rounds} rounds of {options.seconds} s, interleaved; server on core {servers.MEASURED_CORE}, "
          f"load generator and upstream on core {servers.OTHER_CORE}", flush=True)
    comparison = Comparison(options, folder)
    try:
        for name in chosen:
            getattr(comparison, name)()
    finally:
        comparison.stop()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print("\nTLS: Doorward's listener has none yet, so it is not compared.")
    print("\n### Goals\n\n| | measured | must | aim | |\n|---|--:|--:|--:|---|")
    missed = 0
    for what, value, must, aim, at_most, unit in comparison.goals:
        sign = "≤" if at_most else "≥"
        holds = lambda limit: value <= limit if at_most else value >= limit
        verdict = "missed" if not holds(must) else "aim" if aim is not None and holds(aim) else "must"
        missed += verdict == "missed"
        print(f"| {what} | {value:.2f}{unit} | {sign} {must:g}{unit} | {'' if aim is None else f'{sign} {aim:g}{unit}'} | {verdict} |")
    out = ROOT / "target/side-by-side.json"
    out.write_text(json.dumps(comparison.results))
    print(f"\nEvery round: {out.relative_to(ROOT)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
