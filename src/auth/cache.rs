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

/// How many places a worker has for tokens unless told otherwise. Of so many tokens at random a few share a full set with
/// others, and are verified anew: of half as many, next to none.
pub const DEFAULT_CAPACITY: usize = 32_768;

/// Places at the beginning.
const FIRST_PLACES: usize = 1024;

/// Tokens whose hashes fall together share a set of this many places.
const WAYS: usize = 4;

/// Verifies each token once. Keyed by the whole token; dropped whole when the key ring's generation changes.
pub struct TokenCache {
    generation: u64,
    /// Always `WAYS` times a power of two; doubled where a set is full, up to `most`.
    places: Vec<Option<Place>>,
    most: usize,
    hasher: foldhash::fast::RandomState,
    next_victim: usize,
}

struct Place {
    /// So that no other token of the set is read, which costs more than all the rest.
    hash: u64,
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
        let most = capacity.clamp(WAYS, 1 << 20).next_power_of_two();
        let hasher = foldhash::fast::RandomState::default();
        Self { generation: 0, places: empty(most.min(FIRST_PLACES)), most, hasher, next_victim: 0 }
    }

    /// The verified token, from memory where it was seen before. `exp` is checked on every call. `now`: Unix seconds.
    pub fn verify(&mut self, token: &str, ring: &KeyRing, now: u64) -> Result<Arc<Verified>, TokenError> {
        if self.generation != ring.generation() {
            self.places.fill_with(|| None);
            self.generation = ring.generation();
        }
        let hash = self.hash_of(token);
        let known =
            self.set(hash).iter().flatten().filter(|place| place.hash == hash).find(|place| *place.token == *token);
        if let Some(place) = known {
            return if place.verified.expires > now {
                Ok(Arc::clone(&place.verified))
            } else {
                Err(TokenError::Expired)
            };
        }
        let verified = Arc::new(ring.verify(token, now)?);
        self.remember(Place { hash, token: token.into(), verified: Arc::clone(&verified) }, now);
        Ok(verified)
    }

    /// The text of a token that was verified here, where it has not made room for others yet. Looks at every place.
    #[must_use]
    pub fn text_of(&self, verified: &Arc<Verified>) -> Option<&str> {
        let places = self.places.iter().flatten();
        places.into_iter().find(|place| Arc::ptr_eq(&place.verified, verified)).map(|place| &*place.token)
    }

    fn remember(&mut self, place: Place, now: u64) {
        let unused = |place: &Option<Place>| place.as_ref().is_none_or(|place| place.verified.expires <= now);
        let mut free = self.set(place.hash).iter().position(unused);
        while free.is_none() && self.places.len() < self.most {
            self.grow();
            free = self.set(place.hash).iter().position(unused);
        }
        let victim = free.unwrap_or_else(|| {
            self.next_victim = self.next_victim.wrapping_add(1);
            self.next_victim % WAYS
        });
        if let Some(slot) = self.set(place.hash).get_mut(victim) {
            *slot = Some(place);
        }
    }

    /// Twice as many places. What shared a set is in two now, so everything has a place.
    fn grow(&mut self) {
        let twice = empty(self.places.len() * 2);
        for place in std::mem::replace(&mut self.places, twice).into_iter().flatten() {
            if let Some(slot) = self.set(place.hash).iter_mut().find(|slot| slot.is_none()) {
                *slot = Some(place);
            }
        }
    }

    fn set(&mut self, hash: u64) -> &mut [Option<Place>] {
        let sets = self.places.len() / WAYS;
        let first = usize::try_from(hash & (sets as u64 - 1)).unwrap_or(0) * WAYS;
        self.places.get_mut(first..first + WAYS).unwrap_or_default()
    }

    /// The end of a token is the end of its signature: as good as random, and short to hash.
    fn hash_of(&self, token: &str) -> u64 {
        let bytes = token.as_bytes();
        let end = bytes.len().checked_sub(32).and_then(|start| bytes.get(start..)).unwrap_or(bytes);
        self.hasher.hash_one(end)
    }
}

fn empty(places: usize) -> Vec<Option<Place>> {
    let mut table = Vec::new();
    table.resize_with(places, || None);
    table
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
    fn it_grows_so_far_and_forgets_next_to_nothing_on_the_way() {
        let fixture = Fixture::new();
        let mut cache = TokenCache::new(DEFAULT_CAPACITY);
        assert_eq!(cache.places.len(), FIRST_PLACES);
        let tokens: Vec<_> = (0..3 * 1024).map(|age| fixture.token("kim", NOW - age)).collect();
        let first: Vec<_> = tokens.iter().map(|token| cache.verify(token, &fixture.ring, NOW).unwrap()).collect();
        let grown = cache.places.len();
        assert!(grown > tokens.len() && grown <= DEFAULT_CAPACITY, "{grown}");
        let same = |(token, first): &(&String, &Arc<Verified>)| {
            Arc::ptr_eq(first, &cache.verify(token, &fixture.ring, NOW).unwrap())
        };
        // By chance five of them may fall into one set of four, whose places are all that there are.
        let remembered = tokens.iter().zip(&first).filter(same).count();
        assert!(remembered > tokens.len() - 50, "{remembered} of {}", tokens.len());
    }

    #[test]
    fn it_grows_no_further() {
        let fixture = Fixture::new();
        let mut cache = TokenCache::new(16);
        for age in 0..100 {
            cache.verify(&fixture.token("kim", NOW - age), &fixture.ring, NOW).unwrap();
        }
        assert_eq!(cache.places.len(), 16);
        assert_eq!(TokenCache::new(0).places.len(), WAYS);
    }
}
