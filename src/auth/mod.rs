//! Tokens, sessions, revocation: who sent a request, and whether he still may.
//!
//! - `auth` never hashes a password.
//! - Finding out who sent a request ([`identify`]) does no I/O and takes no lock.
//! - Whatever fails, is doubled or contradicts itself names nobody.

pub mod adoption;
pub mod cache;
pub mod centre;
#[cfg(test)]
mod clock_tests;
mod flight;
pub mod freshness;
mod jwks;
mod key_files;
pub mod keys;
mod renewal;
pub mod revocation;
pub mod session;
#[cfg(test)]
mod testing;
pub mod token;

use std::sync::Arc;

use http::HeaderMap;

pub use self::renewal::Asker;

use crate::clock::Clock;
use crate::policy::{Caller, Principal, Unidentified};
use crate::store::{AccountId, SessionId};

/// A token that verified, ready for every request that carries it. Immutable.
#[derive(Debug)]
pub struct Verified {
    pub principal: Arc<Principal>,
    pub account: AccountId,
    /// `None`: a foreign issuer's token, or one of ours that names no session.
    pub session: Option<SessionId>,
    /// 128 bits of the account's and the session's id, as [`revocation::Revocations`] keys them.
    pub account_key: u128,
    pub session_key: Option<u128>,
    /// The log's number when it was issued; foreign tokens have none.
    pub seq: Option<u64>,
    /// `__v`; foreign tokens have none.
    pub version: Option<u64>,
    /// Unix seconds; a foreign token's `iat`.
    pub auth_time: u64,
    pub issued_at: u64,
    /// Unix seconds: `exp` as the token says it, whatever the configuration makes of it now.
    pub ends: u64,
    /// Unix seconds: `exp`, but never later than `auth_time` + `max_lifetime` and `iat` + horizon.
    pub expires: u64,
}

/// Where the credential was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Cookie,
    Bearer,
}

/// What the revocation log says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Current,
    /// The account has changed since entry `since`: its groups are to be read again.
    Changed {
        since: u64,
    },
    Revoked,
}

/// A caller together with the credential that names him.
#[derive(Debug)]
pub struct Identified {
    pub caller: Caller,
    /// The token behind a [`Caller::Person`].
    pub credential: Option<(Arc<Verified>, Source)>,
    pub standing: Standing,
    /// The other valid cookies of our name; of two people all of them. Each is somebody's login as well.
    pub other_cookies: Vec<Arc<Verified>>,
    /// A cookie of our name came that a key of ours signed and that is no login any more: the refusal that follows clears
    /// it. What somebody else signed is not ours to clear, and neither is what may be good in a moment or by another
    /// reading of the clock.
    pub stale_cookie: bool,
    /// The bearer token is one that our keys made (valid or not any more): it goes no further than here.
    pub own_bearer: bool,
    /// A token named a key that is not known.
    pub unknown_key: bool,
}

/// Cookies, and bearer tokens, of one request that are looked at. A browser sends one; each costs a signature's check.
const MAX_CREDENTIALS: usize = 32;

/// Finds out who sent a request, without I/O. Tries every cookie of the name and `Authorization: Bearer`; valid ones of
/// two people count as none, and so does a heap of more than 32. `now`: Unix seconds.
///
/// While [`revocation::Revocations::is_ready`] is false nobody is let in.
pub fn identify(
    headers: &HeaderMap,
    cookie_name: &str,
    ring: &keys::KeyRing,
    cache: &mut cache::TokenCache,
    revocations: &revocation::Revocations,
    clock: &Clock,
) -> Identified {
    let now = clock.unix_seconds();
    let cookies = crate::message::cookies::values(headers, cookie_name);
    let bearers = headers.get_all(http::header::AUTHORIZATION).iter().filter_map(bearer);
    let check = |token: &str| {
        let verified = cache.verify(token, ring, now)?;
        let standing = revocations.standing(&verified);
        Ok((verified, standing))
    };
    identify_tokens(cookies, bearers, check, |token, error| is_over_for_good(token, error, ring, revocations, clock))
}

/// Whether a token that failed is one of ours, and will never be a login again.
fn is_over_for_good(
    token: &str,
    error: &token::TokenError,
    ring: &keys::KeyRing,
    revocations: &revocation::Revocations,
    clock: &Clock,
) -> bool {
    match error {
        token::TokenError::Expired => revocations
            .time_that_is_over(clock)
            .is_some_and(|over| matches!(ring.verify(token, over), Err(token::TokenError::Expired))),
        error => error.is_signed_by_us() && !error.is_for_another() && *error != token::TokenError::NotYet,
    }
}

/// The text of the credential that [`identify`] found: for a gateway that has to show it to its centre.
pub fn presented<'a>(
    headers: &'a HeaderMap,
    cookie_name: &'a str,
    ring: &keys::KeyRing,
    cache: &mut cache::TokenCache,
    credential: &(Arc<Verified>, Source),
    now: u64,
) -> Option<&'a str> {
    let (found, source) = credential;
    let same = |one: &Verified| {
        (one.account_key, one.session_key, one.seq, one.issued_at, one.expires)
            == (found.account_key, found.session_key, found.seq, found.issued_at, found.expires)
    };
    let mut is_it = |token: &&str| cache.verify(token, ring, now).is_ok_and(|verified| same(&verified));
    match source {
        Source::Cookie => {
            crate::message::cookies::values(headers, cookie_name).take(MAX_CREDENTIALS).find(|token| is_it(token))
        }
        Source::Bearer => {
            let bearers = headers.get_all(http::header::AUTHORIZATION).iter().filter_map(bearer);
            bearers.take(MAX_CREDENTIALS).find(|token| is_it(token))
        }
    }
}

/// The token of one `Authorization: Bearer` (RFC 6750 section 2.1); the scheme's name in any case (RFC 9110 section 11.1).
fn bearer(value: &http::HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_matches([' ', '\t']))
}

/// Decides between all credentials of a request. Tells by `check` what each is worth.
fn identify_tokens<'a>(
    cookies: impl Iterator<Item = &'a str>,
    bearers: impl Iterator<Item = &'a str>,
    mut check: impl FnMut(&str) -> Result<(Arc<Verified>, Standing), token::TokenError>,
    is_over_for_good: impl Fn(&str, &token::TokenError) -> bool,
) -> Identified {
    let mut found = Found::default();
    let (mut is_stale, mut may_be_good) = (false, false);
    for (index, token) in cookies.enumerate() {
        if index >= MAX_CREDENTIALS {
            // What nobody looked at may name another person.
            found.conflict = true;
            break;
        }
        let result = check(token);
        match &result {
            Ok((_, Standing::Revoked)) => is_stale = true,
            Err(error) if is_over_for_good(token, error) => is_stale = true,
            Err(token::TokenError::NotYet | token::TokenError::Expired) => may_be_good = true,
            Ok(_) | Err(_) => {}
        }
        found.add(result, Source::Cookie);
    }
    let cookies_conflict = found.conflict;
    let cookie_is_good = found.best.is_some() && !cookies_conflict;
    let mut own_bearer = false;
    for (index, token) in bearers.enumerate() {
        if index >= MAX_CREDENTIALS {
            found.conflict = true;
            own_bearer = true;
            break;
        }
        let result = check(token);
        own_bearer |= match &result {
            Ok(_) => true,
            Err(error) => error.is_signed_by_us(),
        };
        found.add(result, Source::Bearer);
    }
    let stale_cookie = cookies_conflict || (is_stale && !cookie_is_good && !may_be_good);
    if found.conflict
        && let Some((best, _, Source::Cookie)) = &found.best
    {
        found.others.push(Arc::clone(best));
    }
    let other_cookies = std::mem::take(&mut found.others);
    let nobody = |why, other_cookies| Identified {
        caller: Caller::Anonymous(why),
        credential: None,
        standing: Standing::Current,
        other_cookies,
        stale_cookie,
        own_bearer,
        unknown_key: found.unknown_key,
    };
    if found.conflict {
        return nobody(Unidentified::ConflictingTokens, other_cookies);
    }
    let Some((verified, standing, source)) = found.best else {
        return nobody(found.problem.unwrap_or(Unidentified::NoCredential), other_cookies);
    };
    Identified {
        caller: Caller::Person(Arc::clone(&verified.principal)),
        credential: Some((verified, source)),
        standing,
        other_cookies,
        stale_cookie,
        own_bearer,
        unknown_key: found.unknown_key,
    }
}

/// What the credentials looked at so far come to.
#[derive(Default)]
struct Found {
    best: Option<(Arc<Verified>, Standing, Source)>,
    /// Valid cookies that are not `best`. Nothing is allocated for a browser that sends one.
    others: Vec<Arc<Verified>>,
    conflict: bool,
    unknown_key: bool,
    /// The most telling reason why one failed.
    problem: Option<Unidentified>,
}

impl Found {
    fn add(&mut self, result: Result<(Arc<Verified>, Standing), token::TokenError>, source: Source) {
        let (verified, standing) = match result {
            Ok((_, Standing::Revoked)) => return self.note(Unidentified::RevokedToken),
            Ok(valid) => valid,
            Err(token::TokenError::Expired) => return self.note(Unidentified::ExpiredToken),
            Err(error) => {
                self.unknown_key |= error == token::TokenError::UnknownKey;
                return self.note(Unidentified::InvalidToken);
            }
        };
        if let Some((known, _, known_source)) = &self.best {
            if known.account != verified.account {
                self.conflict = true;
                self.keep(verified, source);
                return;
            }
            // The same person twice: the freshest; but one who brings a bearer token as well is a program, which has
            // no use for a new cookie.
            let fresher = (verified.issued_at, verified.expires) > (known.issued_at, known.expires);
            if source == *known_source && !fresher {
                self.keep(verified, source);
                return;
            }
            let (known, known_source) = (Arc::clone(known), *known_source);
            self.keep(known, known_source);
        }
        self.best = Some((verified, standing, source));
    }

    fn keep(&mut self, verified: Arc<Verified>, source: Source) {
        if source == Source::Cookie {
            self.others.push(verified);
        }
    }

    fn note(&mut self, problem: Unidentified) {
        let telling = |problem| match problem {
            Unidentified::RevokedToken => 2,
            Unidentified::ExpiredToken => 1,
            _ => 0,
        };
        if self.problem.is_none_or(|known| telling(problem) > telling(known)) {
            self.problem = Some(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Fixture, NOW};
    use super::*;
    use crate::store::{LogEntry, LogFollower as _, Revocation};

    fn identify_with(fixture: &Fixture, cookies: &[&str], bearers: &[&str]) -> Identified {
        let mut cache = cache::TokenCache::new(16);
        let mut check = |token: &str| {
            let verified = cache.verify(token, &fixture.ring, NOW)?;
            let standing = fixture.revocations.standing(&verified);
            Ok((verified, standing))
        };
        let over = |token: &str, error: &token::TokenError| {
            is_over_for_good(token, error, &fixture.ring, &fixture.revocations, &fixture.clock)
        };
        identify_tokens(cookies.iter().copied(), bearers.iter().copied(), &mut check, over)
    }

    fn reason(identified: &Identified) -> Option<Unidentified> {
        match &identified.caller {
            Caller::Anonymous(why) => Some(*why),
            Caller::Person(_) => None,
        }
    }

    #[test]
    fn every_cookie_of_the_name_is_tried() {
        let fixture = Fixture::new();
        let kim = fixture.token("kim", NOW - 10);
        for cookies in [&["garbage", &kim][..], &[&kim, "garbage"], &[&kim, &kim], &[&kim]] {
            let identified = identify_with(&fixture, cookies, &[]);
            assert_eq!(reason(&identified), None, "{cookies:?}");
            assert!(!identified.stale_cookie, "a good cookie must not be cleared with a bad one");
        }
        let identified = identify_with(&fixture, &["garbage"], &[]);
        assert_eq!(reason(&identified), Some(Unidentified::InvalidToken));
        assert!(!identified.stale_cookie, "it is not ours to clear");
        let identified = identify_with(&fixture, &[], &[]);
        assert_eq!(reason(&identified), Some(Unidentified::NoCredential));
        assert!(!identified.stale_cookie);
    }

    #[test]
    fn only_what_is_ours_and_over_for_good_is_cleared() {
        let fixture = Fixture::new();
        let tell = |settled| {
            let forgotten = crate::store::Forgotten { settled, ..Default::default() };
            fixture.revocations.forget(forgotten, &fixture.clock);
        };
        let signed = |claims: serde_json::Value| {
            let key = jsonwebtoken::EncodingKey::from_secret(testing::SECRET.as_bytes());
            jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
        };
        let claims = |change: serde_json::Value| {
            let mut claims = serde_json::json!({ "_id": "a", "username": "kim", "iat": NOW, "exp": NOW + 99 });
            claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            claims
        };
        let expired = signed(claims(serde_json::json!({ "iat": NOW - 900, "exp": NOW - 400 })));
        let not_yet = signed(claims(serde_json::json!({ "iat": NOW + 60 })));
        let for_another = signed(claims(serde_json::json!({ "aud": "shop" })));
        let by_another = signed(claims(serde_json::json!({ "iss": "shop" })));
        let mistaken = signed(claims(serde_json::json!({ "username": "k im" })));
        let forged = expired.rsplit_once('.').unwrap().0.to_owned() + ".AAAA";
        let is_cleared = |cookies: &[&str]| identify_with(&fixture, cookies, &[]).stale_cookie;
        assert!(!is_cleared(&[&expired]), "nobody has told the time yet");
        tell(NOW);
        for (cookies, cleared) in [
            (&[&*expired][..], true),
            (&[&*mistaken], true),
            (&[&*not_yet], false),
            (&[&*for_another], false),
            (&[&*by_another], false),
            (&[&*forged], false),
            (&["garbage"], false),
            (&[&*expired, "garbage"], true),
            (&[&*expired, &*not_yet], false),
        ] {
            assert_eq!(is_cleared(cookies), cleared, "{cookies:?}");
        }
        // The wall clock is two days ahead of what this machine has lived through.
        tell(NOW - 2 * 24 * 3600);
        assert!(!is_cleared(&[&expired]));
    }

    #[test]
    fn two_people_are_nobody() {
        let fixture = Fixture::new();
        let (kim, lee) = (fixture.token("kim", NOW), fixture.token("lee", NOW));
        for (cookies, bearers, stale) in [
            (&[&*kim, &*lee][..], &[][..], true),
            (&[&*kim][..], &[&*lee][..], false),
            (&[][..], &[&*kim, &*lee][..], false),
        ] {
            let identified = identify_with(&fixture, cookies, bearers);
            assert_eq!(reason(&identified), Some(Unidentified::ConflictingTokens));
            assert!(identified.credential.is_none());
            assert_eq!(identified.stale_cookie, stale);
        }
    }

    #[test]
    fn every_valid_cookie_is_told_whoever_it_names() {
        let fixture = Fixture::new();
        let (kim, old, lee) =
            (fixture.token("kim", NOW), fixture.token("kim", NOW - 9), fixture.token("lee", NOW - 20));
        for (cookies, bearers, told) in [
            (&[&*kim][..], &[][..], &[][..]),
            (&["garbage", &*kim], &[], &[]),
            (&[&*kim, &*old], &[], &[NOW - 9]),
            (&[&*kim, &*lee], &[], &[NOW - 20, NOW]),
            (&[&*lee, &*kim, &*old], &[], &[NOW - 20, NOW - 9, NOW]),
            (&[&*kim], &[&*old], &[NOW]),
            (&[&*lee], &[&*kim], &[NOW - 20]),
            (&[], &[&*kim, &*old], &[]),
        ] {
            let others = identify_with(&fixture, cookies, bearers).other_cookies;
            let mut found: Vec<_> = others.iter().map(|other| other.issued_at).collect();
            found.sort_unstable();
            assert_eq!(found, told, "{cookies:?} {bearers:?}");
        }
    }

    #[test]
    fn a_heap_of_credentials_is_nobody() {
        let fixture = Fixture::new();
        let kim = fixture.token("kim", NOW);
        let mut cookies = vec!["garbage"; MAX_CREDENTIALS - 1];
        cookies.insert(0, &kim);
        assert_eq!(reason(&identify_with(&fixture, &cookies, &[])), None);
        cookies.push("garbage");
        let identified = identify_with(&fixture, &cookies, &[]);
        assert_eq!(reason(&identified), Some(Unidentified::ConflictingTokens));
        assert!(identified.stale_cookie);
        // Whatever the cookies are, a bearer token of ours must not get any further.
        let lee = fixture.token("lee", NOW);
        assert!(identify_with(&fixture, &cookies, &[&kim]).own_bearer);
        assert!(identify_with(&fixture, &[&kim, &lee], &[&kim]).own_bearer);
        assert!(!identify_with(&fixture, &cookies, &["x"]).own_bearer);
        assert!(identify_with(&fixture, &[], &["x"; MAX_CREDENTIALS + 1]).own_bearer);
    }

    #[test]
    fn of_one_person_the_freshest_counts_and_a_program_is_a_program() {
        let fixture = Fixture::new();
        let (old, new) = (fixture.token("kim", NOW - 100), fixture.token("kim", NOW - 10));
        for cookies in [[&*old, &*new], [&*new, &*old]] {
            let (verified, source) = identify_with(&fixture, &cookies, &[]).credential.unwrap();
            assert_eq!((verified.issued_at, source), (NOW - 10, Source::Cookie));
            let others = identify_with(&fixture, &cookies, &[]).other_cookies;
            assert_eq!(others.iter().map(|other| other.issued_at).collect::<Vec<_>>(), [NOW - 100]);
        }
        let (_, source) = identify_with(&fixture, &[&new], &[&old]).credential.unwrap();
        assert_eq!(source, Source::Bearer);
    }

    #[test]
    fn a_bearer_token_of_ours_is_known_even_when_it_is_no_login() {
        let fixture = Fixture::new();
        let expired = fixture.token("kim", NOW - 40 * 24 * 3600);
        let identified = identify_with(&fixture, &[], &[&expired]);
        assert_eq!(reason(&identified), Some(Unidentified::ExpiredToken));
        assert!(identified.own_bearer && !identified.stale_cookie);
        for foreign in ["opaque", "a.b.c", &format!("{expired}x"), "", "eyJhbGciOiJub25lIn0.e30."] {
            let identified = identify_with(&fixture, &[], &[foreign]);
            assert!(!identified.own_bearer, "{foreign}");
        }
        let kim = fixture.token("kim", NOW);
        fixture.revocations.extend(&[LogEntry { number: 99, what: Revocation::All, at: NOW, expires: NOW + 99 }], 99);
        let identified = identify_with(&fixture, &[], &[&kim]);
        assert_eq!(reason(&identified), Some(Unidentified::RevokedToken));
        assert!(identified.own_bearer);
    }

    #[test]
    fn the_scheme_may_be_written_in_any_case_and_other_schemes_are_not_ours() {
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bEARER   abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearerabc", None),
            ("Bearer", None),
            ("\u{e9} abc", None),
        ] {
            let value = http::HeaderValue::from_bytes(header.as_bytes()).unwrap();
            assert_eq!(bearer(&value), token, "{header:?}");
        }
    }

    #[test]
    fn while_the_log_was_never_read_nobody_is_let_in() {
        let fixture = Fixture::new();
        let kim = fixture.token("kim", NOW);
        let verified = fixture.ring.verify(&kim, NOW).unwrap();
        assert_eq!(revocation::Revocations::default().standing(&verified), Standing::Revoked);
    }
}
