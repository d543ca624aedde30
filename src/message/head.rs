//! A request's head before anybody parses it: where it ends, whether its request line can be handed on as it came, and
//! what is wrong with one that can't be read.
//!
//! hyper and `http` cut a `#fragment` off and refuse some bytes that clients send and backends read. So the bytes are
//! looked at before they get there: a plain head costs two searches and one look at its request line.

use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{Method, StatusCode};
use memchr::memmem::Finder;

/// Why a head is refused before there is a request. Each has a stable code, a status and words that name the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The target holds a raw `#`.
    Fragment,
    /// The target holds a blank or a control character, or is no target.
    Target,
    /// The target is longer than a head may be.
    TargetTooLong,
    /// The first line is no request line.
    RequestLine,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// The preface of HTTP/2.
    Http2,
    /// A TLS handshake on a port that speaks plain HTTP.
    Tls,
    /// A header name with a byte that is no token, or none.
    HeaderName,
    /// A header value with a control character.
    HeaderValue,
    /// A line that ends oddly.
    LineEnd,
    /// More than `server.limits.max_headers`.
    TooManyHeaders,
    /// More than `server.limits.max_header_bytes`.
    HeadTooLarge,
    /// Not one number.
    ContentLength,
    /// Not `chunked` at last, or with HTTP/1.0.
    TransferEncoding,
    /// It did not come within `server.limits.header_timeout`.
    HeaderTimeout,
    /// What comes is not in step with what was read before.
    OutOfStep,
}

impl Unreadable {
    /// A stable reason code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Fragment => "fragment_in_target",
            Self::Target => "bad_target",
            Self::TargetTooLong => "target_too_long",
            Self::RequestLine => "bad_request_line",
            Self::Version => "unsupported_version",
            Self::Http2 => "http2_not_spoken",
            Self::Tls => "tls_on_plain_port",
            Self::HeaderName => "bad_header_name",
            Self::HeaderValue => "bad_header_value",
            Self::LineEnd => "bad_line_end",
            Self::TooManyHeaders => "too_many_headers",
            Self::HeadTooLarge => "head_too_large",
            Self::ContentLength => "bad_content_length",
            Self::TransferEncoding => "bad_transfer_encoding",
            Self::HeaderTimeout => "header_timeout",
            Self::OutOfStep => "out_of_step",
        }
    }

    /// The status that tells it.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooManyHeaders | Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version | Self::Http2 => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::HeaderTimeout => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The rule in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Fragment => "The request target holds a raw #: send it as %23, or leave the fragment away.",
            Self::Target => "The request target holds a blank or a control character, or is not a target at all.",
            Self::TargetTooLong => "The request target is longer than server.limits.max_header_bytes allows.",
            Self::RequestLine => {
                "The first line is not a request line: METHOD, one blank, target, one blank, HTTP/1.1."
            }
            Self::Version => "Only HTTP/1.1 and HTTP/1.0 are spoken here.",
            Self::Http2 => "HTTP/2 without TLS is not spoken here.",
            Self::Tls => "This port speaks plain HTTP, and a TLS handshake came: use http://.",
            Self::HeaderName => "A header line has no valid name before its colon.",
            Self::HeaderValue => "A header value holds a control character.",
            Self::LineEnd => "A line of the head does not end as a line does.",
            Self::TooManyHeaders => "There are more headers than server.limits.max_headers allows.",
            Self::HeadTooLarge => "The head is larger than server.limits.max_header_bytes allows.",
            Self::ContentLength => "Content-Length is not one number.",
            Self::TransferEncoding => "Transfer-Encoding does not end in chunked, or came with HTTP/1.0.",
            Self::HeaderTimeout => "The head did not come within server.limits.header_timeout.",
            Self::OutOfStep => "The request before this one did not end where its framing said.",
        }
    }
}

/// Path and query as they came, where they hold bytes that are encoded in the request's own target. Among the request's
/// extensions.
#[derive(Clone, Debug)]
pub struct RawTarget(pub Bytes);

impl RawTarget {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.0.split(|byte| *byte == b'?').next().unwrap_or_default()
    }
}

/// What a request line says of the head's way on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Nothing in it needs a second look.
    Plain,
    /// The target, which stands here, holds bytes that the parser refuses and that backends can read: `"`, `<`, `>`,
    /// `` ` `` and what is not ASCII.
    Odd(Range<usize>),
    /// It goes no further.
    Bad(Unreadable),
}

static END: LazyLock<[Finder<'static>; 2]> = LazyLock::new(|| [Finder::new(b"\n\r\n"), Finder::new(b"\n\n")]);

/// How many bytes of empty lines stand before the head (RFC 9112 section 2.2). A lone CR is none.
#[must_use]
pub fn empty_lines(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let [b'\n', after @ ..] | [b'\r', b'\n', after @ ..] = rest {
        rest = after;
    }
    bytes.len() - rest.len()
}

/// Where the head ends: behind its empty line. `bytes` begins with its request line.
#[must_use]
pub fn end(bytes: &[u8]) -> Option<usize> {
    let [usual, bare] = &*END;
    let first = usual.find(bytes).map(|at| at + 3);
    let before = bytes.get(..first.unwrap_or(bytes.len())).unwrap_or(bytes);
    bare.find(before).map(|at| at + 2).or(first)
}

/// Looks at the request line of a head that is there up to its first line end at least.
#[must_use]
pub fn line(head: &[u8]) -> Line {
    const VERSION_BYTES: usize = "HTTP/1.1".len();
    let Some(newline) = memchr::memchr(b'\n', head) else { return Line::Bad(Unreadable::RequestLine) };
    let text = head.get(..newline).unwrap_or_default();
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let parts = text.len().checked_sub(VERSION_BYTES).and_then(|at| text.split_at_checked(at));
    let Some((before, version)) = parts else { return Line::Bad(bad_line(text)) };
    if !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
        return Line::Bad(bad_line(text));
    }
    let Some(before) = before.strip_suffix(b" ") else { return Line::Bad(Unreadable::RequestLine) };
    let Some(blank) = memchr::memchr(b' ', before) else { return Line::Bad(bad_line(text)) };
    let range = blank + 1..before.len();
    let target = before.get(range.clone()).unwrap_or_default();
    if target.is_empty() || !is_method(before.get(..blank).unwrap_or_default()) {
        return Line::Bad(Unreadable::RequestLine);
    }
    if is_plain(target) {
        return Line::Plain;
    }
    if target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        Line::Bad(Unreadable::Target)
    } else if memchr::memchr(b'#', target).is_some() {
        Line::Bad(Unreadable::Fragment)
    } else {
        Line::Odd(range)
    }
}

/// Why a line that does not end in a version of ours is none.
fn bad_line(line: &[u8]) -> Unreadable {
    let last = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    let is_version = last
        .strip_prefix(b"HTTP/")
        .is_some_and(|number| !number.is_empty() && number.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.'));
    if is_version && memchr::memchr_iter(b' ', line).count() == 2 {
        Unreadable::Version
    } else {
        Unreadable::RequestLine
    }
}

#[expect(clippy::needless_bitwise_bool, reason = "without a way out in between, many bytes are looked at at once")]
fn is_plain(target: &[u8]) -> bool {
    target.iter().fold(true, |plain, byte| {
        let visible = byte.wrapping_sub(b'!') < 0x5e;
        plain & visible & !is_odd(*byte) & (*byte != b'#')
    })
}

/// Refused by `http` or `httparse` somewhere in a target, and sent by clients all the same.
#[expect(clippy::needless_bitwise_bool, reason = "part of the same look")]
const fn is_odd(byte: u8) -> bool {
    (byte == b'"') | (byte == b'<') | (byte == b'>') | (byte == b'`') | (byte >= 0x80)
}

fn is_method(method: &[u8]) -> bool {
    !method.is_empty() && method.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// The target with its odd bytes percent-encoded, for everything that decides: a raw byte and its encoded form mean the
/// same.
#[must_use]
pub fn encoded(target: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let mut result = String::with_capacity(target.len() + 16);
    for byte in target {
        if is_odd(*byte) {
            result.push('%');
            for digit in [byte >> 4, byte & 0xf] {
                result.push(DIGITS.get(usize::from(digit)).copied().unwrap_or_default());
            }
        } else {
            result.push(char::from(*byte));
        }
    }
    result
}

/// Path and query of a target as it came, absolute forms less what stands before.
#[must_use]
pub fn path_and_query(target: &[u8]) -> &[u8] {
    if target.starts_with(b"/") {
        return target;
    }
    let authority = memchr::memmem::find(target, b"://").and_then(|at| target.get(at + 3..)).unwrap_or_default();
    memchr::memchr2(b'/', b'?', authority).and_then(|at| authority.get(at..)).unwrap_or_default()
}

/// What the beginning of a head is known to be wrong about, whole or not. `None`: nothing so far.
#[must_use]
pub fn fault(head: &[u8], max_headers: usize) -> Option<Unreadable> {
    const MOST_METHOD_BYTES: usize = 64;
    if let [0x16, rest @ ..] = head {
        return matches!(rest, [] | [3, ..]).then_some(Unreadable::Tls).or(Some(Unreadable::RequestLine));
    }
    if head.starts_with(b"PRI * HTTP/2.0\r\n") {
        return Some(Unreadable::Http2);
    }
    if memchr::memchr(b'\n', head).is_none() {
        let beginning = head.get(..MOST_METHOD_BYTES).unwrap_or(head);
        let method = beginning.split(|byte| *byte == b' ').next().unwrap_or_default();
        return (!is_method(method)).then_some(Unreadable::RequestLine);
    }
    if let Line::Bad(unreadable) = line(head) {
        return Some(unreadable);
    }
    let mut headers = vec![httparse::EMPTY_HEADER; max_headers];
    match httparse::Request::new(&mut headers).parse(head) {
        Ok(_) => None,
        Err(httparse::Error::HeaderName) => Some(Unreadable::HeaderName),
        Err(httparse::Error::HeaderValue) => Some(Unreadable::HeaderValue),
        Err(httparse::Error::TooManyHeaders) => Some(Unreadable::TooManyHeaders),
        Err(httparse::Error::Version) => Some(Unreadable::Version),
        Err(httparse::Error::Token | httparse::Error::Status) => Some(Unreadable::RequestLine),
        Err(httparse::Error::NewLine) => Some(Unreadable::LineEnd),
    }
}

/// Why a whole head was refused by the parser: what [`fault`] finds, or else its framing.
#[must_use]
pub fn refusal(head: &[u8], max_headers: usize) -> Unreadable {
    if let Some(fault) = fault(head, max_headers) {
        return fault;
    }
    let mut headers = vec![httparse::EMPTY_HEADER; max_headers];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(head).is_err() {
        return Unreadable::RequestLine;
    }
    if request.headers.iter().any(|header| header.name.eq_ignore_ascii_case("transfer-encoding")) {
        Unreadable::TransferEncoding
    } else if request.headers.iter().any(|header| header.name.eq_ignore_ascii_case("content-length")) {
        Unreadable::ContentLength
    } else {
        Unreadable::Target
    }
}

/// Method and path of a head that is refused, as far as they can be told, for the log: the path less its query, with
/// nothing in it that does not print. `-` where there is no method.
#[must_use]
pub fn told(head: &[u8]) -> (Method, String) {
    const MOST_BYTES: usize = 1024;
    let nothing = || (Method::from_bytes(b"-").unwrap_or_default(), String::new());
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.splitn(2, |byte| *byte == b' ');
    let Some(method) = words.next().filter(|method| method.len() <= 32 && is_method(method)) else { return nothing() };
    let Ok(method) = Method::from_bytes(method) else { return nothing() };
    let rest = words.next().unwrap_or_default();
    let end = memchr::memrchr(b' ', rest).unwrap_or(rest.len());
    let target = rest.get(..end).unwrap_or_default();
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let path = path.get(..MOST_BYTES).unwrap_or(path);
    let told = path.iter().map(|byte| match byte {
        b' '..=b'~' => char::from(*byte).to_string(),
        other => format!("%{other:02X}"),
    });
    (method, told.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_ends_behind_its_first_empty_line() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET"[..], Some(24)),
            (b"GET / HTTP/1.1\nA: b\n\nGET /\r\n\r\n", Some(21)),
            (b"GET / HTTP/1.1\nA: b\n\r\nGET", Some(22)),
            (b"GET / HTTP/1.1\r\nA: b\r\n", None),
            (b"", None),
        ] {
            assert_eq!(end(bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(empty_lines(b"\r\n\n\r\nGET"), 5);
        assert_eq!(empty_lines(b"\rGET"), 0);
    }

    #[test]
    fn a_request_line_is_plain_odd_or_refused() {
        let of = |line_: &str| line(format!("{line_}\r\n\r\n").as_bytes());
        assert_eq!(of("GET /a|b{c}^[d]\\?e=f HTTP/1.1"), Line::Plain);
        assert_eq!(of("GET /?q=up{job=\"x\"} HTTP/1.1"), Line::Odd(4..19));
        assert_eq!(of("GET /caf\u{e9} HTTP/1.0"), Line::Odd(4..10));
        for (line, why) in [
            ("DELETE /C#notes HTTP/1.1", Unreadable::Fragment),
            ("GET /?a=\"#b HTTP/1.1", Unreadable::Fragment),
            ("GET http://h/a#b HTTP/1.1", Unreadable::Fragment),
            ("GET # HTTP/1.1", Unreadable::Fragment),
            ("GET /a b HTTP/1.1", Unreadable::Target),
            ("GET /a\tb HTTP/1.1", Unreadable::Target),
            ("GET /a\0 HTTP/1.1", Unreadable::Target),
            ("GET /a\u{7f} HTTP/1.1", Unreadable::Target),
            ("GET  HTTP/1.1", Unreadable::RequestLine),
            ("GET / HTTP/1.2", Unreadable::Version),
            ("GET / HTTP/3", Unreadable::Version),
            ("GET /", Unreadable::RequestLine),
            ("G(T / HTTP/1.1", Unreadable::RequestLine),
        ] {
            assert_eq!(of(line), Line::Bad(why), "{line:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_seen_as_early_as_it_can_be() {
        for (head, why) in [
            (&b"\x16"[..], Some(Unreadable::Tls)),
            (b"\x16\x03\x01\x02\x00", Some(Unreadable::Tls)),
            (b"\x00", Some(Unreadable::RequestLine)),
            (b"SSH-2.0-Open", None),
            (b"SSH-2.0-Open\r\n", Some(Unreadable::RequestLine)),
            (b"PRI * HTTP/2.0\r\n\r\n", Some(Unreadable::Http2)),
            (b"GET / HTTP/1.1\r\nA b\r\n", Some(Unreadable::HeaderName)),
            (b"GET / HTTP/1.1\r\nA: \x01\r\n", Some(Unreadable::HeaderValue)),
            (b"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n", Some(Unreadable::TooManyHeaders)),
            (b"GET / HTTP/1.1\r\nA: 1\r\n\r\n", None),
        ] {
            assert_eq!(fault(head, 2), why, "{}", head.escape_ascii());
        }
        let framed = |fields: &str| refusal(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes(), 10);
        assert_eq!(framed("Content-Length: x"), Unreadable::ContentLength);
        assert_eq!(framed("Transfer-Encoding: x"), Unreadable::TransferEncoding);
    }

    #[test]
    fn a_raw_target_is_told_from_what_stands_before_it() {
        for (target, rest) in
            [("/a?b", "/a?b"), ("http://h/a\"b", "/a\"b"), ("http://h?\"", "?\""), ("http://h", ""), ("*", "")]
        {
            assert_eq!(path_and_query(target.as_bytes()), rest.as_bytes());
        }
        assert_eq!(encoded(b"/\xe9\"<>`{}|\\^"), "/%E9%22%3C%3E%60{}|\\^");
        assert_eq!(told(b"GET /a\xe9\x1b?secret HTTP/1.1\r\n").1, "/a%E9%1B");
        assert_eq!(told(b"\x16\x03").0.as_str(), "-");
    }

    proptest! {
        /// Whatever is handed on as plain is taken by the parser to the byte, and nothing of it is cut off.
        #[test]
        fn a_plain_target_is_taken_whole(target in "/[!-~]{0,20}") {
            let head = format!("GET {target} HTTP/1.1\r\n\r\n");
            if line(head.as_bytes()) == Line::Plain {
                let uri: http::Uri = target.parse().unwrap();
                prop_assert_eq!(uri.path_and_query().unwrap().as_str(), target);
            }
        }

        /// Every other visible byte can be handed on in its encoded form.
        #[test]
        fn an_odd_target_is_taken_encoded(target in prop::collection::vec(0x21_u8.., 0..20)) {
            let target = [b"/", &*target].concat();
            let head = [b"GET ", &*target, b" HTTP/1.1\r\n\r\n"].concat();
            if let Line::Odd(range) = line(&head) {
                prop_assert_eq!(&head[range], &*target);
                let encoded = encoded(&target);
                let uri: http::Uri = encoded.parse().unwrap();
                prop_assert_eq!(uri.path_and_query().unwrap().as_str(), &encoded);
                let decoded: Vec<u8> = percent_encoding::percent_decode_str(&encoded).collect();
                let plain: Vec<u8> = percent_encoding::percent_decode(&target).collect();
                prop_assert_eq!(decoded, plain);
            }
        }

        #[test]
        fn any_bytes_can_be_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (end(&bytes), line(&bytes), fault(&bytes, 16), refusal(&bytes, 16), told(&bytes));
        }
    }
}
