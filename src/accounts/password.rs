//! Password hashes: kinds, verification, rehashing.
//!
//! Whatever is wrong, the same number of bcrypt rounds is done: [`check`] counts them, so that a test can hold it
//! without measuring time. argon2id has no such rounds: its time is measured and filled up with bcrypt to about the
//! same sum. So a hashing thread is taken for as long whatever the account; when the answer leaves is a matter of its
//! own (see [`super::refusal`]). Two kinds of account stay slower to refuse than an unknown name until their owner's next
//! login makes their hash anew: one with a bcrypt cost above the configured one, and one whose argon2id takes longer
//! than that cost.
//!
//! Nothing that is hashed here is ever cut; imported plain bcrypt is cut at 72 bytes as its old system did.

use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use blowfish::Blowfish;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::weak::{self, Unreadable, Weak};
use crate::clock::Clock;

/// The longest password, in bytes.
pub const MAX_BYTES: usize = 1024;
/// The longest password that plain bcrypt takes whole: it adds a NUL and reads 72 bytes.
const PLAIN_BCRYPT_BYTES: usize = 71;
/// The lowest cost that bcrypt has.
const MIN_COST: u32 = 4;

/// Why a hash text is not accepted. Never shows the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashTextError {
    /// One of an older system, which is quick to guess.
    #[error("is of an older, weak kind ($apr1$, $1$, $5$, $6$ or {{SHA}})")]
    Weak,
    /// Another scheme, or a damaged text.
    #[error("is no bcrypt ($2a$, $2b$, $2y$), $bcrypt-sha256$ or $argon2id$ hash")]
    Kind,
    /// The cost, memory or time is outside what one login may take.
    #[error(
        "has a cost outside what is allowed (bcrypt 4 to 16; argon2id up to 256 MiB, t 16, p 16; SHA crypt up to 1,000,000 rounds)"
    )]
    Cost,
}

/// A hash text that was read strictly.
enum Stored {
    Bcrypt {
        cost: u32,
        text: String,
    },
    /// passlib's; `key` is the salt's text in version 2, nothing in version 1.
    BcryptSha256 {
        cost: u32,
        key: Option<String>,
        text: String,
    },
    Argon2id {
        params: Params,
        salt: Vec<u8>,
        digest: Vec<u8>,
    },
    Weak(Weak),
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The password is right.
    pub right: bool,
    /// The stored hash can't be read: worth an alert.
    pub malformed: bool,
    /// bcrypt rounds done.
    pub rounds: u64,
    /// How long these took, and nothing else.
    pub took: Duration,
}

/// Whether a hash text can be stored. [`HashTextError::Weak`] where [`validate_weak`] takes it.
pub fn validate(hash: &str) -> Result<(), HashTextError> {
    match parse(hash)? {
        Stored::Weak(_) => Err(HashTextError::Weak),
        Stored::Bcrypt { .. } | Stored::BcryptSha256 { .. } | Stored::Argon2id { .. } => Ok(()),
    }
}

/// Whether a hash text can be stored where weak ones are accepted: a login makes them anew.
pub fn validate_weak(hash: &str) -> Result<(), HashTextError> {
    parse(hash).map(|_| ())
}

/// Makes the hash of a new password, which must hold no NUL and at most [`MAX_BYTES`] bytes. `None` otherwise.
#[must_use]
pub fn hash(password: &str, cost: u32) -> Option<String> {
    if password.len() > MAX_BYTES || password.contains('\0') {
        return None;
    }
    if password.len() <= PLAIN_BCRYPT_BYTES {
        return bcrypt::non_truncating_hash(password, cost).ok();
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).ok()?;
    // The salt's text is the key, so it is needed before the hash: any hash with that salt shows it.
    let salt_text = bcrypt::hash_with_salt("", 4, salt).ok()?.get_salt();
    let parts = bcrypt::hash_with_salt(keyed(&salt_text, password)?, cost, salt).ok()?;
    let text = parts.format_for_version(bcrypt::Version::TwoB);
    Some(format!("$bcrypt-sha256$v=2,t=2b,r={cost}${salt_text}${}", text.get(29..)?))
}

/// Whether a hash that was just verified should be made anew: another scheme, another cost, or plain bcrypt for a
/// password that it cuts.
#[must_use]
pub fn needs_rehash(hash: &str, password: &str, cost: u32) -> bool {
    let long = password.len() > PLAIN_BCRYPT_BYTES;
    match parse(hash) {
        Ok(Stored::Bcrypt { cost: stored, .. }) => long || stored != cost || !hash.starts_with("$2b$"),
        Ok(Stored::BcryptSha256 { cost: stored, key, .. }) => !long || stored != cost || key.is_none(),
        Ok(Stored::Argon2id { .. } | Stored::Weak(_)) | Err(_) => true,
    }
}

/// Checks a password. `stored`: `None` for an unknown name. `enabled`: a disabled account is refused after the work of
/// a wrong password. A refusal costs 2^`cost` rounds, or with argon2id the time of so many by `clock`.
#[must_use]
pub fn check(clock: &Clock, stored: Option<&str>, enabled: bool, password: &str, cost: u32) -> Checked {
    let parsed = stored.map(parse);
    let malformed = matches!(parsed, Some(Err(_)));
    // A NUL would end the password for bcrypt, and a long one would cost more: both are wrong, after the same work.
    let acceptable = password.len() <= MAX_BYTES && !password.contains('\0');
    let tried = if acceptable { password } else { "not acceptable" };
    let mut work = Work { clock, rounds: 0, took: Duration::ZERO };
    let (matched, other) = match parsed.and_then(Result::ok) {
        Some(Stored::Bcrypt { cost, text }) => (work.verify(tried, &text, cost), None),
        Some(Stored::BcryptSha256 { cost, key, text }) => {
            let digest = match key {
                Some(key) => keyed(&key, tried).unwrap_or_default(),
                None => STANDARD.encode(Sha256::digest(tried)),
            };
            (work.verify(&digest, &text, cost), None)
        }
        Some(Stored::Argon2id { params, salt, digest }) => {
            let mut computed = vec![0; digest.len()];
            let (done, took) = timed(clock, || {
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(
                    tried.as_bytes(),
                    &salt,
                    &mut computed,
                )
            });
            (done.is_ok() && bool::from(computed.ct_eq(&digest)), Some(took))
        }
        Some(Stored::Weak(weak)) => {
            let (matched, took) = timed(clock, || weak.verify(tried));
            (matched, Some(took))
        }
        None => (false, None),
    };
    let right = matched && acceptable && enabled;
    if !right {
        match other {
            None if work.rounds == 0 => work.whole(cost),
            None => work.fill((1_u64 << cost).saturating_sub(work.rounds)),
            Some(took) => work.fill_up(took, cost),
        }
    }
    Checked { right, malformed, rounds: work.rounds, took: work.took }
}

/// bcrypt rounds, counted and timed. Each round is the same two key expansions, whichever way it is done.
struct Work<'a> {
    clock: &'a Clock,
    rounds: u64,
    took: Duration,
}

impl Work<'_> {
    fn verify(&mut self, password: &str, text: &str, cost: u32) -> bool {
        // Fails only for a text that `parse` does not let through.
        self.count(1 << cost, || bcrypt::verify(password, text).unwrap_or(false))
    }

    /// A whole hash for nothing.
    fn whole(&mut self, cost: u32) {
        self.count(1 << cost, || {
            let _ = bcrypt::hash_with_salt("the same work", cost, [0; 16]);
        });
    }

    /// What a hash lacks to a dearer one, and nothing more: no beginning and end of a hash of its own.
    fn fill(&mut self, rounds: u64) {
        if rounds == 0 {
            return;
        }
        self.count(rounds, || {
            let mut state = Blowfish::bc_init_state();
            for _ in 0..rounds {
                state.bc_expand_key(b"the same work\0");
                state.bc_expand_key(&[0; 16]);
            }
            std::hint::black_box(&state);
        });
    }

    /// Adds rounds to what took so long, until both are about 2^`cost` rounds. How fast rounds are right now, on a
    /// machine that may be busy, is measured with the first eighth of them.
    fn fill_up(&mut self, took: Duration, cost: u32) {
        let probe = cost.saturating_sub(3).max(MIN_COST);
        let before = self.took;
        self.fill(1 << probe);
        self.fill(rest(took, self.took.saturating_sub(before), probe, cost));
    }

    fn count<T>(&mut self, rounds: u64, work: impl FnOnce() -> T) -> T {
        let (made, took) = timed(self.clock, work);
        self.rounds += rounds;
        self.took += took;
        made
    }
}

fn timed<T>(clock: &Clock, work: impl FnOnce() -> T) -> (T, Duration) {
    let began = clock.instant();
    let made = work();
    (made, clock.instant().saturating_duration_since(began))
}

/// The rounds that are missing of 2^`cost`, after 2^`probe` of them took `probed`, and other work `took`.
fn rest(took: Duration, probed: Duration, probe: u32, cost: u32) -> u64 {
    let stands_for = (took.as_nanos() << probe).checked_div(probed.as_nanos()).unwrap_or(0);
    let missing = (1_u64 << cost).saturating_sub(1 << probe);
    missing.saturating_sub(u64::try_from(stands_for).unwrap_or(u64::MAX))
}

fn keyed(key: &str, password: &str) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).ok()?;
    mac.update(password.as_bytes());
    Some(STANDARD.encode(mac.finalize().into_bytes()))
}

fn parse(hash: &str) -> Result<Stored, HashTextError> {
    if let Some(weak) = weak::parse(hash) {
        return weak.map(Stored::Weak).map_err(|problem| match problem {
            Unreadable::Form => HashTextError::Kind,
            Unreadable::Rounds => HashTextError::Cost,
        });
    }
    if let Some(rest) = hash.strip_prefix("$bcrypt-sha256$") {
        let mut parts = rest.split('$');
        let (Some(head), Some(salt), Some(digest), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(HashTextError::Kind);
        };
        let (cost, key) = if let Some(cost) = head.strip_prefix("v=2,t=2b,r=") {
            (cost, Some(salt.to_owned()))
        } else {
            (head.strip_prefix("2b,").or_else(|| head.strip_prefix("2a,")).ok_or(HashTextError::Kind)?, None)
        };
        let cost = number(cost).ok_or(HashTextError::Kind)?;
        let text = format!("$2b${cost:02}${salt}{digest}");
        let text = if salt.len() == 22 { bcrypt_text(&text)?.1 } else { return Err(HashTextError::Kind) };
        return Ok(Stored::BcryptSha256 { cost, key, text });
    }
    if let Some(rest) = hash.strip_prefix("$argon2id$v=19$") {
        return argon2id(rest);
    }
    bcrypt_text(hash).map(|(cost, text)| Stored::Bcrypt { cost, text })
}

fn bcrypt_text(hash: &str) -> Result<(u32, String), HashTextError> {
    let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|kind| hash.strip_prefix(kind)).ok_or(HashTextError::Kind)?;
    let (cost, tail) = rest.split_once('$').ok_or(HashTextError::Kind)?;
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/';
    if cost.len() != 2 || tail.len() != 53 || !cost.bytes().all(|b| b.is_ascii_digit()) || !tail.bytes().all(sign) {
        return Err(HashTextError::Kind);
    }
    let cost = number(cost).ok_or(HashTextError::Kind)?;
    if !(MIN_COST..=16).contains(&cost) {
        return Err(HashTextError::Cost);
    }
    // The last characters of salt and digest have bits to spare, which must be zero.
    hash.parse::<bcrypt::HashParts>().map_err(|_| HashTextError::Kind)?;
    Ok((cost, hash.to_owned()))
}

/// Digits only: no sign, as `parse` alone would take.
fn number(digits: &str) -> Option<u32> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn argon2id(rest: &str) -> Result<Stored, HashTextError> {
    let mut parts = rest.split('$');
    let (Some(head), Some(salt), Some(digest), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(HashTextError::Kind);
    };
    let mut numbers = head.split(',').zip(["m=", "t=", "p="]).map(|(part, key)| number(part.strip_prefix(key)?));
    let (Some(Some(m)), Some(Some(t)), Some(Some(p))) = (numbers.next(), numbers.next(), numbers.next()) else {
        return Err(HashTextError::Kind);
    };
    let decode = |text: &str| STANDARD_NO_PAD.decode(text).map_err(|_| HashTextError::Kind);
    let (salt, digest) = (decode(salt)?, decode(digest)?);
    if head.split(',').count() != 3 || !(8..=64).contains(&salt.len()) || !(16..=64).contains(&digest.len()) {
        return Err(HashTextError::Kind);
    }
    if m > 256 * 1024 || t > 16 || p > 16 {
        return Err(HashTextError::Cost);
    }
    let params = Params::new(m, t, p, Some(digest.len())).map_err(|_| HashTextError::Cost)?;
    Ok(Stored::Argon2id { params, salt, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock::manual(1_795_512_600)
    }

    /// Made with passlib 1.7 and argon2-cffi, of "pässword".
    const VECTORS: [&str; 6] = [
        "$2a$04$cZ6tJQ7/dsn/R1zhIdD03uoEfqlFZ9vj22Ckrq37EF3CoPG/9nae6",
        "$2b$04$nSLjNLjWG32GT.5e.UZwQ.1XnuJNqaHuBFAzhLHAR7AWIptdvsFX.",
        "$2y$04$IZtNf7/SETjLU5iMZmm75e.EzhAZo8c1t8k7ml4S0iZR5ypHPwzoC",
        "$bcrypt-sha256$v=2,t=2b,r=4$NdY9aqk7kn2HYXkhLtpMee$WkmddIv5O3lBYRTVy8RXtb5KiWup6lS",
        "$bcrypt-sha256$2b,4$iDNCR48xloTOVNlGtaYjQO$GvpKZ69beLJNd0.yumUKLzyWTD8t7/i",
        "$argon2id$v=19$m=64,t=2,p=1$x1vpcgYVQWtcL6FBZIxInA$HETAzL2WQXzbjRdjZwe3Xhza0ugovjk8piOuiWmjNsc",
    ];

    #[test]
    fn hashes_of_other_programs_verify() {
        for hash in VECTORS {
            assert!(check(&clock(), Some(hash), true, "pässword", 4).right, "{hash}");
            assert!(!check(&clock(), Some(hash), true, "passwort", 4).right, "{hash}");
            assert!(!check(&clock(), Some(hash), true, "pässword\0", 4).right, "{hash}");
        }
    }

    /// bcrypt goes round and round its key, the NUL at the end included: this is the same key to it.
    #[test]
    fn a_password_that_repeats_itself_behind_a_nul_is_another_one() {
        let once = hash("right", 4).unwrap();
        assert!(bcrypt::verify("right\0right", &once).unwrap_or(true), "bcrypt looks after this itself now");
        for repeated in ["right\0right", "right\0right\0right", "right\0"] {
            assert!(!check(&clock(), Some(&once), true, repeated, 4).right, "{repeated:?}");
            assert_eq!(hash(repeated, 4), None, "{repeated:?}");
        }
    }

    #[test]
    fn no_stored_hash_may_cost_more_than_a_login_may_take() {
        for (cost, expected) in [
            ("04", Ok(())),
            ("16", Ok(())),
            ("17", Err(HashTextError::Cost)),
            ("31", Err(HashTextError::Cost)),
            ("03", Err(HashTextError::Cost)),
        ] {
            let text = VECTORS[1].replacen("$04$", &format!("${cost}$"), 1);
            assert_eq!(validate(&text), expected, "{cost}");
        }
        let keyed = VECTORS[3].replace("r=4", "r=17");
        assert_eq!(validate(&keyed), Err(HashTextError::Cost));
        assert_eq!(check(&clock(), Some(&keyed), true, "pässword", 4).rounds, 1 << 4);
        for head in ["m=262145,t=2,p=1", "m=64,t=17,p=1", "m=64,t=2,p=17"] {
            assert_eq!(validate(&VECTORS[5].replace("m=64,t=2,p=1", head)), Err(HashTextError::Cost), "{head}");
        }
    }

    #[test]
    fn every_refusal_costs_the_same_rounds() {
        let (low, long) = (hash("right", 4).unwrap(), "x".repeat(80));
        let long_hash = hash(&long, 5).unwrap();
        for (stored, enabled, password) in [
            (None, true, "wrong"),
            (Some("$2b$31$nonsense"), true, "wrong"),
            (Some(low.as_str()), true, "wrong"),
            (Some(low.as_str()), false, "right"),
            (Some(long_hash.as_str()), true, "wrong"),
            (Some(low.as_str()), true, long.as_str()),
            (Some(low.as_str()), true, "right\0"),
            // A clock that stands still: the weak hash took no time, so all rounds are missing.
            (Some("$1$12345678$Wp8.nKZ8GFpaXWyEsuEYh0"), true, "wrong"),
            (Some("{SHA}I7dElEdfX4dJgLdnbVEeI9iG2mQ="), true, "wrong"),
        ] {
            assert_eq!(check(&clock(), stored, enabled, password, 6).rounds, 1 << 6, "{stored:?}");
        }
    }

    #[test]
    fn a_refused_argon2id_is_filled_up_to_the_same_work() {
        // A clock that stands still: argon2id took no time, so all rounds are missing.
        assert_eq!(check(&clock(), Some(VECTORS[5]), true, "wrong", 8).rounds, 1 << 8);
        assert_eq!(check(&clock(), Some(VECTORS[5]), true, "pässword", 8).rounds, 0);
        let checked = check(&Clock::system(), Some(VECTORS[5]), true, "wrong", 8);
        assert!((1 << 5..=1 << 8).contains(&checked.rounds), "{checked:?}");
    }

    #[test]
    fn other_work_stands_for_the_rounds_of_its_time() {
        let rounds = |took, probed| -> u64 {
            let (took, probed) = (Duration::from_millis(took), Duration::from_millis(probed));
            (1 << 9) + rest(took, probed, 9, 12)
        };
        // An eighth takes 25 ms, so all take 200.
        assert_eq!(rounds(0, 25), 4096);
        assert_eq!(rounds(100, 25), 2048);
        assert_eq!(rounds(33, 25), 3421);
        assert_eq!(rounds(175, 25), 512);
        assert_eq!(rounds(10_000, 25), 512);
        assert_eq!(rounds(100, 0), 4096);
    }

    #[test]
    fn spare_bits_must_be_zero_and_numbers_have_no_sign() {
        for hash in VECTORS {
            assert_eq!(validate(hash), Ok(()), "{hash}");
        }
        let salt = VECTORS[1].replace(".1XnuJN", "/1XnuJN");
        let digest = format!("{}/", &VECTORS[1][..59]);
        let keyed = VECTORS[3].replace("Mee$", "Mef$");
        for bad in [salt, digest, keyed, VECTORS[3].replace("r=4", "r=+4"), VECTORS[5].replace("t=2", "t=+2")] {
            assert_eq!(validate(&bad), Err(HashTextError::Kind), "{bad}");
            let checked = check(&clock(), Some(&bad), true, "pässword", 5);
            let expected = Checked { right: false, malformed: true, rounds: 1 << 5, took: Duration::ZERO };
            assert_eq!(checked, expected, "{bad}");
        }
    }

    #[test]
    fn what_is_set_here_is_never_cut() {
        let (one, other) = (format!("{}a", "x".repeat(72)), format!("{}b", "x".repeat(72)));
        let hash = hash(&one, 4).unwrap();
        assert!(check(&clock(), Some(&hash), true, &one, 4).right);
        assert!(!check(&clock(), Some(&hash), true, &other, 4).right);
        assert!(!needs_rehash(&hash, &one, 4));
        assert!(needs_rehash(&hash, &one, 5));
    }

    proptest::proptest! {
        #[test]
        fn no_hash_text_panics(text in "(\\$(2b|argon2id|bcrypt-sha256)\\$)?[ -~é]{0,70}") {
            let _ = validate(&text);
        }
    }
}
