"""A backend as people write it with Python's own library: no method but POST to /reads reads a body, GET takes its time,
HEAD is answered as GET is, body and all. `GET /served` lists what was served, one line each."""

import http.server
import sys
import time
import urllib.parse

served = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/served":
            return self.reply("\n".join(served))
        served.append(f"{self.command} {self.path} {self.headers.get('X-Forwarded-User', '-')}")
        # `/say?TEXT`: a page whose content a visitor has chosen.
        if self.path.startswith("/say?"):
            return self.reply(urllib.parse.unquote_to_bytes(self.path.split("?", 1)[1]).decode("latin-1"))
        if self.path.startswith("/empty"):
            self.send_response(304 if "304" in self.path else 204)
            content = urllib.parse.unquote_to_bytes(self.path.split("?", 1)[1])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return None
        time.sleep(0.05)
        return self.reply(f"{self.path} for {self.headers.get('X-Forwarded-User', '-')}")

    do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_GET

    def do_POST(self):
        served.append(f"POST {self.path} {self.headers.get('X-Forwarded-User', '-')}")
        if self.path.startswith("/reads"):
            self.rfile.read(int(self.headers["Content-Length"]))
            return self.reply(self.path)
        if self.path.startswith("/moved"):
            self.send_response(303)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.reply(self.path, 404 if self.path.startswith("/missing") else 200)

    def reply(self, text, status=200):
        content = text.encode("latin-1")
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
