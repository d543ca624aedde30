//! How a client spelled the names of its headers.
//!
//! Names are compared without regard to case everywhere, but some old backends are not so wise, so the spelling goes on.
//! It is looked up in the bytes as they came, and nothing but letter case is ever taken from them.

use std::cell::RefCell;

/// The bytes of one head as they came. Empty where they are not known.
#[derive(Default)]
pub struct Spelling {
    head: Vec<u8>,
}

/// Lines that one message's lookups may pass by; a head in which the names stand in the order of the lookups needs as
/// many as it has lines.
const PATIENCE: usize = 1024;

/// Buffers that one thread keeps for the heads that come next: most are done with when the next one comes.
const KEPT_BUFFERS: usize = 8;
const MOST_KEPT_BYTES: usize = 4 * 1024;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer for the bytes of a head.
#[must_use]
pub fn buffer() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

impl Drop for Spelling {
    fn drop(&mut self) {
        let mut head = std::mem::take(&mut self.head);
        if (1..=MOST_KEPT_BYTES).contains(&head.capacity()) {
            head.clear();
            // While the thread ends there may be no place for it any more.
            let _ = BUFFERS.try_with(|buffers| {
                let mut buffers = buffers.borrow_mut();
                if buffers.len() < KEPT_BUFFERS {
                    buffers.push(head);
                }
            });
        }
    }
}

impl Spelling {
    /// `head` begins with a head, whole or not; what follows it is not looked at.
    #[must_use]
    pub const fn new(head: Vec<u8>) -> Self {
        Self { head }
    }

    /// For looking up one name after the other.
    #[must_use]
    pub fn lines(&self) -> Lines<'_> {
        let mut head = &*self.head;
        while let [b'\r' | b'\n', rest @ ..] = head {
            head = rest;
        }
        let fields = memchr::memchr(b'\n', head).and_then(|end| head.get(end + 1..)).unwrap_or_default();
        Lines { fields, rest: fields, patience: PATIENCE }
    }
}

/// A place among the lines of a head.
pub struct Lines<'a> {
    fields: &'a [u8],
    /// Behind the line that was found last.
    rest: &'a [u8],
    patience: usize,
}

impl<'a> Lines<'a> {
    /// The line that says the same. The search goes on from the line that was found last, and once round.
    pub fn find(&mut self, name: &str, value: &[u8]) -> Option<Line<'a>> {
        self.search(self.rest, 0, name, value).or_else(|| {
            // From the top to where it began.
            let until = self.rest.len();
            self.search(self.fields, until, name, value)
        })
    }

    fn search(&mut self, from: &'a [u8], until: usize, name: &str, value: &[u8]) -> Option<Line<'a>> {
        let mut rest = from;
        while rest.len() > until && self.patience > 0 {
            self.patience -= 1;
            let end = memchr::memchr(b'\n', rest)?;
            let (line, after) = rest.split_at_checked(end + 1)?;
            if matches!(line, b"\n" | b"\r\n") {
                return None;
            }
            if let Some(found) = Line::saying(line, name, value) {
                self.rest = after;
                return Some(found);
            }
            rest = after;
        }
        None
    }
}

/// A line that was found.
pub struct Line<'a> {
    /// The name as it was spelled.
    pub name: &'a [u8],
    /// All of it, if it is `name: value` to the byte, with its line end.
    pub plain: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    fn saying(line: &'a [u8], name: &str, value: &[u8]) -> Option<Self> {
        let (spelled, rest) = line.split_at_checked(name.len())?;
        let came = rest.strip_prefix(b":")?;
        if !spelled.eq_ignore_ascii_case(name.as_bytes()) {
            return None;
        }
        if came.strip_prefix(b" ").and_then(|came| came.strip_suffix(b"\r\n")) == Some(value) {
            return Some(Self { name: spelled, plain: Some(line) });
        }
        (came.trim_ascii() == value.trim_ascii()).then_some(Self { name: spelled, plain: None })
    }
}

/// Writes a name that came in no spelling, or in an unknown one, as most programs write it: `X-Request-Id`.
pub fn push_title_case(into: &mut Vec<u8>, name: &str) {
    let mut begins = true;
    into.extend(name.bytes().map(|byte| {
        let written = if begins { byte.to_ascii_uppercase() } else { byte };
        begins = byte == b'-';
        written
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelling(head: &[u8]) -> Spelling {
        Spelling::new(head.to_vec())
    }

    fn found_in<'a>(lines: &mut Lines<'a>, name: &str, value: &str) -> Option<&'a str> {
        lines.find(name, value.as_bytes()).map(|line| std::str::from_utf8(line.name).unwrap())
    }

    #[test]
    fn a_line_that_is_not_quite_plain_is_not_written_as_it_came() {
        for (line, plain) in [
            ("A: b\r\n", true),
            ("a:b\r\n", false),
            ("A: b\n", false),
            ("A: b \r\n", false),
            ("A:  b\r\n", false),
            ("A:\tb\r\n", false),
        ] {
            let spelling = spelling(format!("GET / HTTP/1.1\r\n{line}\r\n").as_bytes());
            let found = spelling.lines().find("a", b"b").unwrap();
            assert_eq!(found.plain, plain.then_some(line.as_bytes()), "{line:?}");
        }
    }

    #[test]
    fn a_name_is_found_in_its_own_spelling_in_any_order() {
        let spelling = spelling(b"\r\nGET / HTTP/1.1\r\nHOST: h\r\nx-ID:  a \r\nX-id: b\nlast: \r\n\r\nBODY: x\r\n");
        let mut lines = spelling.lines();
        for (name, value, found) in [
            ("host", "h", Some("HOST")),
            ("x-id", "b", Some("X-id")),
            ("last", "", Some("last")),
            ("x-id", "a", Some("x-ID")),
            ("body", "x", None),
            ("host", "other", None),
            ("x-i", "a", None),
            ("host", "h", Some("HOST")),
        ] {
            assert_eq!(found_in(&mut lines, name, value), found, "{name}");
        }
    }

    #[test]
    fn nothing_is_found_where_nothing_is_known() {
        for head in [&b""[..], b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: h"] {
            assert_eq!(found_in(&mut spelling(head).lines(), "host", "h"), None);
        }
    }

    #[test]
    fn the_search_gives_up_after_a_while() {
        let head = format!("GET / HTTP/1.1\r\n{}A: 1\r\n\r\n", "B: 2\r\n".repeat(100));
        let spelling = spelling(head.as_bytes());
        let mut lines = spelling.lines();
        assert_eq!(found_in(&mut lines, "a", "1"), Some("A"));
        for _ in 0..20 {
            assert_eq!(found_in(&mut lines, "c", "1"), None);
        }
        assert_eq!(found_in(&mut lines, "a", "1"), None);
    }

    #[test]
    fn title_case_begins_every_word_large() {
        let mut name = Vec::new();
        push_title_case(&mut name, "x-request-id");
        assert_eq!(name, b"X-Request-Id");
    }
}
