#!/usr/bin/env python3
"""What a revocation feed costs: one centre, thousands of readers on loopback, and one verify-only gateway.

    cargo build --release
    benches/feed.py target/release/doorward [--readers 2000] [--revocations 100]

Needs Linux and Python 3.10 and nothing else. It starts its own centre in a folder of its own, opens so many feed
connections to it as gateways do, and prints a table: memory of the centre for each reader, bytes and processor time for
each reader while nothing happens, and the same for each revocation, with the time until the last reader has it.
"""

import argparse
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

PASSWORD = "correct horse 7 battery"
SHOWN = "a-token-that-only-this-measurement-shows"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("program")
    arguments.add_argument("--readers", type=int, default=2000)
    arguments.add_argument("--revocations", type=int, default=100)
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
    port, admin, gateway_port, gateway_admin = free_ports(4)
    secret = folder / "gateways"
    secret.touch(mode=0o600)
    secret.write_text(SHOWN)
    centre_file = folder / "centre.toml"
    centre_file.write_text(f"""
data_dir = "{folder}/data"
server.listen = ["127.0.0.1:{port}"]
server.workers = 1
admin.listen = "127.0.0.1:{admin}"
token.algorithm = "EdDSA"
token.revocation_token_file = "{secret}"
login.bcrypt_cost = 4
log.access = false
upstream.app.urls = ["http://127.0.0.1:9"]
[[route]]
path = "/"
upstream = "app"
""")
    command(arguments.program, centre_file, "key", "generate")
    command(arguments.program, centre_file, "user", "add", "kim", "--password-stdin", text=PASSWORD)
    centre = serve(arguments.program, centre_file, folder / "centre.log", admin, started)

    before, kernel_before = resident(centre), kernel_memory()
    readers = Readers(port)
    readers.open(arguments.readers)
    time.sleep(3)
    readers.drain(0.5)
    after, kernel_after = resident(centre), kernel_memory()
    rows = [("readers", f"{arguments.readers}")]
    rows.append(("resident memory of the centre without readers", kib(before)))
    rows.append(("resident memory of the centre for each reader", kib((after - before) / arguments.readers)))
    rows.append(("kernel memory of both ends' sockets for each reader", kib((kernel_after - kernel_before) / arguments.readers)))

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

    gateway_file = folder / "gateway.toml"
    base = f"http://127.0.0.1:{port}"
    gateway_file.write_text(f"""
server.listen = ["127.0.0.1:{gateway_port}"]
server.workers = 1
admin.listen = "127.0.0.1:{gateway_admin}"
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
    gateway = serve(arguments.program, gateway_file, folder / "gateway.log", gateway_admin, started)
    time.sleep(2)
    rows.append(("resident memory of a verify-only gateway", kib(resident(gateway))))
    rows.append(("resident memory of the centre at the end", kib(resident(centre))))
    version = subprocess.run([arguments.program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}, {os.uname().sysname} {os.uname().release}, {os.cpu_count()} processors, one worker\n")
    print("| | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


class Readers:
    """Feed connections, read as fast as one thread can."""

    def __init__(self, port):
        self.port = port
        self.poll = select.epoll()
        self.sockets = {}
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

    def read(self, timeout):
        for number, _ in self.poll.poll(timeout):
            piece = self.sockets[number].recv(65536)
            if not piece:
                sys.exit("the centre closed a feed")
            self.received += len(piece)
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


def kernel_memory():
    """All of the machine's TCP buffers and socket objects, which a quiet machine hardly changes otherwise."""
    pages = 0
    for line in pathlib.Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            pages = int(line.split()[-1])
    slab = 0
    try:
        for line in pathlib.Path("/proc/slabinfo").read_text().splitlines():
            fields = line.split()
            if fields[0] in ("TCP", "sock_inode_cache", "dentry", "filp", "eventpoll_epi"):
                slab += int(fields[1]) * int(fields[3])
    except PermissionError:
        pass
    return pages * PAGE + slab


def kib(size):
    return f"{size / 1024:.1f} KiB"


def micro(seconds):
    return f"{seconds * 1e6:.2f} µs"


main()
