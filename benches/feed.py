#!/usr/bin/env python3
"""What a revocation feed costs: one centre, thousands of readers on loopback, and one verify-only gateway.

    cargo build --release
    benches/feed.py target/release/doorward [--readers 2000] [--revocations 100]

Needs Linux and Python 3.10 and nothing else. It starts its own centre in a folder of its own, opens so many feed
connections to it as gateways do, and prints a table: memory of the centre for each reader, bytes and processor time for
each reader while nothing happens, and the same for each revocation, with the time until the last reader has it.
"""

import argparse
import hashlib
import http.client
import json
import os
import pathlib
import re
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

PASSWORD = "correct horse 7 battery"
SHOWN = "a-token-that-only-this-measurement-shows"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("program")
    arguments.add_argument("--readers", type=int, default=2000)
    arguments.add_argument("--revocations", type=int, default=100)
    arguments.add_argument("--live", type=int, default=200000, help="entries of a long log")
    arguments.add_argument("--idle", type=float, default=20.0, help="seconds to watch idle readers")
    arguments = arguments.parse_args()
    files = arguments.readers + 512
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < files:
        sys.exit(f"{arguments.readers} readers need {files} open files, and at most {hard} are allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="doorward-feed-"))
    started = []
    try:
        measure(arguments, folder, started)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        shutil.rmtree(folder)


def measure(arguments, folder, started):
    secret = folder / "gateways"
    secret.touch(mode=0o600)
    secret.write_text(SHOWN)
    centre, port = centre_with(arguments.program, folder, "centre", secret, 0, started)

    before = resident(centre)
    readers, used = Readers(port), processor(centre)
    readers.open(arguments.readers)
    readers.until_all_begun()
    used, came = processor(centre) - used, readers.received
    time.sleep(3)
    readers.drain(0.5)
    after = resident(centre)
    rows = [("readers", f"{arguments.readers}")]
    rows.append(("resident memory of the centre without readers", kib(before)))
    rows.append(("resident memory of the centre for each reader", kib((after - before) / arguments.readers)))

    rows.append(("a connection: bytes to the reader until he knows an empty log", f"{came / arguments.readers:.0f}"))
    rows.append(("a connection: processor time of the centre", micro(used / arguments.readers)))
    readers.received = 0
    began, used = time.monotonic(), processor(centre)
    readers.drain(arguments.idle)
    span, used = time.monotonic() - began, processor(centre) - used
    rows.append(("idle: bytes for each reader and second", f"{readers.received / arguments.readers / span:.1f}"))
    rows.append(("idle: processor time of the centre for each reader and second", micro(used / arguments.readers / span)))

    tokens = [log_in(port) for _ in range(arguments.revocations)]
    readers.drain(1.0)
    latencies, lines, bytes_of_lines, used = [], 0, 0, 0.0
    for token in tokens:
        readers.entries = readers.entry_bytes = 0
        start_used, start = processor(centre), time.monotonic()
        log_out(port, token)
        readers.until(arguments.readers)
        latencies.append(time.monotonic() - start)
        used += processor(centre) - start_used
        lines += readers.entries
        bytes_of_lines += readers.entry_bytes
    latencies.sort()
    rows.append(("revocations", f"{len(tokens)}"))
    rows.append(("a revocation: bytes for each reader, framing included", f"{bytes_of_lines / lines:.1f}"))
    rows.append(("a revocation: processor time of the centre for each reader", micro(used / lines)))
    rows.append(("from the logout's sending until the last reader has it, p50", f"{statistics.median(latencies) * 1e3:.1f} ms"))
    rows.append(("the same, p99", f"{latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1e3:.1f} ms"))

    gateway = gateway_of(arguments.program, folder, "few", port, secret, started)
    rows.append(("resident memory of a verify-only gateway", kib(resident(gateway))))

    # The same with a long log.
    port = centre_with(arguments.program, folder, "long", secret, arguments.live, started)[1]
    reader, start = Readers(port), time.monotonic()
    reader.open(1)
    reader.until_all_begun()
    took = time.monotonic() - start
    rows.append(("live revocations in a long log", f"{arguments.live}"))
    rows.append(("a whole reading of it: bytes for each entry", f"{reader.received / arguments.live:.1f}"))
    rows.append(("a whole reading of it: time until one reader has it", f"{took * 1e3:.0f} ms"))
    gateway = gateway_of(arguments.program, folder, "many", port, secret, started)
    rows.append(("resident memory of a verify-only gateway that has read it", kib(resident(gateway))))
    version = subprocess.run([arguments.program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}, {os.uname().sysname} {os.uname().release}, {os.cpu_count()} processors, one worker\n")
    print("| | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


def centre_with(program, folder, name, secret, live, started):
    """A centre whose log has so many live entries; its process and port."""
    port, admin = free_ports(2)
    file = folder / f"{name}.toml"
    file.write_text(f"""
data_dir = "{folder}/{name}"
server.listen = ["127.0.0.1:{port}"]
server.workers = 1
admin.listen = "127.0.0.1:{admin}"
store.timeout = "1m"
token.algorithm = "EdDSA"
token.revocation_token_file = "{secret}"
login.bcrypt_cost = 4
log.access = false
upstream.app.urls = ["http://127.0.0.1:9"]
[[route]]
path = "/"
upstream = "app"
""")
    if live:
        write_dump(folder / "dump.jsonl", live)
        command(program, file, "store", "restore", folder / "dump.jsonl", "--keep-sessions")
    command(program, file, "key", "generate")
    command(program, file, "user", "add", "kim", "--password-stdin", text=PASSWORD)
    return serve(program, file, folder / f"{name}.log", admin, started), port


def write_dump(path, live):
    now = int(time.time())
    header = {"doorward_dump": 1, "made": "2026-01-01T00:00:00Z", "accounts": 0, "sessions": 0, "entries": live,
              "log_head": live, "sequence": 0}
    digest = hashlib.sha256()
    with open(path, "w") as file:
        def line(record):
            text = json.dumps(record, separators=(",", ":")) + "\n"
            file.write(text)
            digest.update(text.encode())

        line(header)
        for number in range(1, live + 1):
            session = str(uuid.uuid4())
            what = {"kind": "session", "session": session}
            line({"entry": {"number": number, "what": what, "at": now, "expires": now + 30 * 86400}})
        line({"end": {"lines": live + 1, "sha256": digest.hexdigest()}})


def gateway_of(program, folder, name, port, secret, started):
    """A verify-only gateway that has read the whole feed; its process."""
    own, admin = free_ports(2)
    base = f"http://127.0.0.1:{port}"
    file = folder / f"{name}-gateway.toml"
    file.write_text(f"""
server.listen = ["127.0.0.1:{own}"]
server.workers = 1
admin.listen = "127.0.0.1:{admin}"
store.kind = "none"
token.jwks_url = "{base}/.well-known/jwks.json"
token.revocation_url = "{base}/gateways/revocations"
token.revocation_token_file = "{secret}"
login.url = "{base}/login"
upstream.app.urls = ["http://127.0.0.1:9"]
[[route]]
path = "/"
upstream = "app"
""")
    gateway = serve(program, file, folder / f"{name}-gateway.log", admin, started)
    time.sleep(2)
    return gateway


class Readers:
    """Feed connections, read as fast as one thread can."""

    def __init__(self, port):
        self.port = port
        self.poll = select.epoll()
        self.sockets = {}
        self.begun = set()
        self.received = self.entries = self.entry_bytes = 0

    def open(self, count):
        request = (
            f"GET /gateways/revocations HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {SHOWN}\r\n\r\n"
        ).encode()
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", self.port))
            connection.sendall(request)
            connection.setblocking(False)
            self.sockets[connection.fileno()] = connection
            self.poll.register(connection, select.EPOLLIN)

    def drain(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def until(self, entries):
        end = time.monotonic() + 30
        while self.entries < entries:
            if time.monotonic() > end:
                sys.exit(f"only {self.entries} of {entries} readers heard of a revocation")
            self.read(1)

    def until_all_begun(self):
        end = time.monotonic() + 60
        while len(self.begun) < len(self.sockets):
            if time.monotonic() > end:
                sys.exit(f"only {len(self.begun)} of {len(self.sockets)} readers were answered")
            self.read(1)

    def read(self, timeout):
        for number, _ in self.poll.poll(timeout):
            piece = self.sockets[number].recv(65536)
            if not piece:
                sys.exit("the centre closed a feed")
            self.received += len(piece)
            if number not in self.begun and b'{"beat"' in piece:
                self.begun.add(number)
            # The head and the first lines come with `hello`; a chunk with one entry is counted with its framing.
            found = piece.count(b'{"entry"')
            self.entries += found
            if found:
                framed = re.findall(rb'[0-9a-f]+\r\n\{"entry"[^\n]*\n\r\n', piece)
                self.entry_bytes += sum(map(len, framed)) if framed else len(piece)


def log_in(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"username": "kim", "password": PASSWORD})
    connection.request("POST", "/login", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        sys.exit(f"a login was answered with {answer.status}")
    return answer.getheader("Set-Cookie").split(";")[0]


def log_out(port, cookie):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/logout", headers={"Cookie": cookie})
    if connection.getresponse().status != 204:
        sys.exit("a logout failed")


def command(program, file, *arguments, text=None):
    subprocess.run([program, *arguments, "--config", file], input=text, text=True, check=True, capture_output=True)


def serve(program, file, log, admin, started):
    with open(log, "wb") as output:
        process = subprocess.Popen([program, "serve", "--config", file], stdout=output, stderr=output)
    started.append(process)
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"{file.name}: ended with {process.returncode}\n{log.read_text()}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=1)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return process.pid
        except OSError:
            pass
        time.sleep(0.05)
    sys.exit(f"{file.name}: not ready after 30 s\n{log.read_text()}")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def resident(process):
    return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE


def processor(process):
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def kib(size):
    return f"{size / 1024:.1f} KiB"


def micro(seconds):
    return f"{seconds * 1e6:.2f} µs"


main()
