//! HTTP/1.1 over plain sockets, byte for byte: nothing is tidied up on the way out or in.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::wait::GENEROUS;

/// Something that bytes go through in both directions.
pub(crate) trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A head: the first line and the fields, names as they stood on the wire.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) first_line: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// Every value of a field, whatever the case of its name.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        all(&self.fields, name)
    }
}

fn all(fields: &[(String, Vec<u8>)], name: &str) -> Vec<String> {
    fields
        .iter()
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .collect()
}

/// Reads bytes, heads and bodies; keeps what it has read too much.
pub(crate) struct Reader<S> {
    pub(crate) stream: S,
    pub(crate) buffered: Vec<u8>,
    /// Every byte that was taken from the stream.
    pub(crate) taken: Vec<u8>,
    /// Whether `taken` is kept: not for the large bodies.
    pub(crate) keep_taken: bool,
}

impl<S: Read> Reader<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffered: Vec::new(), taken: Vec::new(), keep_taken: true }
    }

    /// Reads once more; `false` at the end.
    pub(crate) fn fill(&mut self) -> io::Result<bool> {
        let mut piece = [0; 16 * 1024];
        let count = loop {
            match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.buffered.extend_from_slice(&piece[..count]);
        if self.keep_taken {
            self.taken.extend_from_slice(&piece[..count]);
        }
        Ok(count > 0)
    }

    /// A line without its line end.
    pub(crate) fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut seen = 0;
        loop {
            if let Some(found) = self.buffered[seen..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffered.drain(..=seen + found).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
            seen = self.buffered.len();
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn fields(&mut self) -> io::Result<Vec<(String, Vec<u8>)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or_else(|| {
                panic!("a field without a colon: {:?}", String::from_utf8_lossy(&line));
            });
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            fields.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }

    /// A head, or `None` where the stream ended before its first byte.
    pub(crate) fn head(&mut self) -> io::Result<Option<Head>> {
        if self.buffered.is_empty() && !self.fill()? {
            return Ok(None);
        }
        let first_line = String::from_utf8_lossy(&self.line()?).into_owned();
        Ok(Some(Head { first_line, fields: self.fields()? }))
    }

    /// Exactly so many bytes, or fewer at the end.
    pub(crate) fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffered.len() < count {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffered.drain(..count).collect())
    }

    /// One chunk; an empty one is the last.
    pub(crate) fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.line()?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let size = text.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("no chunk size: {text:?}"));
        if size == 0 {
            return Ok(Vec::new());
        }
        let chunk = self.exactly(size)?;
        assert!(self.line()?.is_empty(), "a chunk that is longer than it says");
        Ok(chunk)
    }

    /// A whole chunked body and its trailers.
    pub(crate) fn chunked(&mut self) -> io::Result<(Vec<u8>, Vec<(String, Vec<u8>)>)> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok((body, self.fields()?));
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? {}
        Ok(std::mem::take(&mut self.buffered))
    }
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
    /// How many 1xx answers came before it.
    pub(crate) informational: Vec<u16>,
}

impl Response {
    /// The only value of a field; a second copy is a failure.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let mut values = self.all(name);
        assert!(values.len() < 2, "{name} came {} times", values.len());
        values.pop()
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        all(&self.fields, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The value that this answer sets for a cookie; empty where it clears it.
    pub(crate) fn cookie(&self, name: &str) -> Option<String> {
        let prefix = format!("{name}=");
        let mut values: Vec<String> = self
            .all("set-cookie")
            .iter()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(|rest| rest.split(';').next().unwrap_or_default().to_owned())
            .collect();
        assert!(values.len() < 2, "{name} is set {} times", values.len());
        values.pop()
    }

    /// The fresh `access_token`, where one came.
    pub(crate) fn token(&self) -> Option<String> {
        self.cookie("access_token").filter(|value| !value.is_empty())
    }

    /// Whether the answer clears the `access_token` cookie.
    pub(crate) fn clears_the_cookie(&self) -> bool {
        self.cookie("access_token").is_some_and(|value| value.is_empty())
    }

    /// Fails unless the status is this one, and shows the answer then.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}\n{:?}", self.text(), self.fields);
        self
    }
}

/// The fields that an answer may carry: those of Doorward and those that the scripted upstreams send.
/// What is not here has leaked from somewhere.
const ALLOWED: &[&str] = &[
    "age",
    "allow",
    "accept-ranges",
    "cache-control",
    "clear-site-data",
    "connection",
    "content-language",
    "content-length",
    "content-range",
    "content-security-policy",
    "content-type",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "permissions-policy",
    "pragma",
    "referrer-policy",
    "retry-after",
    "sec-websocket-accept",
    "set-cookie",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "www-authenticate",
    "x-content-type-options",
    "x-frame-options",
    "x-request-id",
];

/// The further ones of `/check`.
const ALLOWED_ON_CHECK: &[&str] = &["x-auth-request-user", "x-auth-request-groups", "x-auth-request-email", "x-team"];

/// Fails where an answer carries a field that nobody should see.
#[track_caller]
fn look_for_leaks(response: &Response, target: &str) {
    let path = target.split('?').next().unwrap_or_default();
    for (name, value) in response.fields.iter().chain(&response.trailers) {
        let lower = name.to_ascii_lowercase();
        let allowed = ALLOWED.contains(&lower.as_str())
            || lower.starts_with("x-upstream-")
            || (path.ends_with("/gateways/revocations") && lower == "x-accel-buffering")
            || (path.ends_with("/check") && ALLOWED_ON_CHECK.contains(&lower.as_str()));
        assert!(allowed, "a field that must not go out with {target:?}: {name}: {:?}", String::from_utf8_lossy(value));
    }
}

/// A request to be written.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), fields: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    #[must_use]
    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub(crate) fn cookie(self, token: &str) -> Self {
        self.field("Cookie", &format!("access_token={token}"))
    }

    #[must_use]
    pub(crate) fn bearer(self, token: &str) -> Self {
        self.field("Authorization", &format!("Bearer {token}"))
    }

    /// As a browser asks for a page.
    #[must_use]
    pub(crate) fn navigation(self) -> Self {
        self.field("Sec-Fetch-Mode", "navigate")
            .field("Sec-Fetch-Dest", "document")
            .field("Sec-Fetch-Site", "same-origin")
            .field("Accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
    }

    #[must_use]
    pub(crate) fn json(mut self, value: &serde_json::Value) -> Self {
        self.body = value.to_string().into_bytes();
        self.field("Content-Type", "application/json")
    }

    #[must_use]
    pub(crate) fn form(mut self, pairs: &[(&str, &str)]) -> Self {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs);
        self.body = form.finish().into_bytes();
        self.field("Content-Type", "application/x-www-form-urlencoded")
    }

    #[must_use]
    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    fn bytes(&self, host: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            let _ = write!(head, "Host: {host}\r\n");
        }
        for (name, value) in &self.fields {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let framed = self.fields.iter().any(|(name, _)| {
            name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
        });
        if !framed && (!self.body.is_empty() || self.method == "POST") {
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// One connection to a gateway.
pub(crate) struct Connection {
    pub(crate) reader: Reader<TcpStream>,
    host: String,
    /// The backend is a program of others, which sends fields of its own.
    any_field: bool,
}

impl Connection {
    pub(crate) fn to(address: SocketAddr) -> Self {
        Self::try_to(address).unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    pub(crate) fn try_to(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(GENEROUS))?;
        stream.set_write_timeout(Some(GENEROUS))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: Reader::new(stream), host: address.to_string(), any_field: false })
    }

    /// For answers of real backends: fields that no scripted one sends are no leak there.
    pub(crate) fn with_any_field(mut self) -> Self {
        self.any_field = true;
        self
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.reader.stream
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.reader.stream.write_all(bytes).unwrap();
    }

    /// Writes a request and reads the answer.
    pub(crate) fn send(&mut self, request: &Request) -> Response {
        self.try_send(request).unwrap_or_else(|error| panic!("{} {}: {error}", request.method, request.target))
    }

    pub(crate) fn try_send(&mut self, request: &Request) -> io::Result<Response> {
        self.reader.stream.write_all(&request.bytes(&self.host))?;
        self.try_read(&request.method, &request.target)
    }

    /// Writes the request only.
    pub(crate) fn begin(&mut self, request: &Request) {
        let bytes = request.bytes(&self.host);
        self.write(&bytes);
    }

    /// Reads a head and leaves the body where it is. 1xx answers are skipped and counted, 101 is not skipped.
    pub(crate) fn head(&mut self, target: &str) -> io::Result<Response> {
        let mut informational = Vec::new();
        loop {
            let head = self.reader.head()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let status = head.first_line.split(' ').nth(1).and_then(|code| code.parse().ok());
            let status: u16 = status.unwrap_or_else(|| panic!("no status line: {:?}", head.first_line));
            if (100..200).contains(&status) && status != 101 {
                informational.push(status);
                continue;
            }
            let response =
                Response { status, fields: head.fields, body: Vec::new(), trailers: Vec::new(), informational };
            self.look_for_leaks(&response, target);
            return Ok(response);
        }
    }

    fn look_for_leaks(&self, response: &Response, target: &str) {
        if !self.any_field {
            look_for_leaks(response, target);
        }
    }

    /// Reads a whole answer.
    pub(crate) fn read(&mut self, method: &str, target: &str) -> Response {
        self.try_read(method, target).unwrap_or_else(|error| panic!("the answer to {method} {target}: {error}"))
    }

    pub(crate) fn try_read(&mut self, method: &str, target: &str) -> io::Result<Response> {
        let mut response = self.head(target)?;
        let length = response.all("content-length");
        assert!(length.len() < 2, "{length:?}");
        let coding = response.all("transfer-encoding");
        if method == "HEAD" || matches!(response.status, 101 | 204 | 304) {
            return Ok(response);
        }
        if !coding.is_empty() {
            assert_eq!(coding, ["chunked"]);
            assert_eq!(length, Vec::<String>::new(), "two framings at once");
            (response.body, response.trailers) = self.reader.chunked()?;
            self.look_for_leaks(&response, target);
        } else if let Some(length) = length.first() {
            response.body = self.reader.exactly(length.parse().unwrap())?;
        } else {
            response.body = self.reader.rest()?;
        }
        Ok(response)
    }

    /// Fails unless the other side closes within `limit`; bytes that come before are dropped.
    pub(crate) fn closes_within(&mut self, limit: Duration) -> bool {
        let deadline = std::time::Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            self.reader.stream.set_read_timeout(Some(left)).unwrap();
            match self.reader.fill() {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => {
                    return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        }
    }

    pub(crate) fn finish_writing(&mut self) {
        let _ = self.reader.stream.shutdown(Shutdown::Write);
    }
}

/// Sends exact bytes on a fresh connection and reads everything until the other side closes or has answered
/// `answers` times.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8], answers: usize) -> Vec<Response> {
    let mut connection = Connection::to(address);
    // The other side may refuse before it has read everything.
    let _ = connection.reader.stream.write_all(bytes);
    let mut responses = Vec::new();
    while responses.len() < answers {
        match connection.try_read("GET", "raw bytes") {
            Ok(response) => responses.push(response),
            Err(_) => break,
        }
    }
    responses
}
