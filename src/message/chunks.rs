//! Where a chunked body ends (RFC 9112 section 7.1), without a look at what it holds.
//!
//! Who reads the body decides whether it is valid, and more strictly than this; both agree on where a valid one ends.

/// How far a chunked body has come.
#[derive(Clone, Debug, Default)]
pub struct Chunks(State);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// A chunk's size, then its extensions up to the line end.
    #[default]
    Begins,
    Size(u64),
    Extension(u64),
    Data(u64),
    /// The line end behind a chunk's data.
    AfterData,
    /// The first byte of a trailer line, or of the empty line at the end.
    Trailers,
    Trailer,
    TrailerEnds,
    Ends,
    Over,
}

impl Chunks {
    /// Whether the body is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0 == State::Over
    }

    /// Goes over what has come; how much of it belongs to the body.
    pub fn follow(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let [byte, after @ ..] = rest {
            if self.is_over() {
                break;
            }
            if let State::Data(left) = self.0 {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                let still = left - taken as u64;
                self.0 = if still == 0 { State::AfterData } else { State::Data(still) };
                rest = rest.get(taken..).unwrap_or_default();
                continue;
            }
            self.0 = Self::next(self.0, *byte);
            rest = after;
        }
        bytes.len() - rest.len()
    }

    fn next(state: State, byte: u8) -> State {
        let line_is_over = |size| if size == 0 { State::Trailers } else { State::Data(size) };
        match (state, byte) {
            (State::Begins, byte) => match char::from(byte).to_digit(16) {
                Some(digit) => State::Size(u64::from(digit)),
                None => State::Begins,
            },
            (State::Size(size) | State::Extension(size), b'\n') => line_is_over(size),
            (State::Size(size), byte) => match char::from(byte).to_digit(16) {
                // Too large a number is refused by who reads the body.
                Some(digit) => State::Size(size.saturating_mul(16).saturating_add(u64::from(digit))),
                None => State::Extension(size),
            },
            (State::Extension(size), _) => State::Extension(size),
            (State::AfterData, b'\n') => State::Begins,
            (State::AfterData, _) => State::AfterData,
            (State::Trailers, b'\r') => State::Ends,
            (State::Trailer, b'\r') => State::TrailerEnds,
            (State::TrailerEnds, b'\n') => State::Trailers,
            (State::Ends, b'\n') => State::Over,
            (State::Trailers | State::Trailer | State::TrailerEnds | State::Ends, _) => State::Trailer,
            (State::Data(_) | State::Over, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_body_ends_where_it_ends_however_it_comes() {
        for (body, behind) in [
            ("0\r\n\r\n", "GET / HTTP/1.1"),
            ("5\r\nhello\r\n0\r\n\r\n", "GET"),
            ("5;a=\"b\"\r\nhel\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n", "\r\n"),
            ("00a \r\n0123456789\r\n000\r\n\r\n", "5\r\n"),
            ("1\r\n0\r\n0\r\n\r\n", "0\r\n\r\n"),
        ] {
            let all = format!("{body}{behind}");
            let mut whole = Chunks::default();
            assert_eq!(whole.follow(all.as_bytes()), body.len(), "{all:?}");
            assert!(whole.is_over());
            let mut single = Chunks::default();
            let taken: usize = all.bytes().map(|byte| single.follow(&[byte])).sum();
            assert_eq!(taken, body.len(), "{all:?}, byte by byte");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..5),
            behind in prop::collection::vec(any::<u8>(), 0..20),
            cut in 0_usize..200,
        ) {
            let mut all = Vec::new();
            for chunk in &chunks {
                all.extend_from_slice(format!("{:x};e\r\n", chunk.len()).as_bytes());
                all.extend_from_slice(chunk);
                all.extend_from_slice(b"\r\n");
            }
            all.extend_from_slice(b"0\r\n\r\n");
            let length = all.len();
            all.extend_from_slice(&behind);
            let (first, second) = all.split_at(cut.min(all.len()));
            let mut body = Chunks::default();
            let mut taken = body.follow(first);
            if !body.is_over() {
                taken += body.follow(second);
            }
            prop_assert!(body.is_over());
            prop_assert_eq!(taken, length);
        }
    }
}
