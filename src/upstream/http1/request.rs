//! Writing a request's head: what the client sent is sorted while it is written, and nothing is edited before.

use http::header::{self, HeaderName};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri};

use super::super::Outgoing;
use crate::message::cookies::{self, Left};
use crate::message::forwarded::Way;
use crate::message::head::RawTarget;
use crate::message::hop_by_hop::HopByHop;
use crate::message::identity;
use crate::message::spelling::{Line, push_title_case};

/// How a request's body is delimited. Written anew from what the server's side has read: `005` was one spelling of five,
/// and a body of unknown length is said to be chunked whatever the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Framing {
    Length(u64),
    Chunked,
}

/// What stays the same in all tries of one request.
pub(in super::super) struct Head<'a> {
    pub(in super::super) parts: &'a Parts,
    pub(in super::super) outgoing: &'a Outgoing<'a>,
    pub(in super::super) forward_token: bool,
    /// How the backend is reached: `http` or `https`.
    pub(in super::super) scheme: &'static str,
    /// This backend is told who it is in `Authorization`: a client's own goes no further, whoever is logged in.
    pub(in super::super) basic: bool,
    pub(in super::super) framing: Framing,
    /// Announced, and fit to be passed on.
    pub(in super::super) trailers: &'a [HeaderName],
    /// The backend is told to serve nothing else on this connection.
    pub(in super::super) alone: bool,
}

/// The request can't be sent as the route wants it, which the router has ruled out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path can't be written without its prefix")]
pub(in super::super) struct NoPath;

/// Enough for most heads.
const ROOM_BYTES: usize = 2048;

impl Head<'_> {
    /// Appends the head.
    ///
    /// The order of the questions is the point: the client's identity headers go first, then what belongs to its
    /// connection (by all `Connection` lines, which may name ours), and only then come ours.
    pub(in super::super) fn write(&self, into: &mut Vec<u8>, host: &HeaderValue) -> Result<(), NoPath> {
        let outgoing = self.outgoing;
        let came = &self.parts.headers;
        let way = Way::new(outgoing.admitted, outgoing.peer, outgoing.request_id, outgoing.strip_prefix);
        let hop_by_hop = HopByHop::of(came);
        into.reserve(ROOM_BYTES);
        let goes_on = |name: &HeaderName| !outgoing.guarded.covers(name) && !hop_by_hop.covers(name);

        self.write_request_line(into)?;
        put(into, "Host", host.as_bytes());
        let mut spelled = outgoing.spelling.lines();
        for (name, value) in came {
            if !goes_on(name) || is_written_anew(name) || way.replaces(name) {
                continue;
            }
            if self.basic && *name == header::AUTHORIZATION {
                continue;
            }
            if let Some((is_url, path)) = outgoing.destination
                && name.as_str() == "destination"
            {
                into.extend_from_slice(b"Destination: ");
                if is_url {
                    for piece in [self.scheme.as_bytes(), b"://", host.as_bytes()] {
                        into.extend_from_slice(piece);
                    }
                }
                into.extend_from_slice(path.as_bytes());
                into.extend_from_slice(b"\r\n");
                continue;
            }
            let value = value.as_bytes();
            let left = if self.forward_token {
                Left::Whole
            } else if *name == header::COOKIE {
                cookies::take_out(value, outgoing.cookie_name)
            } else if outgoing.own_bearer && *name == header::AUTHORIZATION {
                Left::Nothing
            } else {
                Left::Whole
            };
            let written = match &left {
                Left::Nothing => continue,
                Left::Whole => value,
                Left::Part(left) => left,
            };
            match spelled.find(name.as_str(), value) {
                // The same bytes, all at once.
                Some(Line { plain: Some(line), .. }) if matches!(left, Left::Whole) => into.extend_from_slice(line),
                Some(line) => {
                    into.extend_from_slice(line.name);
                    end(into, written);
                }
                None => {
                    push_title_case(into, name.as_str());
                    end(into, written);
                }
            }
        }
        if way.disbelieved() {
            outgoing.disbelieved.set(true);
        }
        way.each(came, goes_on, |name, pieces| {
            into.extend_from_slice(name.as_bytes());
            into.extend_from_slice(b": ");
            for piece in pieces {
                into.extend_from_slice(piece);
            }
            into.extend_from_slice(b"\r\n");
        });
        if let Some(person) = outgoing.pass.person() {
            into.extend_from_slice(outgoing.identity);
            if let Some(password) = outgoing.basic_password.filter(|_| self.basic)
                && let Some(value) = identity::basic(person, password)
            {
                put(into, "Authorization", value.expose().as_bytes());
            }
        }
        self.write_connection(into);
        self.write_framing(into);
        into.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Path and query exactly as they came, less the prefix.
    fn write_request_line(&self, into: &mut Vec<u8>) -> Result<(), NoPath> {
        into.extend_from_slice(self.parts.method.as_str().as_bytes());
        into.push(b' ');
        let (slash, rest) = origin_form(&self.parts.uri, self.outgoing.strip_prefix).ok_or(NoPath)?;
        let raw = self.parts.extensions.get::<RawTarget>();
        if let Some((slash, raw)) = raw.and_then(|raw| raw_form(&raw.0, self.outgoing.strip_prefix)) {
            into.extend_from_slice(slash);
            into.extend_from_slice(raw);
        } else {
            into.extend_from_slice(slash.as_bytes());
            into.extend_from_slice(rest.as_bytes());
        }
        into.extend_from_slice(b" HTTP/1.1\r\n");
        Ok(())
    }

    fn write_connection(&self, into: &mut Vec<u8>) {
        if self.outgoing.admitted.websocket {
            put(into, "Connection", b"upgrade");
            put(into, "Upgrade", b"websocket");
        } else {
            let wants_trailers = wants_trailers(&self.parts.headers);
            if wants_trailers {
                put(into, "TE", b"trailers");
            }
            match (wants_trailers, self.alone) {
                (true, false) => put(into, "Connection", b"te"),
                (true, true) => put(into, "Connection", b"te, close"),
                (false, true) => put(into, "Connection", b"close"),
                (false, false) => {}
            }
        }
        if let Some((first, others)) = self.trailers.split_first() {
            into.extend_from_slice(b"Trailer: ");
            into.extend_from_slice(first.as_str().as_bytes());
            for name in others {
                into.extend_from_slice(b", ");
                into.extend_from_slice(name.as_str().as_bytes());
            }
            into.extend_from_slice(b"\r\n");
        }
    }

    fn write_framing(&self, into: &mut Vec<u8>) {
        match self.framing {
            Framing::Chunked => put(into, "Transfer-Encoding", b"chunked"),
            // A request that came without a length and without a body goes on so.
            Framing::Length(0) if !self.parts.headers.contains_key(header::CONTENT_LENGTH) => {}
            Framing::Length(length) => put(into, "Content-Length", itoa::Buffer::new().format(length).as_bytes()),
        }
    }
}

/// Stands in the head of every request, or of none, in our own words.
fn is_written_anew(name: &HeaderName) -> bool {
    matches!(name.as_str(), "host" | "content-length" | "trailer" | "expect")
}

fn put(into: &mut Vec<u8>, name: &str, value: &[u8]) {
    into.extend_from_slice(name.as_bytes());
    end(into, value);
}

fn end(into: &mut Vec<u8>, value: &[u8]) {
    into.extend_from_slice(b": ");
    into.extend_from_slice(value);
    into.extend_from_slice(b"\r\n");
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// What is to be sent, in two pieces: a slash where the rest has none. `None`: the path does not begin with the prefix.
fn origin_form<'a>(uri: &'a Uri, strip_prefix: &str) -> Option<(&'static str, &'a str)> {
    let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = whole.strip_prefix(strip_prefix)?;
    let is_whole = strip_prefix.is_empty() && uri.authority().is_none();
    Some((if is_whole || rest.starts_with('/') { "" } else { "/" }, rest))
}

/// The same for a target with bytes that stand encoded in the URI. `None`: it does not begin with the prefix as the prefix
/// is written, and goes on encoded.
fn raw_form<'a>(raw: &'a [u8], strip_prefix: &str) -> Option<(&'static [u8], &'a [u8])> {
    let rest = raw.strip_prefix(strip_prefix.as_bytes())?;
    Some((if rest.starts_with(b"/") { b"" } else { b"/" }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_sent_as_it_came_less_the_prefix() {
        for (uri, prefix, expected) in [
            ("/a%2Fb/../c?d=%00", "", "/a%2Fb/../c?d=%00"),
            ("*", "", "*"),
            ("http://h/a?b", "", "/a?b"),
            ("http://h", "", "/"),
            ("http://h?b", "", "/?b"),
            ("/api/x?y", "/api", "/x?y"),
            ("/api", "/api", "/"),
            ("/api?y", "/api", "/?y"),
            ("/api/", "/api", "/"),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let (slash, rest) = origin_form(&uri, prefix).unwrap();
            assert_eq!(format!("{slash}{rest}"), expected);
        }
        assert_eq!(origin_form(&"/other".parse().unwrap(), "/api"), None);
    }
}
