"""Reads what reached a backend as strictly as it can be read: a JSON list of streams in base64 on standard input, a
JSON list of the requests of each stream on standard output. Anything doubtful ends with `"error"` in its place.

h11 does the framing; where h11 itself is lenient (bare line feeds, folded lines, names and targets), the head is held
against the grammar of RFC 9112 byte for byte.
"""

import base64
import json
import re
import sys

import h11

HEAD = re.compile(
    rb"(?P<method>[A-Za-z0-9!#$%&'*+.^_`|~-]+) (?P<target>/[\x21\x22\x24-\x7e\x80-\xff]*) HTTP/1\.1\r\n"
    rb"(?:[A-Za-z0-9!#$%&'*+.^_`|~-]+: (?:[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff\t]*[\x21-\x7e\x80-\xff])?)?\r\n)+\r\n"
)


def fail(text):
    raise h11.RemoteProtocolError(text)


def check(head, request):
    """What a strict proxy in the backend's place would refuse."""
    if not HEAD.fullmatch(head):
        fail(f"the head is not plain HTTP/1.1: {head!r}")
    names = [name for name, _ in request.headers]
    for name in (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-forwarded-user"):
        if names.count(name) > 1:
            fail(f"{name!r} came {names.count(name)} times")
    if names.count(b"host") != 1:
        fail("no host")
    if b"content-length" in names and b"transfer-encoding" in names:
        fail("two framings at once")
    fields = dict(request.headers)
    if not re.fullmatch(rb"0|[1-9][0-9]*", fields.get(b"content-length", b"0")):
        fail("an odd length")
    if fields.get(b"transfer-encoding", b"chunked") != b"chunked":
        fail("an odd coding")
    for name in (b"keep-alive", b"proxy-connection", b"proxy-authorization", b"http2-settings", b"expect"):
        if name in names:
            fail(f"{name!r} went through")


def requests(stream):
    found = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=256 * 1024)
    connection.receive_data(stream)
    connection.receive_data(b"")
    current = None
    try:
        while True:
            start = len(stream) - len(connection.trailing_data[0])
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head = stream[start : len(stream) - len(connection.trailing_data[0])]
                check(head, event)
                current = {
                    "method": event.method.decode(),
                    "target": event.target.decode("latin-1"),
                    "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in event.headers],
                    "body": 0,
                    "complete": False,
                }
                found.append(current)
            elif isinstance(event, h11.Data):
                current["body"] += len(event.data)
            elif isinstance(event, h11.EndOfMessage):
                current["complete"] = True
                current["trailers"] = [name.decode("latin-1") for name, _ in event.headers]
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
                    connection.start_next_cycle()
                elif connection.trailing_data[0]:
                    fail("bytes after the last request")
                else:
                    return found
            elif isinstance(event, h11.ConnectionClosed):
                return found
            else:
                fail(f"stopped at {event!r}")
    except h11.RemoteProtocolError as error:
        # A request that was broken off is not complete, and looks it.
        if current is not None and not current["complete"] and "peer closed connection without sending" in str(error):
            return found
        return found + [{"error": str(error)}]


print(json.dumps([requests(base64.b64decode(stream)) for stream in json.load(sys.stdin)]))
