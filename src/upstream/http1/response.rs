//! Reading an answer's head: what the client may see of it, and where the answer ends.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::message::identity::Guarded;
use crate::message::{cookies, hop_by_hop};
use crate::upstream::{ties, trailers};

/// The longest head. Positions in it fit into 16 bits.
pub(in super::super) const MOST_HEAD_BYTES: usize = 64 * 1024 - 1;
/// Headers of one answer.
pub(in super::super) const MOST_HEADERS: usize = 256;

/// What matters of the request for its answer.
#[derive(Clone, Copy)]
pub(in super::super) struct Asked<'a> {
    pub(in super::super) head_only: bool,
    /// For another protocol (WebSocket).
    pub(in super::super) upgrade: bool,
    pub(in super::super) guarded: &'a Guarded,
    pub(in super::super) cookie_name: &'a str,
    /// The `Set-Cookie` lines of that name are put here, and never into the answer.
    pub(in super::super) said_of_cookie: &'a RefCell<Vec<HeaderValue>>,
}

/// An answer's head as the client may see it.
#[derive(Debug)]
pub(in super::super) struct Head {
    pub(in super::super) status: StatusCode,
    pub(in super::super) headers: HeaderMap,
    pub(in super::super) framing: Framing,
    /// The backend means to keep the connection open, and nothing about the answer says that more may come of it.
    pub(in super::super) keeps: bool,
    /// The backend may log the connection in, or has.
    pub(in super::super) logs_in: bool,
    /// Announced, and fit to be passed on.
    pub(in super::super) trailers: Vec<HeaderName>,
}

/// Where an answer ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Framing {
    /// With its head.
    None,
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// What the next bytes are.
#[derive(Debug)]
pub(in super::super) enum Read {
    Head(Head),
    /// 1xx: the answer is still to come.
    Interim {
        /// As [`Head::keeps`].
        keeps: bool,
    },
    /// More bytes are needed.
    Hungry,
}

/// It is not an answer, or can be read in two ways.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Malformed {
    #[error("the answer's head is malformed")]
    Http(#[from] httparse::Error),
    #[error("{0}")]
    Told(&'static str),
    /// One of its headers. Values are not shown: they may be anybody's.
    #[error("the answer's {name} {what}")]
    Field { name: String, what: &'static str },
}

impl Malformed {
    fn field(name: &str, what: &'static str) -> Self {
        Self::Field { name: name.to_owned(), what }
    }
}

/// Takes a head from the front of `bytes`, if it is whole.
pub(in super::super) fn read(bytes: &mut BytesMut, asked: &Asked<'_>) -> Result<Read, Malformed> {
    let mut places = [Place::default(); MOST_HEADERS];
    let Some(found) = find(bytes, &mut places)? else {
        if bytes.len() >= MOST_HEAD_BYTES {
            return Err(Malformed::Told("the answer's head is too large"));
        }
        return Ok(Read::Hungry);
    };
    let head = bytes.split_to(found.length).freeze();
    let fields = places.get(..found.count).unwrap_or_default();
    if found.status.is_informational() && found.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Read::Interim { keeps: interim_keeps(&head, fields) });
    }
    if found.status == StatusCode::SWITCHING_PROTOCOLS && !asked.upgrade {
        return Err(Malformed::Told("it switched protocols without being asked"));
    }
    sort(&head, fields, found.status, found.is_1_1, asked).map(Read::Head)
}

/// Where a field stands in the head.
#[derive(Clone, Copy, Default)]
struct Place {
    name: (u16, u16),
    value: (u16, u16),
}

struct Found {
    length: usize,
    count: usize,
    status: StatusCode,
    is_1_1: bool,
}

fn find(bytes: &[u8], places: &mut [Place; MOST_HEADERS]) -> Result<Option<Found>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut response, bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(culprit(bytes).unwrap_or(Malformed::Http(error))),
    };
    if length > MOST_HEAD_BYTES {
        return Err(Malformed::Told("the answer's head is too large"));
    }
    let start = bytes.as_ptr().addr();
    let place = |part: &[u8]| {
        let from = part.as_ptr().addr().wrapping_sub(start);
        let position = |at: usize| u16::try_from(at).map_err(|_| Malformed::Told("the answer's head is too large"));
        Ok::<_, Malformed>((position(from)?, position(from + part.len())?))
    };
    for (field, into) in response.headers.iter().zip(places.iter_mut()) {
        *into = Place { name: place(field.name.as_bytes())?, value: place(field.value)? };
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Some(Found {
        length,
        count: response.headers.len(),
        status: status.ok_or(Malformed::Told("its status is no status"))?,
        is_1_1: response.version == Some(1),
    }))
}

/// Whether nothing about an interim answer says that a body of its own, or the end of the connection, comes behind it.
fn interim_keeps(head: &Bytes, fields: &[Place]) -> bool {
    let part = |(from, to): (u16, u16)| head.get(usize::from(from)..usize::from(to)).unwrap_or_default();
    !fields.iter().any(|field| {
        let is = |name: &str| part(field.name).eq_ignore_ascii_case(name.as_bytes());
        is("transfer-encoding")
            || (is("content-length") && part(field.value) != b"0")
            || (is("connection") && tokens(part(field.value)).any(says_close))
    })
}

fn tokens(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// However it is spelled: quoted, with parameters. Who says so may well do it.
fn says_close(token: &[u8]) -> bool {
    let token = token.strip_prefix(b"\"").unwrap_or(token);
    let end = token.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-').unwrap_or(token.len());
    token.get(..end).is_some_and(|word| word.eq_ignore_ascii_case(b"close"))
}

/// What IIS and others say of a connection beside the challenge, or after it.
fn says_logged_in(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "persistent-auth" => !value.as_bytes().eq_ignore_ascii_case(b"false"),
        "proxy-support" => true,
        "proxy-authenticate" | "authentication-info" => ties::names_one(value.as_bytes()),
        _ => false,
    }
}

/// Which header makes a head malformed, for whoever looks for it in the backend. `None`: no single one does.
fn culprit(bytes: &[u8]) -> Option<Malformed> {
    const MOST_NAME_CHARS: usize = 64;
    let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let is_bad = |lines: &[&[u8]]| {
        let mut fields = [httparse::EMPTY_HEADER; 1];
        httparse::Response::new(&mut fields).parse(&lines.concat()).is_err()
    };
    if is_bad(&[lines.next()?, b"\r\n\r\n"]) {
        return None;
    }
    let bad =
        lines.take_while(|line| !line.is_empty()).find(|line| is_bad(&[b"HTTP/1.1 200 OK\r\n", line, b"\r\n\r\n"]))?;
    let name = bad.split(|byte| *byte == b':').next().unwrap_or_default();
    let name = name.iter().take(MOST_NAME_CHARS).map(|byte| char::from(*byte).escape_default().to_string()).collect();
    Some(Malformed::Field { name, what: "line is not a header: a sign in it may not be there" })
}

/// What the lines about the framing say.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each line says it or does not")]
struct Said {
    length: Option<u64>,
    /// As it was written.
    length_line: Option<HeaderValue>,
    lengths_differ: bool,
    coding: Coding,
    /// It was said more than once, or in words that nobody needs. It can be read in one way only, and is taken; but
    /// where a backend and whoever stands before it may have disagreed, nothing else should follow.
    oddly: bool,
    close: bool,
    keep_alive: bool,
    /// A `Connection` line names headers.
    names_headers: bool,
    /// `Upgrade: websocket`
    websocket: bool,
    /// There is a `Trailer` line.
    announces: bool,
    /// A line names a way of logging connections in.
    logs_in: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Coding {
    #[default]
    None,
    Chunked,
    Other,
}

/// Builds the head that the client sees.
fn sort(
    head: &Bytes,
    fields: &[Place],
    status: StatusCode,
    is_1_1: bool,
    asked: &Asked<'_>,
) -> Result<Head, Malformed> {
    let mut said = Said::default();
    // A renewed cookie and a word about the connection may be added.
    let mut headers = HeaderMap::with_capacity(fields.len() + 2);
    for field in fields {
        let part = |(from, to): (u16, u16)| usize::from(from)..usize::from(to);
        let name = head.get(part(field.name)).and_then(|name| HeaderName::from_bytes(name).ok());
        let name = name.ok_or(Malformed::Told("a header's name is none"))?;
        let value = HeaderValue::from_maybe_shared(head.slice(part(field.value)))
            .map_err(|_| Malformed::field(name.as_str(), "holds a control character"))?;
        match name.as_str() {
            "content-length" => said.length(value),
            "transfer-encoding" => said.coding(&value),
            "connection" => {
                if said.connection(&value) {
                    headers.append(name, value);
                }
            }
            "trailer" => {
                headers.append(name, value);
                said.announces = true;
            }
            "upgrade" => said.websocket = value.as_bytes().eq_ignore_ascii_case(b"websocket"),
            "set-cookie" if cookies::sets(value.as_bytes(), asked.cookie_name) => {
                // Nobody but us sets our cookie; what is to be made of it is for the gate to say.
                asked.said_of_cookie.borrow_mut().push(value);
            }
            "www-authenticate" => {
                said.logs_in |= ties::names_one(value.as_bytes());
                headers.append(name, value);
            }
            _ => {
                said.logs_in |= says_logged_in(&name, &value);
                if !hop_by_hop::is_always(&name) {
                    headers.append(name, value);
                }
            }
        }
    }
    let switched = status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && !said.websocket {
        return Err(Malformed::Told("it switched to another protocol than WebSocket"));
    }
    let announced = if said.announces {
        let announced = trailers::announced(&headers, |name| asked.guarded.covers(name));
        headers.remove(header::TRAILER);
        announced
    } else {
        Vec::new()
    };
    let framing = said.framing(status, is_1_1, asked)?;
    let keeps = !said.close && (is_1_1 || said.keep_alive) && !said.hides_more(status);
    if said.names_headers {
        hop_by_hop::strip(&mut headers);
    }
    // Beside chunks a length would now be believed; with 101 and 204 it has no place (RFC 9110 section 8.6).
    if said.coding == Coding::None
        && !switched
        && status != StatusCode::NO_CONTENT
        && let Some(line) = said.length_line.take()
    {
        headers.insert(header::CONTENT_LENGTH, line);
    }
    if let Some(value) = trailers::announcement(&announced) {
        headers.insert(header::TRAILER, value);
    }
    if switched {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    Ok(Head { status, headers, framing, keeps, logs_in: said.logs_in, trailers: announced })
}

impl Said {
    /// Equal lengths are one, on several lines or in a list.
    fn length(&mut self, line: HeaderValue) {
        self.oddly |= self.length_line.is_some();
        let mut lengths = tokens(line.as_bytes()).map(digits);
        let mut length = lengths.next().flatten();
        for other in lengths {
            self.oddly = true;
            length = length.filter(|length| other == Some(*length));
        }
        if length.is_none() || (self.length_line.is_some() && self.length != length) {
            self.lengths_differ = true;
        }
        if self.length_line.is_none() {
            self.length = length;
            let canonical = matches!(line.as_bytes(), [b'0'] | [b'1'..=b'9', ..]) && !self.oddly;
            self.length_line = if canonical { Some(line) } else { length.map(HeaderValue::from) };
        }
    }

    /// `identity` codes nothing, and `chunked` said twice was done once: nobody does it twice. `identity` behind
    /// `chunked` would be the last coding, which to some means that the answer ends with the connection.
    fn coding(&mut self, line: &HeaderValue) {
        for coding in tokens(line.as_bytes()) {
            let found = if coding.eq_ignore_ascii_case(b"identity") && self.coding == Coding::None {
                Coding::None
            } else if coding.eq_ignore_ascii_case(b"chunked") {
                Coding::Chunked
            } else {
                Coding::Other
            };
            self.oddly |= found == Coding::None || self.coding != Coding::None;
            self.coding = self.coding.max(found);
        }
    }

    /// Whether bytes may follow that are no answer to the next request: a body behind an answer that has none, or what
    /// another reading of the framing would have left.
    fn hides_more(&self, status: StatusCode) -> bool {
        let codes = self.coding != Coding::None;
        let announces = codes || self.lengths_differ || self.length.is_some_and(|length| length > 0);
        let empty = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.oddly || (empty && announces) || (codes && (self.lengths_differ || self.length_line.is_some()))
    }

    /// Whether it names headers.
    fn connection(&mut self, line: &HeaderValue) -> bool {
        let mut names = false;
        for token in tokens(line.as_bytes()) {
            if says_close(token) {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if !token.is_empty() {
                names = true;
            }
        }
        self.names_headers |= names;
        names
    }

    fn framing(&self, status: StatusCode, is_1_1: bool, asked: &Asked<'_>) -> Result<Framing, Malformed> {
        if self.coding == Coding::Other {
            return Err(Malformed::field("Transfer-Encoding", "names a coding other than chunked"));
        }
        if self.coding == Coding::Chunked && !is_1_1 {
            return Err(Malformed::field("Transfer-Encoding", "is chunked, in an answer of HTTP/1.0"));
        }
        let nothing = matches!(status, StatusCode::NO_CONTENT | StatusCode::SWITCHING_PROTOCOLS);
        if self.lengths_differ && self.coding == Coding::None && !nothing {
            return Err(Malformed::field("Content-Length", "contradicts itself or is not a number"));
        }
        Ok(if nothing || asked.head_only || status == StatusCode::NOT_MODIFIED {
            Framing::None
        } else if self.coding == Coding::Chunked {
            Framing::Chunked
        } else if let Some(length) = self.length {
            Framing::Length(length)
        } else {
            Framing::Close
        })
    }
}

/// Digits and nothing else.
fn digits(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits).and_then(|digits| digits.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(text: &[u8], head_only: bool, upgrade: bool) -> (Result<Read, Malformed>, Vec<u8>) {
        let mut bytes = BytesMut::from(text);
        let guarded = Guarded::new(&[], false);
        let said_of_cookie = RefCell::default();
        let asked = Asked {
            head_only,
            upgrade,
            guarded: &guarded,
            cookie_name: "access_token",
            said_of_cookie: &said_of_cookie,
        };
        let read = read(&mut bytes, &asked);
        (read, bytes.to_vec())
    }

    fn head(text: &str) -> Head {
        match read_as(text.as_bytes(), false, false).0 {
            Ok(Read::Head(head)) => head,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn fields(head: &Head) -> Vec<String> {
        head.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn an_answer_ends_where_its_head_says() {
        let chunked = "Transfer-Encoding: chunked\r\n";
        for (status, lines, head_only, framing, length) in [
            ("200 OK", "Content-Length: 5\r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Content-Length: 5\r\nContent-Length: 5\r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Content-Length: 005\r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Content-Length:5\t \r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Content-Length: 0\r\n", false, Framing::Length(0), Some("0")),
            ("200 OK", "", false, Framing::Close, None),
            ("200 OK", chunked, false, Framing::Chunked, None),
            ("200 OK", "Transfer-Encoding: CHUNKED\r\nContent-Length: 3\r\n", false, Framing::Chunked, None),
            ("200 OK", "Content-Length: x\r\nTransfer-Encoding: chunked\r\n", false, Framing::Chunked, None),
            // What can be read in one way only is taken, however oddly it is said.
            ("200 OK", "Content-Length: 5, 5\r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Content-Length: 05 ,\t5,5\r\nContent-Length: 5\r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Transfer-Encoding: identity\r\nContent-Length: 5\r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Content-Length: 5\r\nTransfer-Encoding: Identity\r\n", false, Framing::Length(5), Some("5")),
            ("200 OK", "Transfer-Encoding: identity\r\n", false, Framing::Close, None),
            ("200 OK", "Transfer-Encoding: identity, chunked\r\n", false, Framing::Chunked, None),
            ("200 OK", "Transfer-Encoding: chunked, chunked\r\n", false, Framing::Chunked, None),
            (
                "200 OK",
                "Transfer-Encoding: chunked\r\nX: y\r\nTransfer-Encoding: Chunked\r\n",
                false,
                Framing::Chunked,
                None,
            ),
            ("200 OK", "Content-Length: 7\r\n", true, Framing::None, Some("7")),
            ("200 OK", chunked, true, Framing::None, None),
            ("304 Not Modified", "Content-Length: 7\r\n", false, Framing::None, Some("7")),
            ("204 No Content", "Content-Length: 7\r\n", false, Framing::None, None),
            ("204 No Content", chunked, false, Framing::None, None),
            ("200", "Content-Length: 1\r\n", false, Framing::Length(1), Some("1")),
            ("200 \u{e9}t\u{e9}", "Content-Length: 1\r\n", false, Framing::Length(1), Some("1")),
            ("999 Odd", "Content-Length: 1\r\n", false, Framing::Length(1), Some("1")),
        ] {
            let text = format!("HTTP/1.1 {status}\r\n{lines}\r\nrest");
            let (read, left) = read_as(text.as_bytes(), head_only, false);
            let Ok(Read::Head(head)) = read else { panic!("{text:?}: {read:?}") };
            assert_eq!(head.framing, framing, "{text:?}");
            assert_eq!(head.headers.get("content-length").map(|line| line.to_str().unwrap()), length, "{text:?}");
            assert!(!head.headers.contains_key("transfer-encoding"));
            assert_eq!(left, b"rest");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_or_in_none_is_no_answer() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: ,5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5, x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked,\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: identity, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked;q=1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
            "HTTP/1.1 200 OK\r\n X: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\x7f\r\n\r\n",
            "HTTP/1.1 200 OK\rX: a\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 +200 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/0.9 200 OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "SSH-2.0-something\r\n",
            "<html>",
        ] {
            let read = read_as(text.as_bytes(), false, false).0;
            assert!(read.is_err(), "{text:?}: {read:?}");
        }
        // For HEAD the lengths count, too: they are passed on.
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n";
        assert!(read_as(text, true, false).0.is_err());
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (lines, told) in [
            ("Content-Length: 2\r\nContent-Length: 3\r\n", "Content-Length contradicts itself or is not a number"),
            ("Content-Length: five\r\n", "Content-Length contradicts"),
            ("Transfer-Encoding: gzip\r\n", "Transfer-Encoding names a coding other than chunked"),
            ("A: b\r\nX-Odd: a\0b\r\n", "X-Odd line is not a header"),
            ("A: b\r\nX Odd: a\r\n", "X Odd line is not a header"),
            ("A: b\r\nno colon\r\n", "no colon line is not a header"),
            ("A: b\r\nX\u{1b}[2J: a\r\n", "X\\u{1b}[2J line is not a header"),
        ] {
            let error = read_as(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes(), false, false).0.unwrap_err();
            assert!(error.to_string().contains(told), "{lines:?}: {error}");
        }
        let error = read_as(b"SSH-2.0-x\r\n\r\n", false, false).0.unwrap_err();
        assert!(matches!(error, Malformed::Http(_)), "{error}");
    }

    #[test]
    fn a_head_has_limits() {
        let with = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(head(&with(MOST_HEADERS)).headers.len(), MOST_HEADERS);
        assert!(read_as(with(MOST_HEADERS + 1).as_bytes(), false, false).0.is_err());
        let long = |length: usize| format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(length));
        assert!(matches!(read_as(long(60_000).as_bytes(), false, false).0, Ok(Read::Hungry)));
        assert!(read_as(long(70_000).as_bytes(), false, false).0.is_err());
        assert!(read_as(format!("{}\r\n\r\n", long(70_000)).as_bytes(), false, false).0.is_err());
    }

    #[test]
    fn a_part_of_a_head_is_none() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n";
        for length in 0..whole.len() {
            assert!(matches!(read_as(&whole[..length], false, false).0, Ok(Read::Hungry)), "{length}");
        }
    }

    #[test]
    fn interim_answers_are_no_answers() {
        for status in ["100 Continue", "102 Processing", "103 Early Hints", "199 X"] {
            let text = format!("HTTP/1.1 {status}\r\nLink: x\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200");
            let (read, left) = read_as(text.as_bytes(), false, false);
            assert!(matches!(read, Ok(Read::Interim { keeps: false })), "{read:?}");
            assert_eq!(left, b"HTTP/1.1 200");
        }
    }

    #[test]
    fn a_connection_is_kept_unless_somebody_closes_it() {
        for (version, line, keeps) in [
            ("1.1", "", true),
            ("1.1", "Connection: x-close, closed\r\n", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.1", "Connection: \"close\"\r\n", false),
            ("1.1", "Connection: CLOSE ; x=y\r\n", false),
            ("1.1", "Connection: keep-alive,\tclose;\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: Keep-Alive, close\r\n", false),
        ] {
            assert_eq!(head(&format!("HTTP/{version} 200 OK\r\n{line}\r\n")).keeps, keeps, "{version} {line}");
        }
    }

    #[test]
    fn a_connection_on_which_more_may_come_is_not_kept() {
        for (status, lines, keeps) in [
            (200, "Content-Length: 5\r\n", true),
            (200, "Transfer-Encoding: chunked\r\n", true),
            // Nothing announced, nothing to come.
            (204, "", true),
            (304, "ETag: x\r\n", true),
            (204, "Content-Length: 0\r\n", true),
            (304, "Content-Length: 0\r\n", true),
            (204, "Content-Length: 5\r\n", false),
            (304, "Content-Length: 5\r\n", false),
            (204, "Content-Length: x\r\n", false),
            (204, "Transfer-Encoding: chunked\r\n", false),
            (304, "Transfer-Encoding: chunked\r\n", false),
            // Who stands between may have read it in another way.
            (200, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", false),
            (200, "Content-Length: 5\r\nContent-Length: 5\r\n", false),
            (200, "Content-Length: 5, 5\r\n", false),
            (200, "Transfer-Encoding: identity\r\nContent-Length: 5\r\n", false),
            (200, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", false),
            (200, "Transfer-Encoding: chunked, chunked\r\n", false),
            (200, "Transfer-Encoding: identity, chunked\r\n", false),
        ] {
            let text = format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
            assert_eq!(head(&text).keeps, keeps, "{text:?}");
        }
        for (lines, expected) in [
            ("Link: </x>; rel=preload\r\nContent-Length: 0\r\nConnection: keep-alive\r\n", true),
            ("Content-Length: 5\r\n", false),
            ("transfer-encoding: chunked\r\n", false),
            ("CONNECTION: x, close\r\n", false),
        ] {
            let text = format!("HTTP/1.1 103 Early Hints\r\n{lines}\r\n");
            let read = read_as(text.as_bytes(), false, false).0;
            assert!(matches!(read, Ok(Read::Interim { keeps }) if keeps == expected), "{text:?}: {read:?}");
        }
    }

    #[test]
    fn what_belongs_to_the_connection_stays_and_so_does_our_cookie() {
        let head = head(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\nConnection: close, x-hop\r\n\
             X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nSet-Cookie: a=b\r\n\
             Set-Cookie: access_token=evil\r\nSet-Cookie: c=d\r\nServer: x\r\n\
             Trailer: x-sum, content-length, set-cookie, X_Forwarded_User\r\n\r\n",
        );
        assert_eq!(head.trailers, ["x-sum"]);
        let mut left = fields(&head);
        left.sort();
        assert_eq!(left, ["server=x", "set-cookie=a=b", "set-cookie=c=d", "trailer=x-sum"]);
    }

    #[test]
    fn an_upgrade_to_something_else_is_no_answer() {
        for upgrade in ["", "Upgrade: h2c\r\n"] {
            let text = format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}Connection: upgrade\r\n\r\n");
            assert!(read_as(text.as_bytes(), false, true).0.is_err(), "{upgrade}");
        }
    }

    #[test]
    fn an_upgrade_that_was_asked_for_is_passed_on() {
        let text = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade, x\r\nX: y\r\n\
                     Sec-WebSocket-Accept: z\r\nContent-Length: 5\r\n\r\nfirst";
        let (read, left) = read_as(text, false, true);
        let Ok(Read::Head(head)) = read else { panic!("{read:?}") };
        let mut kept = fields(&head);
        kept.sort();
        assert_eq!(kept, ["connection=upgrade", "sec-websocket-accept=z", "upgrade=websocket"]);
        assert_eq!((head.framing, &*left), (Framing::None, &b"first"[..]));
    }
}
