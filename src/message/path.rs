//! The every-reading rule: all that a backend could take a path for.
//!
//! Backends disagree about paths: some decode twice, some take `\` for `/`, drop `;parameters`, cut at an encoded `?`,
//! drop trailing dots. A route that is found under one reading and not under another is a way around the policy, so the
//! router looks at all of them. The set is closed: every transformation is applied to every result until nothing new
//! comes, in whatever order a backend might do it.

/// Every plausible reading of one path. Letter case is not folded here: the router compares each reading both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    as_sent: String,
    /// No transformation changes it.
    plain: bool,
}

/// How often a backend may decode. A third time has been seen nowhere.
const DECODINGS: u8 = 2;
/// Bytes that all readings of one path together may have, so that a hostile path costs no more than a plain one's
/// request. Only a path of kilobytes that is full of traps gets there.
const MAX_TOTAL_BYTES: usize = 512 * 1024;

impl Readings {
    /// Takes a raw path. `None` where NUL or another control character hides in it, also encoded, once or twice over.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        let mut decoded = None;
        for depth in 0..=DECODINGS {
            let bytes: &[u8] = decoded.as_deref().unwrap_or(path.as_bytes());
            if bytes.iter().any(u8::is_ascii_control) {
                return None;
            }
            if depth == DECODINGS || memchr::memchr(b'%', bytes).is_none() {
                break;
            }
            decoded = Some(decode(bytes));
        }
        Some(Self { as_sent: path.to_owned(), plain: is_plain(path.as_bytes()) })
    }

    /// The path as it was sent.
    #[must_use]
    pub fn as_sent(&self) -> &[u8] {
        self.as_sent.as_bytes()
    }

    /// Whether there is only one reading.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.plain
    }

    /// Calls `visit` with every distinct reading, the one as sent first, until it returns false. Returns false where it
    /// was stopped, or where the readings are too many to be told: then they count as disagreeing.
    pub fn all(&self, mut visit: impl FnMut(&[u8]) -> bool) -> bool {
        if self.plain {
            return visit(self.as_sent());
        }
        let mut seen: Vec<(Vec<u8>, u8)> = vec![(self.as_sent().to_vec(), 0)];
        let mut total = self.as_sent.len();
        let mut next = 0;
        while let Some((reading, decodings)) = seen.get(next).cloned() {
            if !visit(&reading) {
                return false;
            }
            for (index, transform) in TRANSFORMS.iter().enumerate() {
                let decodes = index == 0;
                if decodes && decodings == DECODINGS {
                    continue;
                }
                let result = transform(&reading);
                let decodings = decodings + u8::from(decodes);
                if result == reading
                    // The same bytes with more decodings to come have all the readings of those with fewer, and more.
                    || seen.iter().any(|(other, spent)| *other == result && *spent <= decodings)
                {
                    continue;
                }
                total += result.len() + 1;
                if total > MAX_TOTAL_BYTES {
                    return false;
                }
                seen.push((result, decodings));
            }
            next += 1;
        }
        true
    }

    /// The reading of a careful backend (decoded once, dot segments removed, slashes merged), for `explain`.
    #[must_use]
    pub fn canonical(&self) -> String {
        let path = remove_dot_segments(&merge_slashes(&decode(self.as_sent())));
        String::from_utf8_lossy(&path).into_owned()
    }
}

/// The first one decodes; `all` counts on it.
const TRANSFORMS: [fn(&[u8]) -> Vec<u8>; 9] = [
    decode,
    decode_oddities,
    backslashes,
    merge_slashes,
    remove_dot_segments,
    drop_parameters,
    cut_at_question_mark,
    trim_segments,
    trim_end,
];

/// A path that every backend reads alike: no `%`, no `\`, no `;`, no empty, dot or dot-ended segment, ASCII only.
fn is_plain(path: &[u8]) -> bool {
    let mut before = b'/';
    for (index, byte) in path.iter().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')'
            | b'*' | b'+' | b',' | b'=' | b':' | b'@' => {}
            b'/' if index == 0 || !matches!(before, b'/' | b'.') => {}
            // A segment may not begin with a dot here either: then it can be no dot segment.
            b'.' if before != b'/' => {}
            _ => return false,
        }
        before = *byte;
    }
    before != b'.'
}

/// Percent-decoding (RFC 3986 section 2.1). What is no valid triplet stays.
fn decode(path: &[u8]) -> Vec<u8> {
    percent_encoding::percent_decode(path).collect()
}

/// `%u002e` as old Microsoft servers read it, and overlong UTF-8 such as `%c0%ae` as careless decoders do.
fn decode_oddities(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    loop {
        rest = match rest {
            [] => return out,
            [b'%', b'u' | b'U', a, b, c, d, after @ ..] => {
                let digits = [*a, *b, *c, *d].map(|digit| char::from(digit).to_digit(16));
                if let [Some(a), Some(b), Some(c), Some(d)] = digits
                    && let Some(character) = char::from_u32((a << 12) | (b << 8) | (c << 4) | d)
                {
                    let mut buffer = [0; 4];
                    out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes());
                    after
                } else {
                    out.push(b'%');
                    rest.get(1..).unwrap_or_default()
                }
            }
            // Two and three bytes for a character that needs one.
            [lead @ (0xc0 | 0xc1), tail @ 0x80..=0xbf, after @ ..] => {
                out.push(((lead & 1) << 6) | (tail & 0x3f));
                after
            }
            [0xe0, middle @ (0x80 | 0x81), tail @ 0x80..=0xbf, after @ ..] => {
                out.push(((middle & 1) << 6) | (tail & 0x3f));
                after
            }
            [byte, after @ ..] => {
                out.push(*byte);
                after
            }
        };
    }
}

fn backslashes(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for byte in path {
        if !(*byte == b'/' && out.last() == Some(&b'/')) {
            out.push(*byte);
        }
    }
    out
}

/// RFC 3986 section 5.2.4, on an absolute path.
fn remove_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments = path.split(|byte| *byte == b'/').peekable();
    // Before the first slash there is nothing, or something that is no path.
    let first = segments.next().unwrap_or_default();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." if last => kept.push(b""),
            b"." => {}
            b".." => {
                kept.pop();
                if last {
                    kept.push(b"");
                }
            }
            segment => kept.push(segment),
        }
    }
    let mut out = first.to_vec();
    for segment in kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// Drops `;name=value` from every segment, as servlet containers do.
fn drop_parameters(path: &[u8]) -> Vec<u8> {
    map_segments(path, |segment| segment.split(|byte| *byte == b';').next().unwrap_or_default())
}

/// A backend that decodes before it looks for the query takes `%3f` for its beginning.
fn cut_at_question_mark(path: &[u8]) -> Vec<u8> {
    path.split(|byte| *byte == b'?').next().unwrap_or_default().to_vec()
}

/// Trailing dots and spaces of every segment, which Windows does not see.
fn trim_segments(path: &[u8]) -> Vec<u8> {
    map_segments(path, trim)
}

/// The same for the last segment only.
fn trim_end(path: &[u8]) -> Vec<u8> {
    let last = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (before, segment) = path.split_at(last);
    [before, trim(segment)].concat()
}

fn trim(segment: &[u8]) -> &[u8] {
    if matches!(segment, b"." | b"..") {
        return segment;
    }
    let end = segment.iter().rposition(|byte| !matches!(byte, b'.' | b' ')).map_or(0, |last| last + 1);
    segment.get(..end).unwrap_or_default()
}

fn map_segments(path: &[u8], map: impl Fn(&[u8]) -> &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for (index, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        out.extend_from_slice(map(segment));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(path: &str) -> Vec<String> {
        let mut readings = Vec::new();
        let whole = Readings::of(path).unwrap().all(|reading| {
            readings.push(String::from_utf8_lossy(reading).into_owned());
            true
        });
        assert!(whole, "{path}");
        readings
    }

    #[test]
    fn an_ordinary_path_has_one_reading() {
        for path in ["/", "/a", "/a/b-c_d~e", "/a.b/c.tar.gz", "/a/", "/a:b@c,d=e(f)"] {
            assert!(Readings::of(path).unwrap().is_plain(), "{path}");
            assert_eq!(all(path), [path]);
        }
    }

    #[test]
    fn every_way_to_spell_admin_is_among_its_readings() {
        for path in [
            "/public/../admin", "/public/./../admin", "/public/%2e%2e/admin", "/public/.%2e/admin",
            "/public/%252e%252e/admin", "/public/..%2fadmin", "/public/..%252fadmin", "/public/..%5cadmin",
            "/public/..\\admin", "/public/..;/admin", "/public;/../admin", "/public%2f..%2fadmin", "//admin",
            "/public//..//admin", "/%2fadmin", "/admin%20", "/admin.", "/admin/.", "/admin%3f/public", "/admin;a=b",
            "/%61dmin", "/%2561dmin", "/public/%c0%ae%c0%ae/admin", "/public/%u002e%u002e/admin",
            "/public/..%c0%afadmin", "/./admin", "/admin%2e", "/x/..;a=b/admin", "/public/%e0%80%ae./admin",
            "/public/..%255cadmin",
        ] {
            let found = all(path).iter().any(|reading| reading == "/admin" || reading == "/admin/");
            assert!(found, "{path}: {:?}", all(path));
        }
    }

    #[test]
    fn control_characters_are_refused_however_they_are_written() {
        for path in ["/a%00", "/a%0a", "/a%0d%0aX", "/a%2500", "/a%7f", "/a%1F", "/%09/"] {
            assert_eq!(Readings::of(path), None, "{path}");
        }
        for path in ["/a%20", "/%zz", "/%", "/%u00", "/%ED%95%9C", "/%ff", "/a%23b", "/%2"] {
            assert!(Readings::of(path).is_some(), "{path}");
        }
    }

    #[test]
    fn a_path_full_of_traps_stays_bounded() {
        let path = format!("/{}", "%252e%252e%255c;a/..%2f".repeat(300));
        let mut count = 0;
        Readings::of(&path).unwrap().all(|_| {
            count += 1;
            true
        });
        assert!(count < 2_000, "{count}");
    }

    proptest! {
        #[test]
        fn nothing_panics_and_the_path_as_sent_comes_first(path in "/[ -~]{0,40}") {
            if let Some(readings) = Readings::of(&path) {
                let mut first = None;
                readings.all(|reading| {
                    first.get_or_insert_with(|| reading.to_vec());
                    true
                });
                prop_assert_eq!(first.as_deref(), Some(path.as_bytes()));
            }
        }

        #[test]
        fn no_transformation_changes_a_plain_path(path in "/[a-zA-Z0-9._/:@-]{0,30}") {
            if let Some(readings) = Readings::of(&path) && readings.is_plain() {
                for transform in TRANSFORMS {
                    prop_assert_eq!(transform(path.as_bytes()), path.as_bytes());
                }
            }
        }
    }
}
