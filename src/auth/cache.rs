//! Remembered verifications: one bounded table per worker, no lock.
//!
//! - Only tokens that verified are in it, so nobody without a key of ours can fill it.
//! - A hit compares the whole token and looks at `exp`; it allocates nothing.
//! - It is emptied when the key ring's generation changes.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use super::Verified;
use super::keys::KeyRing;
use super::token::TokenError;

/// How many tokens a worker remembers unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 16_384;

/// Tokens whose hashes fall together share a set of this many places.
const WAYS: usize = 4;

/// Verifies each token once. Keyed by the whole token; dropped whole when the key ring's generation changes.
pub struct TokenCache {
    generation: u64,
    /// Always `WAYS` times a power of two.
    places: Vec<Option<Place>>,
    hasher: foldhash::fast::RandomState,
    next_victim: usize,
}

struct Place {
    token: Box<str>,
    verified: Arc<Verified>,
}

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The tokens in it are credentials.
        write!(formatter, "TokenCache({} places)", self.places.len())
    }
}

impl TokenCache {
    /// With room for about `capacity` tokens (rounded up to a power of two).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let places = capacity.clamp(WAYS, 1 << 20).next_power_of_two();
        let mut table = Vec::new();
        table.resize_with(places, || None);
        Self { generation: 0, places: table, hasher: foldhash::fast::RandomState::default(), next_victim: 0 }
    }

    /// The verified token, from memory where it was seen before. `exp` is checked on every call. `now`: Unix seconds.
    pub fn verify(&mut self, token: &str, ring: &KeyRing, now: u64) -> Result<Arc<Verified>, TokenError> {
        if self.generation != ring.generation() {
            self.places.fill_with(|| None);
            self.generation = ring.generation();
        }
        let sets = self.places.len() / WAYS;
        let first = self.set_of(token, sets) * WAYS;
        let Some(set) = self.places.get_mut(first..first + WAYS) else {
            return ring.verify(token, now).map(Arc::new);
        };
        let known = set.iter().flatten().find(|place| *place.token == *token);
        if let Some(place) = known {
            return if place.verified.expires > now {
                Ok(Arc::clone(&place.verified))
            } else {
                Err(TokenError::Expired)
            };
        }
        let verified = Arc::new(ring.verify(token, now)?);
        let unused = |place: &Option<Place>| place.as_ref().is_none_or(|place| place.verified.expires <= now);
        let victim = set.iter().position(unused).unwrap_or_else(|| {
            self.next_victim = self.next_victim.wrapping_add(1);
            self.next_victim % WAYS
        });
        if let Some(place) = set.get_mut(victim) {
            *place = Some(Place { token: token.into(), verified: Arc::clone(&verified) });
        }
        Ok(verified)
    }

    /// The end of a token is the end of its signature: as good as random, and short to hash.
    fn set_of(&self, token: &str, sets: usize) -> usize {
        let bytes = token.as_bytes();
        let end = bytes.len().checked_sub(32).and_then(|start| bytes.get(start..)).unwrap_or(bytes);
        usize::try_from(self.hasher.hash_one(end) & (sets as u64 - 1)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{DAY, Fixture, NOW, hs256};

    #[test]
    fn a_token_is_verified_once_and_expires_all_the_same() {
        let fixture = Fixture::new();
        let mut cache = TokenCache::new(16);
        let token = fixture.token("kim", NOW);
        let first = cache.verify(&token, &fixture.ring, NOW).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.verify(&token, &fixture.ring, NOW).unwrap()));
        assert!(cache.verify(&token, &fixture.ring, NOW + 7 * DAY - 1).is_ok());
        assert_eq!(cache.verify(&token, &fixture.ring, NOW + 7 * DAY).unwrap_err(), TokenError::Expired);
    }

    #[test]
    fn one_that_ends_like_a_known_one_is_not_known() {
        let fixture = Fixture::new();
        let mut cache = TokenCache::new(4);
        let (kim, lee) = (fixture.token("kim", NOW), fixture.token("lee", NOW));
        cache.verify(&kim, &fixture.ring, NOW).unwrap();
        let (_, signature) = kim.rsplit_once('.').unwrap();
        let (message, _) = lee.rsplit_once('.').unwrap();
        let forged = format!("{message}.{signature}");
        assert_eq!(cache.verify(&forged, &fixture.ring, NOW).unwrap_err(), TokenError::Signature);
        assert_eq!(cache.verify("", &fixture.ring, NOW).unwrap_err(), TokenError::Malformed("it has not three parts"));
        assert_eq!(cache.places.iter().flatten().count(), 1, "failures leave no trace");
    }

    #[test]
    fn another_ring_forgets_all() {
        let fixture = Fixture::new();
        let mut cache = TokenCache::new(16);
        let token = fixture.token("kim", NOW);
        let first = cache.verify(&token, &fixture.ring, NOW).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let same = KeyRing::load(&hs256(), folder.path(), NOW).unwrap();
        assert!(!Arc::ptr_eq(&first, &cache.verify(&token, &same, NOW).unwrap()));
        let mut config = hs256();
        config.signing_key = Some(crate::auth::testing::secret("another secret, also of 32 bytes and more"));
        let other = KeyRing::load(&config, folder.path(), NOW).unwrap();
        assert_eq!(cache.verify(&token, &other, NOW).unwrap_err(), TokenError::UnknownKey);
    }

    #[test]
    fn no_byte_of_a_remembered_token_can_change() {
        let fixture = Fixture::new();
        // So few places that every token meets every other one.
        let mut cache = TokenCache::new(WAYS);
        let token = fixture.token("kim", NOW);
        cache.verify(&token, &fixture.ring, NOW).unwrap();
        for at in 0..token.len() {
            for other in ["A", "Q", "_", ".", "=", " ", "\0", "\u{e9}"] {
                let mut changed = token.clone();
                changed.replace_range(at..=at, other);
                if changed != token {
                    assert!(cache.verify(&changed, &fixture.ring, NOW).is_err(), "{at} {other:?}");
                }
            }
        }
        let [longer, shorter] = [format!("x{token}"), token[1..].to_owned()];
        assert!(cache.verify(&longer, &fixture.ring, NOW).is_err());
        assert!(cache.verify(&shorter, &fixture.ring, NOW).is_err());
        assert_eq!(cache.verify(&token, &fixture.ring, NOW).unwrap().principal.username, "kim");
    }

    #[test]
    fn it_never_grows() {
        let fixture = Fixture::new();
        let mut cache = TokenCache::new(16);
        for age in 0..100 {
            cache.verify(&fixture.token("kim", NOW - age), &fixture.ring, NOW).unwrap();
        }
        assert_eq!(cache.places.len(), 16);
        assert_eq!(TokenCache::new(0).places.len(), WAYS);
        assert_eq!(TokenCache::new(DEFAULT_CAPACITY).places.len(), DEFAULT_CAPACITY);
    }
}
