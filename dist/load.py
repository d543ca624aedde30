#!/usr/bin/env python3
"""Puts the load of benches/side-by-side on one program: what is asked of it most, and a little of everything else."""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benches/side-by-side"))

import load  # noqa: E402
import servers  # noqa: E402


def main():
    servers.DOORWARD = pathlib.Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="doorward-profile-") as name:
        folder = pathlib.Path(name)
        # nginx goes to a user of its own, so the folder has to be open to it.
        folder.chmod(0o755)
        upstream = servers.upstream(folder)
        server = servers.doorward(folder, upstream)
        try:
            server.wait_until_it_answers()
            use(server, folder)
        finally:
            # The counts are written at the end of the process, so it must have one.
            server.stop()
            upstream.stop()


def use(server, folder):
    cookie = f"access_token={servers.token()}"
    old = [servers.token(number, left=3 * servers.DAY) for number in range(100)]
    browser = load.BROWSER | {"Cookie": f"{load.CRUMBS}; {cookie}"}
    rounds = [
        ("get", 64, 4, {"headers": {"Cookie": cookie}}),
        ("browser", 64, 4, {"headers": browser}),
        ("download", 64, 2, {"path": "/64k", "headers": {"Cookie": cookie}}),
        ("post", 64, 2, {"path": "/post", "method": "POST", "headers": {"Cookie": cookie}, "body": 16384}),
        ("users", 64, 2, {"tokens": [servers.token(number) for number in range(10_000)]}),
        ("old", 64, 1, {"tokens": old}),
        ("one", 1, 2, {"headers": {"Cookie": cookie}}),
    ]
    for name, connections, seconds, asked in rounds:
        figures = load.run(server, load.script(folder, name, **asked), connections, seconds)
        print(f"{name}: {figures['rate']:,.0f} requests/s", flush=True)


main()
