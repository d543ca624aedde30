"""A WSGI application that answers with its whole environ as JSON: what a CGI-like backend makes of the headers."""

import json


def application(environ, start_response):
    environ["wsgi.input"].read()
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]
