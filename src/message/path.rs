//! The every-reading rule: all that a backend could take a path for.
//!
//! Invariants: the path as sent is always the first reading; a plain path (ordinary bytes, single slashes, no dot at
//! the end of a segment) costs one scan and one copy; letter case and a slash behind an exact path are the router's; the work for a hostile path is bounded, and [`Readings::complete`]
//! says when the bound was reached, so that nobody takes a part for the whole.

use std::sync::Arc;

/// How many readings one path may have before the search is given up.
const MOST_READINGS: usize = 256;
/// How many bytes all readings of one path may have together.
/// Bounds what a hostile request can cost to a few milliseconds.
const MOST_BYTES: usize = 1 << 18;
/// How often a backend may decode: once by itself, once more behind a proxy of its own.
const MOST_DECODINGS: usize = 2;

/// Every plausible reading of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    sent: Arc<str>,
    /// The distinct readings other than the one as sent. Empty for plain paths: no allocation.
    others: Vec<Vec<u8>>,
    canonical: Option<usize>,
    complete: bool,
    /// The first of the others is what came, before it was encoded.
    is_raw: bool,
}

impl Readings {
    /// Works them out. `None` where a control character stands in it, or a NUL hides in it (encoded up to twice). Other
    /// control characters that are encoded are bytes like any other.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        Self::with_raw(path, None)
    }

    /// The same for a path that came as `raw`, with bytes that are encoded in `path`: a backend reads them without having
    /// decoded anything.
    #[must_use]
    pub fn with_raw(path: &str, raw: Option<&[u8]>) -> Option<Self> {
        let sent: Arc<str> = path.into();
        if raw.is_none() && is_plain(path.as_bytes()) {
            return Some(Self { sent, others: Vec::new(), canonical: None, complete: true, is_raw: false });
        }
        Search::run(sent, raw, &STEPS)
    }

    /// The same path where a colon begins no NTFS stream, or a plus sign is no blank: for routes whose own path holds one.
    #[must_use]
    pub fn with_literal(&self, colon: bool, plus: bool) -> Option<Self> {
        let steps = STEPS.iter().copied().filter(|step| match step(b"/:") {
            Some(read) if read == b"/" => !colon,
            _ => !(plus && step(b"/+").is_some_and(|read| read == b"/ ")),
        });
        let raw = self.others.first().filter(|_| self.is_raw);
        Search::run(Arc::clone(&self.sent), raw.map(Vec::as_slice), &steps.collect::<Vec<_>>())
    }

    /// The path as it was sent.
    #[must_use]
    pub fn as_sent(&self) -> &[u8] {
        self.sent.as_bytes()
    }

    /// The same, to be kept.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.sent)
    }

    /// Whether the path has one reading only (but for letter case).
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.others.is_empty() && self.complete
    }

    /// False where the search was given up: there are more readings than [`Readings::all`] visits.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// Calls `visit` with every distinct reading, the one as sent first, until it returns false.
    /// Case folding is not among them: the router compares each reading both ways (see `router`).
    pub fn all(&self, visit: &mut dyn FnMut(&[u8]) -> bool) {
        if !visit(self.as_sent()) {
            return;
        }
        for other in &self.others {
            if !visit(other) {
                return;
            }
        }
    }

    /// The most decoded, dot-free reading, for `explain` and logs.
    #[must_use]
    pub fn canonical(&self) -> String {
        let bytes = self.canonical.and_then(|index| self.others.get(index)).map_or(self.as_sent(), Vec::as_slice);
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// Bytes that mean the same to every backend. `.` and `/` depend on what follows them.
const ORDINARY: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        #[expect(
            clippy::indexing_slicing,
            clippy::cast_possible_truncation,
            reason = "evaluated by the compiler, which checks the bounds; the byte is below 0x7f"
        )]
        {
            table[byte] = !matches!(byte as u8, b'%' | b'\\' | b';' | b'?' | b'#' | b'.' | b'/' | b':' | b'+');
        }
        byte += 1;
    }
    table
};

fn is_plain(path: &[u8]) -> bool {
    let mut rest = path;
    if rest.first() != Some(&b'/') {
        return false;
    }
    while let [byte, tail @ ..] = rest {
        let next = tail.first();
        let plain = match byte {
            b'/' => next != Some(&b'/'),
            b'.' => !matches!(next, None | Some(b'/')),
            other => ORDINARY.get(usize::from(*other)).copied().unwrap_or(false),
        };
        if !plain {
            return false;
        }
        rest = tail;
    }
    true
}

/// One way to take a path for another. `None`: it changes nothing.
type Step = fn(&[u8]) -> Option<Vec<u8>>;

/// What a backend may do at any time, in any order.
const STEPS: [Step; 15] = [
    without_authority,
    folded_to_ascii,
    slashes_for_backslashes,
    without_parameters,
    without_last_parameters,
    without_query,
    without_fragment,
    first_line,
    without_line_breaks,
    blanks_for_pluses,
    without_trailing_spaces,
    without_trailing_dots,
    merged_slashes,
    without_dot_segments,
    without_streams,
];

/// What counts as one decoding.
const DECODINGS: [Step; 2] = [percent_decoded, wide_decoded];

/// Breadth first, one decoding depth after the other, so that each reading is met at its smallest depth.
struct Search<'a> {
    steps: &'a [Step],
    found: Vec<Vec<u8>>,
    seen: std::collections::HashSet<u64>,
    hasher: foldhash::fast::FixedState,
    bytes: usize,
    complete: bool,
}

impl<'a> Search<'a> {
    fn run(sent: Arc<str>, raw: Option<&[u8]>, steps: &'a [Step]) -> Option<Readings> {
        let mut search = Self {
            steps,
            found: Vec::new(),
            seen: std::collections::HashSet::new(),
            hasher: foldhash::fast::FixedState::default(),
            bytes: 0,
            complete: true,
        };
        if sent.bytes().any(|byte| byte.is_ascii_control()) || hides_nul(sent.as_bytes()) {
            return None;
        }
        search.add(sent.as_bytes().to_vec())?;
        if let Some(raw) = raw {
            if raw.iter().any(u8::is_ascii_control) || hides_nul(raw) {
                return None;
            }
            search.add(raw.to_vec())?;
        }
        let mut start = 0;
        for depth in 0..=MOST_DECODINGS {
            search.close(start)?;
            if depth == MOST_DECODINGS || !search.complete {
                break;
            }
            let end = search.found.len();
            for index in 0..end {
                for decoding in DECODINGS {
                    search.follow(index, decoding)?;
                }
            }
            start = end;
        }
        let canonical = search.canonical();
        let mut others = search.found;
        others.remove(0);
        let is_raw = raw.is_some() && raw == others.first().map(Vec::as_slice);
        Some(Readings { sent, others, canonical: canonical.checked_sub(1), complete: search.complete, is_raw })
    }

    /// Applies every step to everything from `start` on until nothing new comes.
    fn close(&mut self, start: usize) -> Option<()> {
        let mut index = start;
        while index < self.found.len() && self.complete {
            for step in self.steps {
                self.follow(index, *step)?;
            }
            index += 1;
        }
        Some(())
    }

    fn follow(&mut self, index: usize, step: Step) -> Option<()> {
        match self.found.get(index).and_then(|reading| step(reading)) {
            Some(reading) => self.add(reading),
            None => Some(()),
        }
    }

    /// `None`: a NUL came to light.
    fn add(&mut self, mut reading: Vec<u8>) -> Option<()> {
        use std::hash::BuildHasher as _;
        if reading.contains(&0) {
            return None;
        }
        if reading.first() != Some(&b'/') {
            reading.insert(0, b'/');
        }
        if !self.seen.insert(self.hasher.hash_one(&reading)) && self.found.contains(&reading) {
            return Some(());
        }
        if self.found.len() >= MOST_READINGS || self.bytes + reading.len() > MOST_BYTES {
            self.complete = self.found.is_empty();
            if !self.complete {
                return Some(());
            }
        }
        self.bytes += reading.len();
        self.found.push(reading);
        Some(())
    }

    /// Index of what is left when every step has been taken as often as it changes anything.
    fn canonical(&self) -> usize {
        let Some(mut reading) = self.found.first().cloned() else { return 0 };
        for _ in 0..MOST_DECODINGS {
            if let Some(decoded) = percent_decoded(&reading) {
                reading = decoded;
            }
        }
        let tidy: [Step; 6] = [
            slashes_for_backslashes,
            without_parameters,
            without_query,
            without_fragment,
            merged_slashes,
            without_dot_segments,
        ];
        for step in tidy {
            if let Some(changed) = step(&reading) {
                reading = changed;
            }
        }
        self.found.iter().position(|found| *found == reading).unwrap_or(0)
    }
}

/// Whether a NUL comes to light by decoding alone. The search looks at each reading that it meets, but it may be given up
/// before it meets this one.
fn hides_nul(path: &[u8]) -> bool {
    let shows =
        |reading: &[u8]| reading.contains(&0) || folded_to_ascii(reading).is_some_and(|folded| folded.contains(&0));
    let mut reading = path.to_vec();
    for _ in 0..MOST_DECODINGS {
        if shows(&reading) {
            return true;
        }
        // The wide decoding decodes what the other one does, too.
        match wide_decoded(&reading).or_else(|| percent_decoded(&reading)) {
            Some(decoded) => reading = decoded,
            None => return false,
        }
    }
    shows(&reading)
}

fn changed(path: &[u8], result: Vec<u8>) -> Option<Vec<u8>> {
    (result != path).then_some(result)
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// `%XX` becomes its byte; anything else after a `%` stays as it is.
fn percent_decoded(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'%', path)?;
    let mut result = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        if let [b'%', high, low, after @ ..] = rest
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            result.push(high << 4 | low);
            rest = after;
        } else {
            result.push(*byte);
            rest = tail;
        }
    }
    changed(path, result)
}

/// `%uXXXX` as IIS and old JavaScript write it, together with `%XX`.
fn wide_decoded(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memmem::find(path, b"%u").or_else(|| memchr::memmem::find(path, b"%U"))?;
    let mut result = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        if let [b'%', b'u' | b'U', a, b, c, d, after @ ..] = rest
            && let (Some(a), Some(b), Some(c), Some(d)) = (hex(*a), hex(*b), hex(*c), hex(*d))
        {
            let code = u32::from(a) << 12 | u32::from(b) << 8 | u32::from(c) << 4 | u32::from(d);
            let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            result.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = after;
        } else {
            result.push(*byte);
            rest = tail;
        }
    }
    let result = percent_decoded(&result).unwrap_or(result);
    let result = folded_to_ascii(&result).unwrap_or(result);
    changed(path, result)
}

/// Characters that hide in overlong UTF-8 (`C0 AE`, `E0 80 AE`, up to six bytes) or in full-width forms (U+FF01 to
/// U+FF5E).
fn folded_to_ascii(path: &[u8]) -> Option<Vec<u8>> {
    if path.is_ascii() {
        return None;
    }
    let mut result = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        if let Some((character, length)) = hidden_character(rest) {
            result.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = rest.get(length..).unwrap_or_default();
        } else {
            result.push(*byte);
            rest = tail;
        }
    }
    changed(path, result)
}

/// The character that stands for a longer sequence at the beginning of `bytes`, and the length of that sequence.
fn hidden_character(bytes: &[u8]) -> Option<(char, usize)> {
    let lead = *bytes.first()?;
    let length: u8 = match lead {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        0xf8..=0xfb => 5,
        0xfc | 0xfd => 6,
        _ => return None,
    };
    let mut code = u32::from(lead & (0x7f >> length));
    for byte in bytes.get(1..usize::from(length))? {
        if !continuation(*byte) {
            return None;
        }
        code = code << 6 | u32::from(byte & 0x3f);
    }
    // The full-width forms of `!` to `~`.
    let code = if (0xff01..=0xff5e).contains(&code) { code - 0xff01 + 0x21 } else { code };
    char::from_u32(code)
        .filter(|character| character.len_utf8() < usize::from(length))
        .map(|character| (character, usize::from(length)))
}

const fn continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// `//name/path` is taken for a URL without a scheme by those who give a target to their URL parser: Node's `URL`,
/// Python's `urlsplit`, PHP's `parse_url` (RFC 3986 section 4.2). Browsers' rules skip any number of slashes before.
fn without_authority(path: &[u8]) -> Option<Vec<u8>> {
    let named = path.strip_prefix(b"//")?;
    let slashes = named.iter().take_while(|byte| **byte == b'/').count();
    let named = named.get(slashes..)?;
    Some(memchr::memchr(b'/', named).and_then(|end| named.get(end..)).unwrap_or(b"/").to_vec())
}

fn slashes_for_backslashes(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'\\', path)?;
    Some(path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect())
}

/// `;parameters` of every segment, as Java servers drop them.
fn without_parameters(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b';', path)?;
    Some(each_segment(path, |segment| {
        memchr::memchr(b';', segment).and_then(|end| segment.get(..end)).unwrap_or(segment)
    }))
}

/// `;parameters` of the last segment, as RFC 2396 readers that know one set only drop them.
fn without_last_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let last = memchr::memrchr(b'/', path)?;
    let semicolon = memchr::memchr(b';', path.get(last..)?)?;
    path.get(..last + semicolon).map(<[u8]>::to_vec)
}

/// A `?` in a path was encoded once: it ends the path for those who decode before they split.
fn without_query(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'?', path).and_then(|end| path.get(..end)).map(<[u8]>::to_vec)
}

/// A `#` in a path was encoded once: it ends the path for those who decode before they split.
fn without_fragment(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'#', path).and_then(|end| path.get(..end)).map(<[u8]>::to_vec)
}

/// `:name` and `::$DATA` of every segment: NTFS serves the file or folder itself for its streams.
fn without_streams(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b':', path)?;
    Some(each_segment(path, |segment| {
        memchr::memchr(b':', segment).and_then(|end| segment.get(..end)).unwrap_or(segment)
    }))
}

/// What stands before the first line break: who decodes a path and writes it into a request line sends no more of it.
fn first_line(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr2(b'\r', b'\n', path).and_then(|end| path.get(..end)).map(<[u8]>::to_vec)
}

/// Tabs and line breaks are passed over by URL parsers that follow browsers' rules.
fn without_line_breaks(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr3(b'\t', b'\r', b'\n', path)?;
    Some(path.iter().copied().filter(|byte| !matches!(byte, b'\t' | b'\r' | b'\n')).collect())
}

/// A `+` is a blank to those who decode a path as if it were a form.
fn blanks_for_pluses(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'+', path)?;
    Some(path.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect())
}

/// Spaces at the end of each segment, as Windows drops them; this can make `.. ` a dot segment. Control characters are
/// space to those who trim, and a line break at the end of a text is none to regular expressions.
fn without_trailing_spaces(path: &[u8]) -> Option<Vec<u8>> {
    path.iter().find(|byte| **byte <= b' ')?;
    changed(path, each_segment(path, |segment| trim_end(segment, |byte| byte <= b' ')))
}

/// Dots and spaces at the end of each segment, as Windows drops them; dot segments themselves stay.
fn without_trailing_dots(path: &[u8]) -> Option<Vec<u8>> {
    changed(
        path,
        each_segment(path, |segment| {
            if matches!(segment, b"." | b"..") {
                segment
            } else {
                trim_end(segment, |byte| matches!(byte, b'.' | b' '))
            }
        }),
    )
}

fn trim_end(mut segment: &[u8], goes: impl Fn(u8) -> bool) -> &[u8] {
    while let [head @ .., last] = segment
        && goes(*last)
    {
        segment = head;
    }
    segment
}

fn each_segment(path: &[u8], change: impl for<'a> Fn(&'a [u8]) -> &'a [u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(path.len());
    for (index, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if index > 0 {
            result.push(b'/');
        }
        result.extend_from_slice(change(segment));
    }
    result
}

fn merged_slashes(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memmem::find(path, b"//")?;
    let mut result = Vec::with_capacity(path.len());
    for byte in path {
        if *byte != b'/' || result.last() != Some(&b'/') {
            result.push(*byte);
        }
    }
    Some(result)
}

/// RFC 3986 section 5.2.4: `..` takes one segment back, also an empty one, and stops at the root.
fn without_dot_segments(path: &[u8]) -> Option<Vec<u8>> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut ends_in_dots = false;
    for segment in path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/') {
        ends_in_dots = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let mut result = Vec::with_capacity(path.len());
    for segment in &kept {
        result.push(b'/');
        result.extend_from_slice(segment);
    }
    if ends_in_dots || result.is_empty() {
        result.push(b'/');
    }
    changed(path, result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn readings(path: &str) -> Vec<String> {
        let mut result = Vec::new();
        Readings::of(path).unwrap().all(&mut |reading| {
            result.push(String::from_utf8_lossy(reading).into_owned());
            true
        });
        result
    }

    #[test]
    fn plain_paths_have_one_reading() {
        for path in
            ["/", "/a", "/a/b.css", "/.well-known/x", "/a/", "/~kim/@b1/(x)!$&'*,=-_", "/A/%".trim_end_matches('%')]
        {
            let found = Readings::of(path).unwrap();
            assert!(found.is_plain(), "{path}");
            assert_eq!(found.others.capacity(), 0, "{path}");
            assert_eq!(found.canonical(), path);
        }
    }

    #[test]
    fn every_disguise_of_the_closed_path_is_seen_through() {
        for path in [
            "/public/../admin",
            "/public/./../admin",
            "/public/%2e%2e/admin",
            "/public/.%2e/admin",
            "/public/%252e%252e/admin",
            "/public/..%2fadmin",
            "/public/..%252fadmin",
            "/public/..%5cadmin",
            "/public/..\\admin",
            "/public/..;/admin",
            "/public/..;a=b/admin",
            "/public;/../admin",
            "/public%2f..%2fadmin",
            "//admin",
            "///admin",
            "//anybody.test/admin",
            "///anybody@x:80/admin",
            "/\\anybody.test/admin",
            "/%2f%5canybody.test/admin",
            "/public/..//anybody.test/admin",
            "/public/x/..%252f..%c0%afadmin",
            "/public//..//../admin",
            "/%2fadmin",
            "/admin%20",
            "/admin.",
            "/admin%3f/public/",
            "/public/%c0%ae%c0%ae/admin",
            "/public/%c0%ae%c0%ae%c0%afadmin",
            "/public/%u002e%u002e/admin",
            "/public/%u002e%u002e%u2215/../../admin",
            "/public/%25%32%65%2e/admin",
            "/./admin",
            "/%61dmin",
            "/%2561dmin",
            "/public/x/..%2f..%5Cadmin",
            "/public/%2e%2e%3b/admin",
            "/public/..%20/admin",
            "/admin%253fx",
            "/admin%3b",
            "/public/%e0%80%ae%e0%80%ae/admin",
            "/public/%ef%bc%8e%ef%bc%8e/admin",
            "/public%2f%2e%2e%2fadmin%2e",
            "/public/%u002e%2e/admin",
            "/public/..%u005cadmin",
            "/\\admin",
            "/%5cadmin",
            "/public\\..\\admin",
            "/admin;a=b",
            "/admin...",
            "/public/%uff0e%uff0e/admin",
        ] {
            assert!(Readings::of(path).unwrap().complete(), "{path}");
            assert!(readings(path).iter().any(|reading| reading == "/admin"), "{path}: {:?}", readings(path));
        }
        for path in ["/admin/.", "/admin/%2e", "/admin//", "/public/../admin/x/.."] {
            assert!(readings(path).iter().any(|reading| reading == "/admin/"), "{path}: {:?}", readings(path));
        }
    }

    /// What Unix programs seldom do, and Windows, Java, form decoders, URL parsers and old UTF-8 decoders do.
    #[test]
    fn signs_that_end_a_name_somewhere_are_seen_through() {
        for path in [
            "/admin%23x",
            "/admin%2523/../public",
            "/public/../admin%23/x",
            "/admin::$DATA",
            "/admin%3a%3a$DATA",
            "/admin:x:$DATA",
            "/admin%253ax",
            "/public/..:x/admin",
            "/admin+",
            "/admin%2b%2b",
            "/admin+.",
            "/public/..+/admin",
            "/admin%09",
            "/admin%0a",
            "/admin%0d%0ax",
            "/ad%09min",
            "/public/.%0a./admin",
            "/admin%1f;x",
            "/public/%f8%80%80%80%ae%f8%80%80%80%ae/admin",
            "/public/..%f8%80%80%80%afadmin",
            "/public/..%fc%80%80%80%80%afadmin",
            "/public/..%f0%80%80%afadmin",
            "/%f8%80%80%81%a1dmin",
            "/%e0%81%a1dmin",
            "/public/%f0%8f%bc%8e%f0%8f%bc%8e/admin",
            "/admin%c0%a3x",
            "/admin%c0%bax",
        ] {
            assert!(Readings::of(path).unwrap().complete(), "{path}");
            assert!(readings(path).iter().any(|reading| reading == "/admin"), "{path}: {:?}", readings(path));
        }
    }

    #[test]
    fn nul_is_refused_at_every_depth_and_raw_control_characters_always() {
        for path in
            ["/a%00", "/a%2500", "/a%25%30%30", "/%c0%80", "/%u0000", "/%e0%80%80", "/%fc%80%80%80%80%80", "/a\tb"]
        {
            assert_eq!(Readings::of(path), None, "{path}");
        }
        for path in ["/a%0a", "/a%0D%0ax", "/a%7f", "/a%1f.css", "/%2509", "/%u0007", "/%c0%89"] {
            assert!(Readings::of(path).is_some_and(|found| found.complete()), "{path}");
        }
    }

    #[test]
    fn ordinary_paths_with_signs_are_read_whole() {
        for path in [
            "/wiki/C%2B%2B%20%23%3F;v=1:a+b.",
            "/api/v1/namespaces/x/services/https:dash:80/proxy/a+b%20c",
            "/files/%ED%95%9C%EA%B8%80%20(1)+%5Bx%5D:y;z%23a%3Fb.txt",
            "/2026-11-30T23:59:59+09:00/r%C3%A9sum%C3%A9.pdf",
        ] {
            assert!(Readings::of(path).unwrap().complete(), "{path}: {}", readings(path).len());
        }
    }

    #[test]
    fn a_colon_or_plus_is_a_letter_where_the_route_says_so() {
        let found = Readings::of("/v1/x:predict/..%2fy").unwrap();
        let mut all = Vec::new();
        found.with_literal(true, false).unwrap().all(&mut |reading| {
            all.push(reading.to_vec());
            true
        });
        assert!(!all.contains(&b"/v1/x".to_vec()) && all.contains(&b"/v1/y".to_vec()));
        let mut all = Vec::new();
        Readings::of("/c++;x:y").unwrap().with_literal(false, true).unwrap().all(&mut |reading| {
            all.push(reading.to_vec());
            true
        });
        assert!(!all.contains(&b"/c".to_vec()) && all.contains(&b"/c++".to_vec()));
    }

    #[test]
    fn malformed_percent_signs_and_foreign_bytes_are_ordinary() {
        for path in ["/%zz", "/%", "/100%", "/%2", "/%ff%fe", "/%EA%B0%80", "/a%23b", "/é", "/%2x"] {
            let found = readings(path);
            assert_eq!(found[0], path);
            assert!(Readings::of(path).unwrap().complete());
        }
    }

    #[test]
    fn the_canonical_reading_is_the_most_decoded() {
        for (path, canonical) in [
            ("/a%20b", "/a b"),
            ("/a/%2e%2e/b", "/b"),
            ("/x//y;z/%252e./w", "/x/w"),
            ("/%EA%B0%80", "/가"),
            ("/a%3fb", "/a"),
        ] {
            assert_eq!(Readings::of(path).unwrap().canonical(), canonical);
        }
    }

    #[test]
    fn a_hostile_path_is_given_up_in_bounds() {
        let path = "/%25%32%65%2e;a\\..;//%20.%2f%5c%3f".repeat(900);
        for hidden in ["%00", "%2500", "%25u0000", "%c0%80", "%f8%80%80%80%80"] {
            assert_eq!(Readings::of(&format!("{path}{hidden}")), None, "{hidden} behind a path that is given up");
        }
        let found = Readings::of(&path).unwrap();
        let mut bytes = 0;
        found.all(&mut |reading| {
            bytes += reading.len();
            true
        });
        assert!(!found.complete());
        assert!(bytes <= MOST_BYTES + path.len());
    }

    proptest! {
        #[test]
        fn never_panics_and_starts_with_what_was_sent(path in "/([a-c./%;\\\\?:+ 25eEfF0cCuU]|é){0,40}") {
            if let Some(found) = Readings::of(&path) {
                let mut first = None;
                let mut count = 0;
                found.all(&mut |reading| { first.get_or_insert_with(|| reading.to_vec()); count += 1; true });
                prop_assert_eq!(first.as_deref(), Some(path.as_bytes()));
                prop_assert!(count <= MOST_READINGS);
            }
        }

        #[test]
        fn decoding_then_removing_dots_is_among_them(path in "/([a-c/]|%2e|%2f|%61|\\.){0,12}") {
            let found = Readings::of(&path).unwrap();
            let decoded = percent_decoded(path.as_bytes()).unwrap_or_else(|| path.clone().into_bytes());
            let wanted = without_dot_segments(&decoded).unwrap_or(decoded);
            let mut seen = !found.complete();
            found.all(&mut |reading| { seen |= reading == wanted; true });
            prop_assert!(seen);
        }
    }
}
