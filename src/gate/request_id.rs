//! Fresh request ids: a `UUIDv7` each (RFC 9562 section 5.7), from randomness that is fetched in blocks.
//!
//! An id is no secret, but nobody should be able to guess the next one: all of its random bits are the system's.

use std::cell::RefCell;

use http::HeaderValue;
use uuid::Builder;

use crate::clock::Clock;

/// How much of one id is random, in bytes.
const RANDOM_BYTES: usize = 10;
/// Fetched at once: one system call for so many ids.
const IDS: usize = 100;

/// One worker's supply of request ids.
#[derive(Default)]
pub(super) struct RequestIds(RefCell<Vec<u8>>);

impl RequestIds {
    /// The next one; visible ASCII.
    pub(super) fn next(&self, clock: &Clock) -> HeaderValue {
        let id = Builder::from_unix_timestamp_millis(clock.unix_millis(), &self.random()).into_uuid();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).unwrap_or(HeaderValue::from_static("-"))
    }

    fn random(&self) -> [u8; RANDOM_BYTES] {
        let mut supply = self.0.borrow_mut();
        if supply.len() < RANDOM_BYTES {
            supply.resize(IDS * RANDOM_BYTES, 0);
            if getrandom::fill(&mut supply).is_err() {
                // The system gives no randomness: the time still tells requests apart for a reader of the log.
                supply.fill(0);
            }
        }
        let mut random = [0; RANDOM_BYTES];
        let rest = supply.len() - RANDOM_BYTES;
        random.copy_from_slice(supply.get(rest..).unwrap_or(&[0; RANDOM_BYTES]));
        supply.truncate(rest);
        random
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_version_7_of_their_time_and_never_the_same() {
        let clock = Clock::manual(1_795_512_600);
        let ids = RequestIds::default();
        let mut seen = HashSet::new();
        for _ in 0..3 * IDS {
            let id = ids.next(&clock);
            let uuid = uuid::Uuid::parse_str(id.to_str().unwrap()).unwrap();
            assert_eq!(uuid.get_version_num(), 7);
            assert_eq!(uuid.get_timestamp().unwrap().to_unix().0, 1_795_512_600);
            assert!(seen.insert(id));
        }
    }
}
