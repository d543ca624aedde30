//! The chunked coding (RFC 9112 section 7.1), read strictly.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Of all chunk extensions of one body together. They are read past; nobody uses them.
const MOST_EXTENSION_BYTES: usize = 16 * 1024;
/// Of the trailers of one body together.
const MOST_TRAILER_BYTES: usize = 16 * 1024;
const MOST_TRAILERS: usize = 64;

/// Where in a chunked body the reading is.
#[derive(Debug)]
pub(in super::super) struct Chunked {
    state: State,
    extension_bytes: usize,
}

#[derive(Debug)]
enum State {
    /// In the size; so many digits of it have come.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind the size.
    Extension {
        size: u64,
        /// The last byte was a carriage return.
        returned: bool,
    },
    /// So much of the chunk is to come.
    Data(u64),
    /// Behind the chunk.
    DataEnd {
        returned: bool,
    },
    Trailers,
    Over,
}

/// One step through a body.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Step {
    /// What there is of the current chunk.
    Data(Bytes),
    /// The end, with the trailers.
    Over(HeaderMap),
    /// More bytes are needed.
    Hungry,
}

impl Chunked {
    pub(in super::super) const fn new() -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, extension_bytes: 0 }
    }

    /// Takes the next piece out of `bytes`. Of the trailers only those of `announced` are kept.
    pub(in super::super) fn step(
        &mut self,
        bytes: &mut BytesMut,
        announced: &[HeaderName],
    ) -> Result<Step, &'static str> {
        match self.pass_by(bytes, announced)? {
            Step::Hungry => Ok(self.content(bytes)),
            step => Ok(step),
        }
    }

    fn content(&mut self, bytes: &mut BytesMut) -> Step {
        let State::Data(left) = &mut self.state else { return Step::Hungry };
        if bytes.is_empty() {
            return Step::Hungry;
        }
        let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        *left -= count as u64;
        if *left == 0 {
            self.state = State::DataEnd { returned: false };
        }
        Step::Data(bytes.split_to(count).freeze())
    }

    /// Takes what is there between two pieces of content, and at the end.
    pub(in super::super) fn pass_by(
        &mut self,
        bytes: &mut BytesMut,
        announced: &[HeaderName],
    ) -> Result<Step, &'static str> {
        loop {
            match &mut self.state {
                State::Size { size, digits } => {
                    let Some(byte) = bytes.first().copied() else { return Ok(Step::Hungry) };
                    let digit = char::from(byte).to_digit(16).map(u64::from);
                    match (digit, *digits) {
                        // 16 digits are 64 bits.
                        (Some(digit), 0..16) => {
                            *size = *size << 4 | digit;
                            *digits += 1;
                            bytes.advance(1);
                        }
                        (Some(_), _) => return Err("a chunk is too large"),
                        (None, 1..) if matches!(byte, b'\r' | b';' | b' ' | b'\t') => {
                            self.state = State::Extension { size: *size, returned: false };
                        }
                        (None, _) => return Err("a chunk has no proper size"),
                    }
                }
                State::Extension { size, returned } => {
                    let Some(byte) = bytes.first().copied() else { return Ok(Step::Hungry) };
                    bytes.advance(1);
                    match (byte, *returned) {
                        (b'\n', true) => {
                            self.state = if *size == 0 { State::Trailers } else { State::Data(*size) };
                        }
                        (b'\r', false) => *returned = true,
                        (b'\n', false) | (_, true) => return Err("a chunk's size is not ended properly"),
                        (_, false) => {
                            self.extension_bytes += 1;
                            if self.extension_bytes > MOST_EXTENSION_BYTES {
                                return Err("the chunk extensions are too long");
                            }
                        }
                    }
                }
                State::Data(_) => return Ok(Step::Hungry),
                State::DataEnd { returned } => {
                    let Some(byte) = bytes.first().copied() else { return Ok(Step::Hungry) };
                    bytes.advance(1);
                    match (byte, *returned) {
                        (b'\r', false) => *returned = true,
                        (b'\n', true) => self.state = State::Size { size: 0, digits: 0 },
                        _ => return Err("a chunk is not ended properly"),
                    }
                }
                State::Trailers => {
                    let Some((length, kept)) = trailers(bytes, announced)? else { return Ok(Step::Hungry) };
                    bytes.advance(length);
                    self.state = State::Over;
                    return Ok(Step::Over(kept));
                }
                State::Over => return Ok(Step::Over(HeaderMap::new())),
            }
        }
    }
}

/// The announced trailers and how many bytes all of them took; `None`: not all are there.
fn trailers(bytes: &[u8], announced: &[HeaderName]) -> Result<Option<(usize, HeaderMap)>, &'static str> {
    if bytes.starts_with(b"\r\n") {
        return Ok(Some((2, HeaderMap::new())));
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_TRAILERS];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) if length <= MOST_TRAILER_BYTES => {
            let mut kept = HeaderMap::new();
            for field in fields {
                let name = announced.iter().find(|name| name.as_str().eq_ignore_ascii_case(field.name));
                if let Some(name) = name
                    && let Ok(value) = HeaderValue::from_bytes(field.value)
                {
                    kept.append(name.clone(), value);
                }
            }
            Ok(Some((length, kept)))
        }
        Ok(httparse::Status::Partial) if bytes.len() < MOST_TRAILER_BYTES => Ok(None),
        Ok(_) => Err("the trailers are too long"),
        Err(_) => Err("the trailers are malformed"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The content, the trailers, and what is left behind the end.
    type Whole = (Vec<u8>, HeaderMap, Vec<u8>);

    /// Feeds `pieces` one after the other.
    fn read(pieces: &[&[u8]]) -> Result<Option<Whole>, &'static str> {
        let announced = [HeaderName::from_static("x-sum")];
        let mut chunked = Chunked::new();
        let (mut bytes, mut content) = (BytesMut::new(), Vec::new());
        let mut over = None;
        for piece in pieces {
            bytes.extend_from_slice(piece);
            while over.is_none() {
                match chunked.step(&mut bytes, &announced)? {
                    Step::Data(data) => content.extend_from_slice(&data),
                    Step::Over(trailers) => over = Some(trailers),
                    Step::Hungry => break,
                }
            }
        }
        Ok(over.map(|trailers| (content, trailers, bytes.to_vec())))
    }

    #[test]
    fn chunks_are_read_with_their_extensions_and_trailers() {
        for (text, content, trailers, left) in [
            ("0\r\n\r\n", "", 0, ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", 0, ""),
            ("5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200", "hello", 0, "HTTP/1.1 200"),
            ("00005;a=b;c=\"d\"\r\nhello\r\n6 \r\n world\r\n000;x\r\n\r\n", "hello world", 0, ""),
            ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", 0, ""),
            ("1\r\nx\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\nx-sum: 3\r\n\r\n", "x", 2, ""),
        ] {
            let (read, kept, rest) = read(&[text.as_bytes()]).unwrap().unwrap();
            assert_eq!((&*read, kept.len(), &*rest), (content.as_bytes(), trailers, left.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_quite_a_chunk_is_refused() {
        for text in [
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5_0\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            ";x\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\rhello\r\n0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello\r0\r\n\r\n",
            "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "00000000000000005\r\nhello\r\n0\r\n\r\n",
            "0\r\nbad name: x\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nX-Sum: a\r\n folded\r\n\r\n",
            "0\r\nX-Sum: a\0\r\n\r\n",
        ] {
            assert!(read(&[text.as_bytes()]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_part_is_not_the_whole() {
        let whole = b"5;x\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
        for length in 0..whole.len() {
            assert!(read(&[&whole[..length]]).unwrap().is_none(), "{length}");
        }
        assert!(read(&[b"ffffffffffffffff\r\nhello"]).unwrap().is_none());
    }

    #[test]
    fn extensions_and_trailers_have_limits() {
        let extensions = |each: usize, times: usize| format!("1;{}\r\nx\r\n", "y".repeat(each)).repeat(times);
        assert!(read(&[extensions(1000, 16).as_bytes()]).is_ok());
        assert!(read(&[extensions(1000, 17).as_bytes()]).is_err());
        assert!(read(&[extensions(20_000, 1).as_bytes()]).is_err());
        let trailer = |length: usize| format!("0\r\nX-Sum: {}", "y".repeat(length));
        assert!(read(&[trailer(10_000).as_bytes(), b"\r\n\r\n"]).unwrap().is_some());
        assert!(read(&[trailer(17_000).as_bytes()]).is_err());
        assert!(read(&[format!("0\r\n{}\r\n", "a: b\r\n".repeat(65)).as_bytes()]).is_err());
    }

    proptest! {
        #[test]
        fn any_split_reads_the_same(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            extension in "[a-z=;]{0,8}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut whole = Vec::new();
            for chunk in &chunks {
                let mark = if extension.is_empty() { "" } else { ";" };
                whole.extend_from_slice(format!("{:x}{mark}{extension}\r\n", chunk.len()).as_bytes());
                whole.extend_from_slice(chunk);
                whole.extend_from_slice(b"\r\n");
            }
            whole.extend_from_slice(b"0\r\nx-sum: 1\r\n\r\nrest");
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len())).collect();
            places.push(0);
            places.push(whole.len());
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &whole[pair[0]..pair[1]]).collect();
            let (content, trailers, rest) = read(&pieces).unwrap().unwrap();
            prop_assert_eq!(content, chunks.concat());
            prop_assert_eq!(trailers.len(), 1);
            prop_assert_eq!(rest, b"rest");
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'f'), any::<u8>()], 0..60)) {
            let _ = read(&[&bytes]);
        }
    }
}
