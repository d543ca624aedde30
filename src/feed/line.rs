//! The feed's lines: one JSON object each, ended by a line feed.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::store::{Forgotten, LogEntry};

/// What this program writes and reads.
pub const VERSION: u32 = 1;

/// The longest line that is read, in bytes; our own have some 200.
pub const MAX_LINE_BYTES: usize = 4096;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first one.
    Hello(Hello),
    /// An entry of the revocation log.
    Entry(LogEntry),
    /// Everything before it has been told. Comes after the entries at the beginning, and then every two seconds.
    Beat(Beat),
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Of these lines.
    pub version: u32,
    /// The entry from which the gateway reads on; 0: everything follows, and what it knew before counts no longer.
    pub from: u64,
}

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The newest number of the log.
    pub head: u64,
    /// Milliseconds of the centre's monotonic clock: tells a late beat from a fresh one without comparing wall clocks.
    pub at: u64,
    /// How old the centre's own knowledge is, in milliseconds.
    pub behind: u64,
    /// Changes with the centre's public keys.
    pub keys: String,
    /// What the centre has let go of, and its settled time.
    #[serde(default)]
    pub forgotten: Forgotten,
}

/// The last entry that a gateway read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// Its number.
    pub number: u64,
    /// Tells it from another one that has the same number in another history.
    pub print: String,
}

impl Last {
    /// The mark of an entry.
    #[must_use]
    pub fn of(entry: &LogEntry) -> Self {
        Self { number: entry.number, print: print(&encode(&Line::Entry(entry.clone()))) }
    }
}

/// Why what came is no feed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE_BYTES`].
    #[error("a line is too long")]
    TooLong,
    /// No line of ours.
    #[error("a line can't be read")]
    Unreadable,
}

/// A line with its end.
#[must_use]
pub fn encode(line: &Line) -> Bytes {
    // A line of numbers and texts can always be written.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    Bytes::from(bytes)
}

/// 64 bits that stand for some bytes.
#[must_use]
pub fn print(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().take(8).fold(String::with_capacity(16), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Makes lines of pieces, wherever they were cut. What is not ended yet waits for its rest, and nothing else does.
#[derive(Debug, Default)]
pub struct Decoder {
    rest: BytesMut,
    /// How much of `rest` is known to hold no line's end.
    searched: usize,
}

impl Decoder {
    /// Takes in a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
    }

    /// The next whole line; `None`: more has to come.
    pub fn next_line(&mut self) -> Result<Option<Line>, LineError> {
        let unseen = self.rest.get(self.searched..).unwrap_or_default();
        let Some(found) = memchr::memchr(b'\n', unseen) else {
            self.searched = self.rest.len();
            return if self.rest.len() > MAX_LINE_BYTES { Err(LineError::TooLong) } else { Ok(None) };
        };
        let length = self.searched + found;
        self.searched = 0;
        if length > MAX_LINE_BYTES {
            return Err(LineError::TooLong);
        }
        let line = self.rest.get(..length).and_then(|line| serde_json::from_slice(line).ok());
        self.rest.advance(length + 1);
        line.map(Some).ok_or(LineError::Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Revocation;

    fn entry(number: u64) -> LogEntry {
        let session = crate::store::SessionId::random();
        LogEntry { number, what: Revocation::Session { session }, at: 1_800_000_000, expires: 1_800_600_000 }
    }

    fn all(decoder: &mut Decoder) -> Result<Vec<Line>, LineError> {
        let mut lines = Vec::new();
        while let Some(line) = decoder.next_line()? {
            lines.push(line);
        }
        Ok(lines)
    }

    #[test]
    fn a_line_is_short_and_reads_back() {
        let line = Line::Entry(entry(u64::MAX));
        let bytes = encode(&line);
        assert!(bytes.len() < 200, "{} bytes: {bytes:?}", bytes.len());
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.next_line(), Ok(Some(line)));
        assert_eq!(decoder.next_line(), Ok(None));
    }

    #[test]
    fn another_entry_of_the_same_number_has_another_print() {
        let (one, other) = (entry(5), entry(5));
        assert_eq!(Last::of(&one), Last::of(&one.clone()));
        assert_ne!(Last::of(&one).print, Last::of(&other).print);
    }

    #[test]
    fn what_is_no_line_of_ours_is_an_error_and_not_passed_over() {
        for wrong in [
            "\n",
            "{}\n",
            "null\n",
            "{\"entry\":{}}\n",
            "{\"entry\":{\"number\":1,\"what\":\"everything\",\"at\":1,\"expires\":2}}\n",
            "{\"beat\":{\"head\":-1,\"at\":0,\"behind\":0,\"keys\":\"\"}}\n",
            "{\"later\":{}}\n",
            "\u{0}\n",
        ] {
            let mut decoder = Decoder::default();
            decoder.push(wrong.as_bytes());
            assert_eq!(decoder.next_line(), Err(LineError::Unreadable), "{wrong:?}");
        }
    }

    #[test]
    fn a_giant_line_is_refused_before_it_is_held() {
        let mut decoder = Decoder::default();
        let mut pushed = 0;
        let error = loop {
            decoder.push(&[b'x'; 1000]);
            pushed += 1000;
            match decoder.next_line() {
                Ok(None) => assert!(pushed < 2 * MAX_LINE_BYTES, "{pushed} bytes were held"),
                other => break other,
            }
        };
        assert_eq!(error, Err(LineError::TooLong));
        // Also where its end came with it.
        let mut decoder = Decoder::default();
        decoder.push(&[b' '; MAX_LINE_BYTES + 1]);
        decoder.push(b"\n");
        assert_eq!(decoder.next_line(), Err(LineError::TooLong));
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_are_cut(count in 1..20_u64, cuts in prop::collection::vec(1..64_usize, 1..200)) {
            let lines: Vec<Line> = (1..=count).map(|number| Line::Entry(entry(number))).collect();
            let bytes: Vec<u8> = lines.iter().flat_map(|line| encode(line).to_vec()).collect();
            let mut decoder = Decoder::default();
            let (mut left, mut read) = (bytes.as_slice(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            while !left.is_empty() {
                let (piece, rest) = left.split_at((*cuts.next().unwrap()).min(left.len()));
                decoder.push(piece);
                read.extend(all(&mut decoder).unwrap());
                left = rest;
            }
            prop_assert_eq!(read, lines);
        }

        #[test]
        fn hostile_bytes_make_an_error_or_nothing(bytes in any::<Vec<u8>>()) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            prop_assert!(all(&mut decoder).unwrap_or_default().is_empty());
        }

        #[test]
        fn a_line_that_was_cut_or_changed_is_not_another_revocation(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let line = Line::Entry(entry(7));
            let good = encode(&line).to_vec();
            let mut cut = Decoder::default();
            cut.push(&good[..at.index(good.len())]);
            prop_assert_eq!(cut.next_line(), Ok(None));
            let mut flipped = good;
            let index = at.index(flipped.len());
            flipped[index] ^= 1 << bit;
            let mut decoder = Decoder::default();
            decoder.push(&flipped);
            // Whatever it says now, it is one line at most, and never the one that was sent.
            prop_assert!(!all(&mut decoder).unwrap_or_default().contains(&line));
        }
    }
}
