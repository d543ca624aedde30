//! How the bytes of an input become a play.
//!
//! Line by line:
//!
//! ```text
//! >1                    from here on the client is peer 1, on a new connection
//! #r0                   an event: see `Event`
//! GET /staff            a request begins; ` HTTP/1.1` and a `Host` are added where they are missing
//! Cookie: access_token=$0    its headers; `$0` is the first token that was given out
//! .body                 a line of its body; a `Content-Length` is added where it is missing
//!                       an empty line, an event or the end sends it
//! ```

use super::people::People;

/// Requests and events of one play.
const MOST: usize = 24;
/// Names the request by which a request at the backend is recognised. No play may hold it.
const MARK: &str = "x-step";

pub(super) enum Step {
    Peer(usize),
    Event(Event),
    Request(Request),
}

/// What happens between requests. Numbers are of people or of tokens, and wrap around.
pub(super) enum Event {
    /// `r`: the session of a token is ended.
    Revoke(usize),
    /// `a`: everything of a person is ended.
    RevokeAccount(usize),
    /// `A`: everything of everybody.
    RevokeAll,
    /// `d` and `e`
    Disable(usize),
    Enable(usize),
    /// `x`
    Remove(usize),
    /// `o`
    SignOutEverywhere(usize),
    /// `g`, a person, and a set of groups as the bits of a second digit
    SetGroups(usize, usize),
    /// `t`: time passes.
    Wait(usize),
    /// `i`: a person logs in.
    LogIn(usize),
}

#[derive(Default)]
pub(super) struct Request {
    lines: Vec<Vec<u8>>,
    body: Option<Vec<u8>>,
}

pub(super) fn read(data: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    if data.to_ascii_lowercase().windows(MARK.len()).any(|part| part == MARK.as_bytes()) {
        return steps;
    }
    let mut request = Request::default();
    for line in data.split(|byte| *byte == b'\n').chain([&b""[..]]) {
        let between = match line {
            [] => None,
            [b'>', number, ..] => Some(Step::Peer(digit(*number))),
            [b'#', kind, first, rest @ ..] => event(*kind, digit(*first), rest).map(Step::Event),
            [b'.', body @ ..] if !request.lines.is_empty() => {
                request.body = Some(match request.body.take() {
                    Some(before) => [&before, &b"\r\n"[..], body].concat(),
                    None => body.to_vec(),
                });
                continue;
            }
            line => {
                request.lines.push(line.to_vec());
                continue;
            }
        };
        if !request.lines.is_empty() {
            steps.push(Step::Request(std::mem::take(&mut request)));
        }
        steps.extend(between);
    }
    steps.truncate(MOST);
    steps
}

fn digit(byte: u8) -> usize {
    usize::from(byte.wrapping_sub(b'0'))
}

fn event(kind: u8, first: usize, rest: &[u8]) -> Option<Event> {
    Some(match kind {
        b'r' => Event::Revoke(first),
        b'a' => Event::RevokeAccount(first),
        b'A' => Event::RevokeAll,
        b'd' => Event::Disable(first),
        b'e' => Event::Enable(first),
        b'x' => Event::Remove(first),
        b'o' => Event::SignOutEverywhere(first),
        b'g' => Event::SetGroups(first, rest.first().map_or(0, |byte| digit(*byte))),
        b't' => Event::Wait(first),
        b'i' => Event::LogIn(first),
        _ => return None,
    })
}

impl Request {
    /// The bytes of the request, marked with its number.
    pub(super) fn written(&self, number: usize, people: &People) -> Vec<u8> {
        let mut lines = self.lines.iter();
        let mut bytes = people.expanded(lines.next().map_or(b"", Vec::as_slice));
        if !bytes.windows(6).any(|part| part == b" HTTP/") {
            bytes.extend_from_slice(b" HTTP/1.1");
        }
        bytes.extend_from_slice(format!("\r\nX-Step: {number}\r\n").as_bytes());
        for line in lines {
            bytes.extend(people.expanded(line));
            bytes.extend_from_slice(b"\r\n");
        }
        if !self.has("host") {
            bytes.extend_from_slice(b"Host: gw.test\r\n");
        }
        if let Some(body) = &self.body
            && !self.has("content-length")
            && !self.has("transfer-encoding")
        {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend(people.expanded(self.body.as_deref().unwrap_or_default()));
        bytes
    }

    /// Whether a header of that name is there in its proper spelling.
    fn has(&self, name: &str) -> bool {
        let is_it = |line: &Vec<u8>| {
            line.split(|byte| *byte == b':').next().is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()))
        };
        self.lines.iter().skip(1).any(is_it)
    }

    /// Whether it goes, in the plainest way, to a route that looks at who comes.
    pub(super) fn demands_a_person(&self) -> bool {
        let plain: [&[u8]; 3] = [b"GET /any", b"GET /staff", b"GET /maybe"];
        self.lines.first().is_some_and(|line| plain.contains(&line.as_slice())) && !self.has("host")
    }

    pub(super) fn is_logout(&self) -> bool {
        self.lines.first().is_some_and(|line| line == b"POST /logout")
    }
}
