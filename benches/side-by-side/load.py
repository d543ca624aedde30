"""Load from wrk, and what one server spent on it."""

import json
import pathlib
import socket
import subprocess
import time

from servers import OTHER_CORE, PASSWORD, token

BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/148.0.0.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-GB,en;q=0.9,ko;q=0.8",
    "Cache-Control": "max-age=0",
    "Referer": "https://app.example.com/dashboard/overview?period=week",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-User": "?1",
    "Upgrade-Insecure-Requests": "1",
}
CRUMBS = "theme=dark; session_hint=1f0c8a2e9b; consent=analytics%3Dno; last_project=42; locale=en-GB"


class Bottleneck(Exception):
    """The load generator or the upstream could not keep the measured server busy."""


def lua_string(text):
    return json.dumps(text)


def script(folder, name, path="/", method="GET", headers=None, body=None, tokens=None, content=None):
    """A wrk script. With `tokens` the requests carry one after the other as their cookie; each head is made beforehand."""
    file = folder / f"{name}.lua"
    lines = [f"wrk.method = {lua_string(method)}", f"wrk.path = {lua_string(path)}"]
    for key, value in (headers or {}).items():
        lines.append(f"wrk.headers[{lua_string(key)}] = {lua_string(value)}")
    if body:
        lines.append(f"wrk.body = string.rep('x', {body})")
    if content:
        lines.append(f"wrk.body = {lua_string(content)}")
    if tokens:
        (folder / f"{name}.tokens").write_text("\n".join(tokens))
        lines.append(f"""
local requests, at = {{}}, 0
function init(args)
  for line in io.lines({lua_string(str(folder / f"{name}.tokens"))}) do
    wrk.headers["Cookie"] = "access_token=" .. line
    requests[#requests + 1] = wrk.format()
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end""")
    lines.append("""
function done(summary, latency)
  io.stderr:write(string.format(
    '{"requests":%d,"microseconds":%d,"errors":%d,"p50":%d,"p99":%d}\\n', summary.requests, summary.duration,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end""")
    file.write_text("\n".join(lines))
    return file


def run(server, lua, connections, seconds):
    """One round. CPU in microseconds per request, latencies in milliseconds; `busy`: the share of its core it used."""
    before, began = server.cpu(), time.monotonic()
    wrk = subprocess.run(
        ["taskset", "-c", OTHER_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(lua),
         f"http://127.0.0.1:{server.port}"],
        capture_output=True, text=True)
    took, after = time.monotonic() - began, server.cpu()
    try:
        figures = json.loads(wrk.stderr.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise SystemExit(f"wrk against {server.name} said no figures: {wrk.stdout}{wrk.stderr}") from None
    requests = figures["requests"]
    if figures["errors"] or not requests:
        raise SystemExit(f"{server.name}: {figures['errors']} of {requests} requests failed in {lua.name}\n{wrk.stdout}")
    user, system = (1e6 * (then - now) / requests for then, now in zip(after, before))
    return {
        "cpu": user + system,
        "user": user,
        "system": system,
        "rate": requests / (figures["microseconds"] / 1e6),
        "p50": figures["p50"] / 1000,
        "p99": figures["p99"] / 1000,
        "busy": (user + system) * requests / 1e6 / took,
    }


def idle_connections(server, number):
    """Opens connections that each made one request and stay open. Returns them."""
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: access_token={token()}\r\n\r\n".encode()
    opened = []
    for _ in range(number):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(request)
        opened.append(connection)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < 1024:
            piece = connection.recv(65536)
            if not piece:
                raise SystemExit(f"{server.name} closed connection {len(opened)}")
            answer += piece
    return opened


def sign_in_script(folder):
    content = json.dumps({"username": "kim", "password": PASSWORD})
    return script(folder, "sign-in", "/login", "POST", {"Content-Type": "application/json"}, content=content)


def answer(server, path, cookie=None):
    """Status and body of one request."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        line = f"Cookie: access_token={cookie}\r\n" if cookie else ""
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{line}Connection: close\r\n\r\n".encode())
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def lines_of(path):
    return pathlib.Path(path).read_bytes().count(b"\n")
