"""The programs that are compared, each set up to do the same job: forward to one upstream and keep an access log.

Every one has one worker, pinned to the measured core, and writes its access log to a file in the folder of the run.
The settings are each program's better ones where its documentation names them: nginx keeps its upstream connections and
has buffers that take a whole answer, and stands there a second time with its access log written in blocks.
"""

import base64
import hashlib
import hmac
import json
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What dist/build makes, unless the comparison is told of another one.
DOORWARD = ROOT / "target/dist/doorward"
ECHO_MODULE = "/usr/lib/nginx/modules/ngx_http_echo_module.so"

SECRET = "side-by-side-a-secret-of-more-than-32-bytes"
MEASURED_CORE = "0"
OTHER_CORE = "1"
DAY = 24 * 3600


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(number=0, left=7 * DAY, kid=None):
    """A token as Doorward issues it, for one of any number of sessions of the user "kim". `left`: seconds to live."""
    expires = int(time.time()) + left
    issued = expires - 7 * DAY
    header = {"alg": "HS256", "typ": "JWT"} | ({"kid": kid} if kid else {})
    account = "0193a0c0-0000-7000-8000-000000000001"
    claims = {
        "iss": "doorward",
        "sub": account,
        "_id": account,
        "username": "kim",
        "groups": ["staff", "wiki"],
        "email": "",
        "name": "",
        "sid": f"0193a0c0-0000-7000-8001-{number:012x}",
        "__v": 0,
        "auth_time": issued,
        "seq": 1 << 30,
        "iat": issued,
        "exp": expires,
    }
    text = ".".join(encode(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    return text + "." + encode(hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest())


def dump(path, accounts=1, revocations=0):
    """A dump that `doorward store restore` reads. The first account is "kim", whom the tokens name."""
    now = int(time.time())
    lines = [
        {
            "doorward_dump": 1,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "accounts": accounts,
            "sessions": 0,
            "entries": revocations,
            "log_head": revocations,
            "sequence": 1,
        }
    ]
    for number in range(1, accounts + 1):
        lines.append(
            {
                "account": {
                    "id": f"0193a0c0-0000-7000-8000-{number:012x}",
                    "username": "kim" if number == 1 else f"user{number}",
                    # bcrypt of "a fine password" at cost 10.
                    "password_hash": PASSWORD_HASH,
                    "groups": ["staff", "wiki"],
                    "email": "",
                    "display_name": "",
                    "disabled": False,
                    "version": 0,
                    "created": now,
                    "changed": now,
                    "revision": 1,
                }
            }
        )
    for number in range(1, revocations + 1):
        what = {"kind": "session", "session": f"0193a0c0-0000-7000-8002-{number:012x}"}
        lines.append({"entry": {"number": number, "what": what, "at": now, "expires": now + 7 * DAY}})
    texts = [json.dumps(line, separators=(",", ":")) + "\n" for line in lines]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    texts.append(json.dumps({"end": {"lines": len(texts), "sha256": digest}}) + "\n")
    path.write_text("".join(texts))
    path.chmod(0o600)


PASSWORD = "a fine password"
PASSWORD_HASH = "$2b$10$N9qo8uLOickgx2ZMRZoMyeAPpfpn.hYXBpXq/mWNB6zDp6D9lbByS"


class Server:
    """A running program. `cores`: where it may run, as taskset takes it."""

    def __init__(self, name, command, port, log, cores=MEASURED_CORE, env=None):
        self.name, self.port, self.log = name, port, log
        self.most_connections = 16_000
        self.output = open(log, "ab")
        self.process = subprocess.Popen(
            ["taskset", "-c", cores, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=open(str(log) + ".errors", "ab"),
            env={**os.environ, **(env or {})},
        )

    def wait_until_it_answers(self, path="/", seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5).status
            except urllib.error.HTTPError as answer:
                return answer.code
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{self.name} does not answer; see {self.log}.errors") from None
                time.sleep(0.02)

    def pids(self):
        """The process and its children: nginx has a master and a worker."""
        found, children = [self.process.pid], {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    parent = int(pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(entry))
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def cpu(self):
        """Seconds of user and of system time so far, by the kernel's own books on the processes."""
        user = system = 0
        for pid in self.pids():
            try:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            user, system = user + int(fields[11]), system + int(fields[12])
        tick = os.sysconf("SC_CLK_TCK")
        return user / tick, system / tick

    def memory(self):
        """Resident memory in bytes; what the processes share counts once (PSS)."""
        total = 0
        for pid in self.pids():
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()


def upstream(folder):
    """nginx again, on the other core, without a log: 1 KB, 64 KB, a POST that is read whole, and who was named."""
    port = free_port()
    (folder / "upstream").mkdir()
    (folder / "upstream/64k").write_bytes(b"x" * 65536)
    (folder / "upstream/1k").write_bytes(b"x" * 1024)
    config = folder / "upstream.conf"
    config.write_text(f"""
load_module {ECHO_MODULE};
daemon off; worker_processes 1; pid {folder}/upstream.pid; error_log {folder}/upstream.errors crit;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 100000000; keepalive_timeout 1h; sendfile on; tcp_nopush on; server_tokens off;
    client_body_temp_path {folder}/upstream; client_body_buffer_size 64k; open_file_cache max=16 inactive=1h;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {folder}/upstream;
        location = / {{ return 200 "{'x' * 1024}"; }}
        location = /post {{ echo_read_request_body; echo ok; }}
        location = /whoami {{ return 200 "$http_x_forwarded_user"; }}
        location = /public {{ return 200 "{'x' * 1024}"; }}
    }}
}}
""")
    server = Server("upstream", ["nginx", "-c", config], port, folder / "upstream.log", OTHER_CORE)
    server.wait_until_it_answers()
    return server


def nginx(folder, target, buffered=False):
    """A plain reverse proxy without any authentication: what everything is compared with.

    Its access log is written as nginx does by default, line by line; `buffered`: in blocks, which is cheaper.
    """
    name = "nginx-buffered" if buffered else "nginx"
    port = free_port()
    config = folder / f"{name}.conf"
    blocks = "buffer=64k flush=1s" if buffered else ""
    config.write_text(f"""
daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log {folder}/{name}.errors crit;
events {{ worker_connections 16384; }}
http {{
    access_log {folder}/{name}-access.log combined {blocks};
    client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
    keepalive_requests 100000000; keepalive_timeout 1h; client_body_buffer_size 64k; server_tokens off;
    upstream app {{ server 127.0.0.1:{target.port}; keepalive 512; keepalive_requests 100000000; keepalive_timeout 1h; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
            proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;
        }}
    }}
}}
""")
    return Server(name, ["nginx", "-c", config], port, folder / f"{name}.log")


def haproxy(folder, target, verify):
    """`verify`: with `jwt_verify` on the cookie, the issuer and the expiry, and the user's name as a header."""
    name = "haproxy-jwt" if verify else "haproxy"
    port = free_port()
    # It counts two file descriptors for each connection, and refuses to start where the system gives it fewer.
    most = min(16384, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100)
    rules = f"""
    http-request set-var(txn.token) req.cook(access_token)
    http-request set-var(txn.alg) var(txn.token),jwt_header_query('$.alg')
    http-request set-var(txn.iss) var(txn.token),jwt_payload_query('$.iss')
    http-request set-var(txn.exp) var(txn.token),jwt_payload_query('$.exp','int')
    http-request set-var(txn.now) date()
    http-request deny deny_status 401 unless {{ var(txn.alg) -m str HS256 }}
    http-request deny deny_status 401 unless {{ var(txn.token),jwt_verify(txn.alg,"{SECRET}") 1 }}
    http-request deny deny_status 401 unless {{ var(txn.iss) -m str doorward }}
    http-request deny deny_status 401 if {{ var(txn.exp),sub(txn.now) -m int lt 0 }}
    http-request set-header X-Forwarded-User %[var(txn.token),jwt_payload_query('$.username')]
""" if verify else ""
    config = folder / f"{name}.cfg"
    config.write_text(f"""
global
    nbthread 1
    maxconn {most}
    log stdout format raw local0 info
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
frontend front
    bind 127.0.0.1:{port} backlog 4096
    {rules}
    default_backend app
backend app
    http-reuse always
    server app 127.0.0.1:{target.port} pool-max-conn 512
""")
    server = Server(name, ["haproxy", "-db", "-f", config], port, folder / f"{name}-access.log")
    server.most_connections = most
    return server


def envoy(folder, target):
    """With `jwt_authn` on the cookie, and the user's name as a header."""
    port = free_port()
    key = encode(SECRET.encode())
    config = folder / "envoy.json"
    config.write_text(json.dumps({
        "static_resources": {
            "listeners": [{
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "front",
                        "codec_type": "HTTP1",
                        "access_log": [{
                            "name": "envoy.access_loggers.file",
                            "typed_config": {
                                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                                "path": str(folder / "envoy-access.log"),
                            },
                        }],
                        "route_config": {"virtual_hosts": [{
                            "name": "all", "domains": ["*"],
                            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}],
                        }]},
                        "http_filters": [
                            {
                                "name": "envoy.filters.http.jwt_authn",
                                "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
                                    "providers": {"doorward": {
                                        "issuer": "doorward",
                                        "from_cookies": ["access_token"],
                                        "jwt_cache_config": {"jwt_cache_size": 20000},
                                        "local_jwks": {"inline_string": json.dumps(
                                            {"keys": [{"kty": "oct", "alg": "HS256", "k": key}]})},
                                        "claim_to_headers": [
                                            {"header_name": "x-forwarded-user", "claim_name": "username"}],
                                    }},
                                    "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "doorward"}}],
                                },
                            },
                            {
                                "name": "envoy.filters.http.router",
                                "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                            },
                        ],
                    },
                }]}],
            }],
            "clusters": [{
                "name": "app", "type": "STATIC", "connect_timeout": "5s",
                "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": target.port}}}}]}]},
            }],
        },
    }))
    command = ["envoy", "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return Server("envoy-jwt", command, port, folder / "envoy.log")


def doorward(folder, target, name="doorward", workers=1, cores=MEASURED_CORE, accounts=1, revocations=10_000, routes=2,
             extra="", program=None):
    """Everything on: access log, metrics, identity and forwarding headers, revocations, more than one route."""
    program = program or DOORWARD
    port, admin = free_port(), free_port()
    data = folder / name
    data.mkdir(mode=0o700)
    secret = data / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    more = "".join(
        f'[[route]]\npath = "/section-{number}/part"\ngroups = ["staff"]\nupstream = "app"\n' for number in range(routes - 2)
    )
    config = data / "config.toml"
    config.write_text(f"""
data_dir = "{data}/store"
[server]
listen = ["127.0.0.1:{port}"]
workers = {workers}
[server.limits]
max_connections = 16384
idle_timeout = "1h"
[admin]
listen = "127.0.0.1:{admin}"
[token]
secret_file = "{secret}"
[login]
bcrypt_cost = 10
max_attempts = 1000000
[upstream.app]
urls = ["http://127.0.0.1:{target.port}"]
{extra}
[[route]]
path = "/"
upstream = "app"
[[route]]
path = "/public"
access = "public"
upstream = "app"
{more}
""")
    rows = folder / f"{name}.jsonl"
    dump(rows, accounts, revocations)
    (data / "store").mkdir(mode=0o700)
    restored = subprocess.run(
        [program, "store", "restore", rows, "--keep-sessions", "--config", config], capture_output=True, text=True)
    if restored.returncode != 0:
        raise SystemExit(f"the store of {name} could not be filled: {restored.stderr}")
    server = Server(name, [program, "serve", "--config", config], port, folder / f"{name}-access.log", cores)
    server.config = config
    server.admin = admin
    return server


def installed(program):
    return shutil.which(program) is not None
