//! Taking the lines in: what a gateway is to do at each, and what it must not believe.

use super::line::{Beat, Hello, Last, Line, LineError, VERSION};
use crate::store::LogEntry;

/// More entries than any log holds; what claims to be longer fills the memory of every gateway.
const MAX_ENTRIES: usize = 4_000_000;

/// What to do after a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// Something is over.
    Extend(LogEntry),
    /// This is everything that is over; what was known before counts no longer.
    Replace {
        /// All live entries.
        entries: Vec<LogEntry>,
        /// The beat that says that it is all.
        beat: Beat,
    },
    /// Everything up to here is known.
    Alive(Beat),
}

/// Why a feed is not read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The bytes.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The first line.
    #[error("the feed is of version {0}, this program reads version {VERSION}; bring both to the same release")]
    Version(u32),
    /// Lines in the wrong order.
    #[error("the feed's lines are in the wrong order")]
    Order,
    /// The log's newest number is lower than it was.
    #[error("the feed's numbers went back from {from} to {to}")]
    WentBack {
        /// What was known.
        from: u64,
        /// What came.
        to: u64,
    },
    /// More entries than there can be.
    #[error("the feed has more entries than there can be")]
    TooMany,
}

/// Where a gateway is in the feed. Lives longer than one connection.
#[derive(Debug, Default)]
pub struct Reader {
    last: Option<Last>,
    /// The highest number that was heard of.
    head: u64,
    phase: Phase,
    /// Set when the numbers went back: the next whole reading is taken as it comes.
    yields: bool,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Greeting,
    /// Everything is being read.
    Whole(Vec<LogEntry>),
    Following,
}

impl Reader {
    /// A connection begins. Where to read on from; `None`: from the beginning.
    pub fn begin(&mut self) -> Option<&Last> {
        self.phase = Phase::Greeting;
        self.last.as_ref()
    }

    /// Reads everything with the next connection.
    pub fn start_over(&mut self) {
        self.last = None;
    }

    /// Believes a log whose numbers are lower than those that were known: it has been lower for some time, so it is
    /// another history and not a replica that is a moment behind.
    pub fn yield_to_lower_numbers(&mut self) {
        self.yields = true;
    }

    /// Takes one line in.
    pub fn take(&mut self, line: Line) -> Result<Step, FeedError> {
        match (&mut self.phase, line) {
            (Phase::Greeting, Line::Hello(Hello { version, .. })) if version != VERSION => {
                Err(FeedError::Version(version))
            }
            (Phase::Greeting, Line::Hello(Hello { from: 0, .. })) => {
                self.phase = Phase::Whole(Vec::new());
                Ok(Step::Wait)
            }
            (Phase::Greeting, Line::Hello(hello)) => {
                if self.last.as_ref().is_none_or(|last| last.number != hello.from) {
                    return Err(FeedError::Order);
                }
                self.phase = Phase::Following;
                Ok(Step::Wait)
            }
            (Phase::Whole(entries), Line::Entry(entry)) => {
                if entries.len() >= MAX_ENTRIES {
                    return Err(FeedError::TooMany);
                }
                entries.push(entry);
                Ok(Step::Wait)
            }
            (Phase::Whole(entries), Line::Beat(beat)) => {
                if beat.head < self.head && !self.yields {
                    return Err(FeedError::WentBack { from: self.head, to: beat.head });
                }
                let entries = std::mem::take(entries);
                self.last = entries.iter().max_by_key(|entry| entry.number).map(Last::of);
                let newest = self.last.as_ref().map_or(0, |last| last.number);
                if beat.head < newest {
                    self.last = None;
                    return Err(FeedError::WentBack { from: newest, to: beat.head });
                }
                self.head = beat.head;
                self.yields = false;
                self.phase = Phase::Following;
                Ok(Step::Replace { entries, beat })
            }
            (Phase::Following, Line::Entry(entry)) => {
                // The order in which they came is the order in which the centre goes on.
                self.last = Some(Last::of(&entry));
                self.head = self.head.max(entry.number);
                Ok(Step::Extend(entry))
            }
            (Phase::Following, Line::Beat(beat)) => {
                if beat.head < self.head {
                    self.last = None;
                    return Err(FeedError::WentBack { from: self.head, to: beat.head });
                }
                self.head = beat.head;
                Ok(Step::Alive(beat))
            }
            (Phase::Greeting, _) | (_, Line::Hello(_)) => Err(FeedError::Order),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Revocation;

    fn hello(from: u64) -> Line {
        Line::Hello(Hello { version: VERSION, from })
    }

    fn entry(number: u64) -> LogEntry {
        LogEntry { number, what: Revocation::All, at: 1, expires: u64::MAX }
    }

    fn beat(head: u64) -> Beat {
        Beat { head, at: 0, behind: 0, keys: String::new(), forgotten: crate::store::Forgotten::default() }
    }

    /// A reader that knows the log up to this number.
    fn at(number: u64) -> Reader {
        let mut reader = Reader::default();
        assert_eq!(reader.begin(), None);
        reader.take(hello(0)).unwrap();
        reader.take(Line::Entry(entry(number))).unwrap();
        let whole = reader.take(Line::Beat(beat(number))).unwrap();
        assert_eq!(whole, Step::Replace { entries: vec![entry(number)], beat: beat(number) });
        reader
    }

    #[test]
    fn nothing_counts_before_the_whole_log_was_told() {
        let mut reader = Reader::default();
        reader.begin();
        reader.take(hello(0)).unwrap();
        for number in [3, 5, 4] {
            assert_eq!(reader.take(Line::Entry(entry(number))), Ok(Step::Wait));
        }
        // Cut off here: the next connection begins at the beginning.
        assert_eq!(reader.begin(), None);
        reader.take(hello(0)).unwrap();
        let whole = reader.take(Line::Beat(beat(9))).unwrap();
        assert_eq!(whole, Step::Replace { entries: Vec::new(), beat: beat(9) });
    }

    #[test]
    fn it_resumes_after_the_last_entry_that_came() {
        let mut reader = at(5);
        assert_eq!(reader.take(Line::Entry(entry(7))), Ok(Step::Extend(entry(7))));
        // Late, and a revocation all the same.
        assert_eq!(reader.take(Line::Entry(entry(6))), Ok(Step::Extend(entry(6))));
        assert_eq!(reader.take(Line::Beat(beat(7))), Ok(Step::Alive(beat(7))));
        assert_eq!(reader.begin(), Some(&Last::of(&entry(6))));
        assert_eq!(reader.take(hello(6)), Ok(Step::Wait));
        assert_eq!(reader.take(Line::Entry(entry(8))), Ok(Step::Extend(entry(8))));
    }

    #[test]
    fn numbers_that_go_back_are_read_again_from_the_beginning_and_believed_after_a_while() {
        let mut reader = at(500);
        reader.begin();
        reader.take(hello(500)).unwrap();
        assert_eq!(reader.take(Line::Beat(beat(300))), Err(FeedError::WentBack { from: 500, to: 300 }));
        for _ in 0..3 {
            assert_eq!(reader.begin(), None);
            reader.take(hello(0)).unwrap();
            reader.take(Line::Entry(entry(300))).unwrap();
            assert_eq!(reader.take(Line::Beat(beat(300))), Err(FeedError::WentBack { from: 500, to: 300 }));
        }
        reader.yield_to_lower_numbers();
        reader.begin();
        reader.take(hello(0)).unwrap();
        let whole = reader.take(Line::Beat(beat(300))).unwrap();
        assert_eq!(whole, Step::Replace { entries: Vec::new(), beat: beat(300) });
        assert_eq!(reader.take(Line::Beat(beat(299))), Err(FeedError::WentBack { from: 300, to: 299 }));
    }

    #[test]
    fn a_beat_can_not_deny_an_entry() {
        let mut reader = Reader::default();
        reader.begin();
        reader.take(hello(0)).unwrap();
        reader.take(Line::Entry(entry(9))).unwrap();
        assert_eq!(reader.take(Line::Beat(beat(8))), Err(FeedError::WentBack { from: 9, to: 8 }));
        let mut reader = at(5);
        reader.take(Line::Entry(entry(9))).unwrap();
        assert_eq!(reader.take(Line::Beat(beat(8))), Err(FeedError::WentBack { from: 9, to: 8 }));
        assert_eq!(reader.begin(), None);
    }

    #[test]
    fn lines_out_of_order_and_other_versions_are_refused() {
        let mut reader = Reader::default();
        reader.begin();
        assert_eq!(reader.take(Line::Beat(beat(1))), Err(FeedError::Order));
        assert_eq!(reader.take(Line::Entry(entry(1))), Err(FeedError::Order));
        // A resumption of what nobody asked for.
        assert_eq!(reader.take(hello(4)), Err(FeedError::Order));
        let newer = Line::Hello(Hello { version: VERSION + 1, from: 0 });
        assert_eq!(reader.take(newer), Err(FeedError::Version(VERSION + 1)));
        reader.take(hello(0)).unwrap();
        assert_eq!(reader.take(hello(0)), Err(FeedError::Order));
        let mut reader = at(5);
        reader.begin();
        assert_eq!(reader.take(hello(4)), Err(FeedError::Order));
    }

    fn any_line() -> impl Strategy<Value = Line> {
        prop_oneof![
            (0..3_u64, any::<bool>())
                .prop_map(|(from, old)| Line::Hello(Hello { version: if old { 0 } else { VERSION }, from })),
            (0..9_u64).prop_map(|number| Line::Entry(entry(number))),
            (0..9_u64).prop_map(|head| Line::Beat(beat(head))),
        ]
    }

    proptest! {
        #[test]
        fn whatever_comes_no_entry_that_was_told_is_lost(lines in prop::collection::vec(any_line(), 0..40)) {
            let mut reader = at(1);
            let mut known = vec![1];
            let mut told = Vec::new();
            reader.begin();
            for line in lines {
                let number = if let Line::Entry(entry) = &line { Some(entry.number) } else { None };
                match reader.take(line) {
                    Ok(Step::Wait) => told.extend(number),
                    Ok(Step::Extend(entry)) => {
                        prop_assert_eq!(Some(entry.number), number);
                        known.push(entry.number);
                    }
                    Ok(Step::Replace { entries, beat }) => {
                        let numbers: Vec<u64> = entries.iter().map(|entry| entry.number).collect();
                        prop_assert_eq!(&numbers, &told);
                        prop_assert!(numbers.iter().all(|number| *number <= beat.head));
                        known = numbers;
                    }
                    Ok(Step::Alive(beat)) => prop_assert!(known.iter().all(|number| *number <= beat.head)),
                    Err(_) => {
                        told.clear();
                        reader.begin();
                    }
                }
            }
        }
    }
}
