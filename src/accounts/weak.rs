//! Password hashes of older systems, which a login verifies once and makes anew: MD5 crypt (`$1$`, Apache's `$apr1$`),
//! SHA-256 and SHA-512 crypt (`$5$`, `$6$`) and unsalted SHA-1 (`{SHA}`). An import takes them with `--accept-weak` only.
//!
//! Written after the glibc manual's description and Apache's `apr_md5.c`; the tests hold them against OpenSSL and glibc.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq as _;

/// The most rounds of SHA crypt that a login may take; its default is 5,000.
const MAX_ROUNDS: u32 = 1_000_000;
const MIN_ROUNDS: u32 = 1_000;
const DEFAULT_ROUNDS: u32 = 5_000;
/// crypt(3)'s own alphabet, six bits a sign, the lowest first.
const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A hash of an older system, read strictly.
#[derive(Clone, Debug)]
pub(super) struct Weak {
    scheme: Scheme,
    salt: Vec<u8>,
    /// As it stands in the text.
    expected: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Scheme {
    /// With what stands before the salt.
    Md5(&'static str),
    Sha256(u32),
    Sha512(u32),
    Sha1,
}

/// What is wrong with a text that says that it is of these schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Damaged.
    Form,
    /// More rounds than a login may take.
    Rounds,
}

/// `None`: the text is of another scheme.
pub(super) fn parse(text: &str) -> Option<Result<Weak, Unreadable>> {
    if let Some(rest) = text.strip_prefix("{SHA}") {
        let whole = rest.len() == 28 && STANDARD.decode(rest).is_ok();
        let weak = Weak { scheme: Scheme::Sha1, salt: Vec::new(), expected: rest.as_bytes().to_vec() };
        return Some(if whole { Ok(weak) } else { Err(Unreadable::Form) });
    }
    for (prefix, most_salt, length) in [("$apr1$", 8, 22), ("$1$", 8, 22), ("$5$", 16, 43), ("$6$", 16, 86)] {
        if let Some(rest) = text.strip_prefix(prefix) {
            return Some(crypt(prefix, rest, most_salt, length));
        }
    }
    None
}

fn crypt(prefix: &'static str, rest: &str, most_salt: usize, length: usize) -> Result<Weak, Unreadable> {
    let (rounds, rest) = match rest.strip_prefix("rounds=").filter(|_| matches!(prefix, "$5$" | "$6$")) {
        Some(rest) => {
            let (rounds, rest) = rest.split_once('$').ok_or(Unreadable::Form)?;
            let digits = !rounds.is_empty() && rounds.len() <= 9 && rounds.bytes().all(|byte| byte.is_ascii_digit());
            // glibc raises fewer to its least.
            let rounds = rounds.parse::<u32>().ok().filter(|_| digits).ok_or(Unreadable::Form)?.max(MIN_ROUNDS);
            (rounds, rest)
        }
        None => (DEFAULT_ROUNDS, rest),
    };
    let (salt, expected) = rest.split_once('$').ok_or(Unreadable::Form)?;
    let salt_fits = salt.len() <= most_salt && salt.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
    if !salt_fits || expected.len() != length || !expected.bytes().all(|byte| ALPHABET.contains(&byte)) {
        return Err(Unreadable::Form);
    }
    if rounds > MAX_ROUNDS {
        return Err(Unreadable::Rounds);
    }
    let scheme = match prefix {
        "$5$" => Scheme::Sha256(rounds),
        "$6$" => Scheme::Sha512(rounds),
        magic => Scheme::Md5(magic),
    };
    Ok(Weak { scheme, salt: salt.as_bytes().to_vec(), expected: expected.as_bytes().to_vec() })
}

impl Weak {
    /// Whether the password is right; the comparison takes the same time whatever differs.
    pub(super) fn verify(&self, password: &str) -> bool {
        let password = password.as_bytes();
        let made = match self.scheme {
            Scheme::Sha1 => STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, password)).into_bytes(),
            Scheme::Md5(magic) => written(&md5_crypt(password, &self.salt, magic.as_bytes()), MD5_ORDER),
            Scheme::Sha256(rounds) => written(&sha_crypt::<Sha256>(password, &self.salt, rounds), SHA256_ORDER),
            Scheme::Sha512(rounds) => written(&sha_crypt::<Sha512>(password, &self.salt, rounds), SHA512_ORDER),
        };
        made.ct_eq(&self.expected).into()
    }
}

/// The beginning of `block` over and over, to `length` bytes.
fn repeated(block: &[u8], length: usize) -> Vec<u8> {
    block.iter().copied().cycle().take(length).collect()
}

fn md5_crypt(password: &[u8], salt: &[u8], magic: &[u8]) -> Vec<u8> {
    let inner = Md5::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut first = Md5::new().chain_update(password).chain_update(magic).chain_update(salt);
    first.update(repeated(&inner, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { &[0] } else { password.get(..1).unwrap_or_default() });
        bits >>= 1;
    }
    let mut last = first.finalize().to_vec();
    for round in 0..1000 {
        last = mixed::<Md5>(round, &last, password, salt);
    }
    last
}

fn sha_crypt<D: Digest>(password: &[u8], salt: &[u8], rounds: u32) -> Vec<u8> {
    let inner = D::new().chain_update(password).chain_update(salt).chain_update(password).finalize();
    let mut first = D::new().chain_update(password).chain_update(salt);
    first.update(repeated(&inner, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { inner.as_slice() } else { password });
        bits >>= 1;
    }
    let mut last = first.finalize().to_vec();
    let mut of_password = D::new();
    (0..password.len()).for_each(|_| of_password.update(password));
    let of_password = repeated(&of_password.finalize(), password.len());
    let mut of_salt = D::new();
    (0..16 + usize::from(last.first().copied().unwrap_or_default())).for_each(|_| of_salt.update(salt));
    let of_salt = repeated(&of_salt.finalize(), salt.len());
    for round in 0..rounds {
        last = mixed::<D>(round, &last, &of_password, &of_salt);
    }
    last
}

/// One round, the same for all of these schemes.
fn mixed<D: Digest>(round: u32, last: &[u8], password: &[u8], salt: &[u8]) -> Vec<u8> {
    let odd = round % 2 == 1;
    let mut state = D::new().chain_update(if odd { password } else { last });
    if !round.is_multiple_of(3) {
        state.update(salt);
    }
    if !round.is_multiple_of(7) {
        state.update(password);
    }
    state.update(if odd { last } else { password });
    state.finalize().to_vec()
}

/// Which bytes of the digest make 24 bits together, the highest first; what is past its end is zero and not written.
type Order = &'static [[usize; 3]];
/// Past the end of every digest.
const NONE: usize = usize::MAX;
const MD5_ORDER: Order = &[[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5], [NONE, NONE, 11]];
const SHA256_ORDER: Order = &[
    [0, 10, 20],
    [21, 1, 11],
    [12, 22, 2],
    [3, 13, 23],
    [24, 4, 14],
    [15, 25, 5],
    [6, 16, 26],
    [27, 7, 17],
    [18, 28, 8],
    [9, 19, 29],
    [NONE, 31, 30],
];
const SHA512_ORDER: Order = &[
    [0, 21, 42],
    [22, 43, 1],
    [44, 2, 23],
    [3, 24, 45],
    [25, 46, 4],
    [47, 5, 26],
    [6, 27, 48],
    [28, 49, 7],
    [50, 8, 29],
    [9, 30, 51],
    [31, 52, 10],
    [53, 11, 32],
    [12, 33, 54],
    [34, 55, 13],
    [56, 14, 35],
    [15, 36, 57],
    [37, 58, 16],
    [59, 17, 38],
    [18, 39, 60],
    [40, 61, 19],
    [62, 20, 41],
    [NONE, NONE, 63],
];

fn written(digest: &[u8], order: Order) -> Vec<u8> {
    let mut text = Vec::with_capacity(86);
    for places in order {
        let there = places.iter().filter(|place| **place != NONE).count();
        let mut bits = places
            .iter()
            .fold(0_u32, |bits, place| bits << 8 | u32::from(digest.get(*place).copied().unwrap_or_default()));
        // Three bytes are four signs, two are three and one is two.
        for _ in 0..=there {
            text.extend(ALPHABET.get(usize::try_from(bits & 0x3f).unwrap_or_default()));
            bits >>= 6;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with OpenSSL and glibc.
    const VECTORS: [(&str, &str); 9] = [
        ("$apr1$abcdefgh$rRdIxwY5XRHT4TMtBPZn.0", "pässword"),
        ("$apr1$r31.....$ihbP.lah.Dc11QK6r3Ytx/", LONG),
        ("$1$12345678$Wp8.nKZ8GFpaXWyEsuEYh0", "pässword"),
        ("{SHA}I7dElEdfX4dJgLdnbVEeI9iG2mQ=", "pässword"),
        ("$5$saltstring$cRBhKSfYzTy7ht1J5qVPFV0KZImJ0U5L5Ezw0UdIOW4", "pässword"),
        (
            "$6$saltstring$CSTM8ggie.dU5m6eoS07/LZ2D/r4hrX.jxMSo1fYZexnehwOFJu1o2u1p.BZSnrxIhERrHnuxI8ONbt/kSPvF0",
            "pässword",
        ),
        (
            "$6$aSaltOf16Signs..$cA6rviMleyCrnDwEEw4Fkca6hAzKCdAjeUdo8uruJ0CbTjyjYcD4ZsRipqzm7G9wJM9U9VpHglVOBHIFaGZRf.",
            LONG,
        ),
        ("$5$s$oRCHdHf.D3w/SXvkAaxZ73C0kNKnR2Nbp/W5g3Lg208", LONG),
        (
            "$6$rounds=1400$anotherlong$1J66P/UP/s0N42fLU.DU8CVdyKTBIKoScP9Dh/dl7b1h/kreD4p7FxtqfniiLDnRCOyjExrkxb9RPDLETirOP.",
            "pässword",
        ),
    ];
    const LONG: &str =
        "x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 x7 ";

    #[test]
    fn hashes_of_other_programs_verify() {
        for (text, password) in VECTORS {
            let weak = parse(text).unwrap().unwrap();
            assert!(weak.verify(password), "{text}");
            assert!(!weak.verify("another"), "{text}");
            assert!(!weak.verify(&format!("{password}x")), "{text}");
        }
    }

    #[test]
    fn what_is_damaged_or_too_dear_is_refused() {
        assert!(parse("$2b$04$nSLjNLjWG32GT.5e.UZwQ.1XnuJNqaHuBFAzhLHAR7AWIptdvsFX.").is_none());
        for (text, _) in VECTORS {
            assert_eq!(parse(&text[..text.len() - 1]).unwrap().unwrap_err(), Unreadable::Form, "{text}");
            assert_eq!(parse(&format!("{text}x")).unwrap().unwrap_err(), Unreadable::Form, "{text}");
        }
        let dear = VECTORS[4].0.replacen("$5$", "$5$rounds=1000001$", 1);
        assert_eq!(parse(&dear).unwrap().unwrap_err(), Unreadable::Rounds);
        for rounds in ["", "+5000", "99999999999", "x"] {
            let text = VECTORS[4].0.replacen("$5$", &format!("$5$rounds={rounds}$"), 1);
            assert_eq!(parse(&text).unwrap().unwrap_err(), Unreadable::Form, "{rounds}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(\\$(1|5|6|apr1)\\$|\\{SHA\\})(rounds=)?[ -~é]{0,100}") {
            let _ = parse(&text);
        }
    }
}
