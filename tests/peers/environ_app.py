"""A WSGI application that answers with its whole environ as JSON: what a CGI-like backend makes of the headers.

As a program it serves itself: `environ_app.py wsgiref|waitress PORT`.
"""

import json
import sys


def application(environ, start_response):
    # Not every server ends the body for us.
    if environ.get("wsgi.input_terminated"):
        environ["wsgi.input"].read()
    else:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    body = json.dumps(seen).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def main():
    server, port = sys.argv[1], int(sys.argv[2])
    if server == "wsgiref":
        from socketserver import ThreadingMixIn
        from wsgiref.simple_server import WSGIServer, make_server

        class Server(ThreadingMixIn, WSGIServer):
            daemon_threads = True

        make_server("127.0.0.1", port, application, Server).serve_forever()
    else:
        import waitress

        # Without its own filter for forwarding headers: it is the gateway that must keep the client's out.
        waitress.serve(application, host="127.0.0.1", port=port, clear_untrusted_proxy_headers=False, _quiet=True)


if __name__ == "__main__":
    main()
