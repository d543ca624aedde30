//! Reading htpasswd, JSON and Authelia user files; writing JSON.
//!
//! A file is read whole or not at all: every reader goes on after a problem, so that a person sees all of them at
//! once, each with its line or entry. No message shows a password or a hash. Work and memory are bounded by the length
//! of the text: nothing is expanded, nesting is limited, and problems are counted after the first thousand.

mod authelia;
mod json;

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::password::{self, HashTextError};
use super::profile::{self, without_hash};
use crate::clock::rfc3339;
use crate::secret::Secret;
use crate::store::{Account, AccountId, Username};

/// The longest text that is read: 64 MiB.
const MAX_TEXT_BYTES: usize = 64 * 1024 * 1024;
/// The most problems that are told one by one.
const MAX_PROBLEMS: usize = 1000;
/// Larger numbers are not exact in every JSON reader (RFC 8259 section 6).
const MAX_VERSION: u64 = (1 << 53) - 1;

/// Which hashes an import takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// Those that are kept as they are.
    #[default]
    Strong,
    /// Also those of older systems, which the next login makes anew.
    Weak,
}

/// The text of an import file, as UTF-8, or as UTF-16 with a byte order mark. The error names the line.
pub fn decode(bytes: &[u8]) -> Result<String, String> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let units = pairs.iter().map(|pair| unit(*pair));
        let text: Result<String, _> = char::decode_utf16(units).collect();
        text.ok()
            .filter(|_| rest.is_empty())
            .ok_or_else(|| String::from("the file begins as UTF-16 and is not; save it as UTF-8"))
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        bytes => std::str::from_utf8(bytes).map(String::from).map_err(|error| {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.split(|byte| *byte == b'\n').count();
            format!("line {line}: is not UTF-8; save the file as UTF-8")
        }),
    }
}

/// One account of an import file, checked.
#[derive(Clone, Debug)]
pub struct Imported {
    /// `None`: the account gets a new one.
    pub id: Option<AccountId>,
    pub username: Username,
    /// Of a kind that `password::validate` accepts.
    pub password_hash: Secret<String>,
    pub groups: Vec<String>,
    /// Empty when there is none.
    pub email: String,
    /// Empty when there is none.
    pub display_name: String,
    pub disabled: bool,
    /// `__v`.
    pub version: u64,
}

/// Reads an Apache password file: `name:hash` lines, `#` comments and blank lines. What follows a second colon is a
/// comment, as in nginx. The errors are all problems of the file, each with its line.
#[cfg(any(test, fuzzing))]
pub fn htpasswd(text: &str) -> Result<Vec<Imported>, Vec<String>> {
    htpasswd_accepting(text, Accept::Strong)
}

/// The same with the hashes that `accept` says.
pub fn htpasswd_accepting(text: &str, accept: Accept) -> Result<Vec<Imported>, Vec<String>> {
    let text = bounded(text)?;
    let mut reading = Reading { accept, ..Reading::default() };
    for (index, line) in text.split('\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = Place::Line(index + 1);
        let Some((username, rest)) = line.split_once(':') else {
            reading.problem(place, "has no colon; a line must read name:hash");
            continue;
        };
        let hash = rest.split(':').next().unwrap_or_default().trim_ascii();
        reading.account(
            place,
            Candidate {
                username: username.trim_ascii().to_owned(),
                password_hash: Secret::new(hash.to_owned()),
                ..Candidate::default()
            },
        );
    }
    reading.finish()
}

/// Reads what [`to_json`] writes: an array of objects. `username` and `password_hash` must be there; without an `_id`
/// the account gets a new one; `created` and `changed` are passed over. The errors are all problems of the file, each
/// with its entry, counted from 1.
///
/// Also one object a line, as `mongoexport` writes them: `_id` may be `{"$oid": …}`, the hash may stand in
/// `hashedPassword`, and Mongoose's times are passed over.
#[cfg(any(test, fuzzing))]
pub fn json(text: &str) -> Result<Vec<Imported>, Vec<String>> {
    json_accepting(text, Accept::Strong)
}

/// The same with the hashes that `accept` says.
pub fn json_accepting(text: &str, accept: Accept) -> Result<Vec<Imported>, Vec<String>> {
    let mut reading = Reading { accept, ..Reading::default() };
    json::read(bounded(text)?, &mut reading);
    reading.finish()
}

/// Reads Authelia's file of users (YAML): `users:`, a map of names to `password`, `displayname`, `email`, `groups` and
/// `disabled`. Attributes of Authelia's that have no place here, such as `phone_number`, are passed over. The errors
/// are all problems of the file, each with its line.
#[cfg(any(test, fuzzing))]
pub fn authelia(text: &str) -> Result<Vec<Imported>, Vec<String>> {
    authelia_accepting(text, Accept::Strong)
}

/// The same with the hashes that `accept` says.
pub fn authelia_accepting(text: &str, accept: Accept) -> Result<Vec<Imported>, Vec<String>> {
    let mut reading = Reading { accept, ..Reading::default() };
    authelia::read(bounded(text)?, &mut reading);
    reading.finish()
}

/// Writes accounts as a JSON array, indented, times as RFC 3339. Only `with_hashes` can it be imported again.
#[must_use]
pub fn to_json(accounts: &[Account], with_hashes: bool) -> String {
    #[derive(Serialize)]
    struct Exported<'a> {
        _id: &'a str,
        username: &'a str,
        groups: &'a [String],
        email: &'a str,
        display_name: &'a str,
        disabled: bool,
        __v: u64,
        created: String,
        changed: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        password_hash: Option<&'a str>,
    }
    let exported: Vec<_> = accounts
        .iter()
        .map(|account| Exported {
            _id: account.id.as_str(),
            username: account.username.as_str(),
            groups: &account.groups,
            email: &account.email,
            display_name: &account.display_name,
            disabled: account.disabled,
            __v: account.version,
            created: rfc3339(account.created),
            changed: rfc3339(account.changed),
            password_hash: with_hashes.then(|| account.password_hash.expose().as_str()),
        })
        .collect();
    #[expect(clippy::expect_used, reason = "texts, numbers and booleans in memory can always be written")]
    serde_json::to_string_pretty(&exported).expect("plain data")
}

fn bounded(text: &str) -> Result<&str, Vec<String>> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(vec![format!("the file is longer than {} MiB", MAX_TEXT_BYTES / 1024 / 1024)]);
    }
    // Windows editors put a byte order mark in front.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Where in the file, counted from 1.
#[derive(Clone, Copy, Debug)]
enum Place {
    Line(usize),
    Entry(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(formatter, "line {number}"),
            Self::Entry(number) => write!(formatter, "entry {number}"),
        }
    }
}

/// What the file says of an account, unchecked.
#[derive(Default)]
struct Candidate {
    id: Option<String>,
    username: String,
    password_hash: Secret<String>,
    groups: Vec<String>,
    email: String,
    display_name: String,
    disabled: bool,
    version: u64,
}

/// The accounts and the problems so far.
#[derive(Default)]
struct Reading {
    accounts: Vec<Imported>,
    names: HashMap<Username, Place>,
    ids: HashMap<AccountId, Place>,
    problems: Vec<String>,
    untold: usize,
    accept: Accept,
}

impl Reading {
    fn problem(&mut self, place: Place, what: impl fmt::Display) {
        self.note(format_args!("{place}: {what}"));
    }

    fn note(&mut self, what: impl fmt::Display) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(what.to_string());
        } else {
            self.untold += 1;
        }
    }

    /// Checks an account and takes it in, or notes all that is wrong with it.
    fn account(&mut self, place: Place, candidate: Candidate) {
        let Candidate { id, username, password_hash, groups, email, display_name, disabled, version } = candidate;
        let username = match Username::canonical(&username) {
            Ok(username) => username,
            Err(error) => return self.problem(place, format_args!("the user name {error}")),
        };
        let mut wrong = Vec::new();
        if let Some(first) = self.names.get(&username) {
            wrong.push(format!("the user name is already taken by {first}; capital letters make no difference"));
        } else {
            self.names.insert(username.clone(), place);
        }
        let id = id.and_then(|id| match AccountId::try_from(id) {
            Ok(id) => {
                if let Some(first) = self.ids.get(&id) {
                    wrong.push(format!("the `_id` is already taken by {first}"));
                } else {
                    self.ids.insert(id.clone(), place);
                }
                Some(id)
            }
            Err(error) => {
                wrong.push(format!("the `_id` {error}"));
                None
            }
        });
        let password_hash = Secret::new(unwrapped(password_hash.expose()));
        wrong.extend(hash_problem(password_hash.expose(), self.accept));
        let mut checked = |field: Result<String, String>| field.map_err(|what| wrong.push(what)).unwrap_or_default();
        let (email, display_name) = (checked(profile::email(&email)), checked(profile::display_name(&display_name)));
        let groups = profile::groups(groups).map_err(|what| wrong.push(what)).unwrap_or_default();
        if version > MAX_VERSION {
            wrong.push(format!("`__v` is larger than {MAX_VERSION}"));
        }
        for what in &wrong {
            self.problem(place, format_args!("({}) {what}", without_hash(username.as_str(), usize::MAX)));
        }
        // With a problem anywhere nothing is imported, so there is no need to keep more.
        if wrong.is_empty() && self.problems.is_empty() {
            self.accounts.push(Imported {
                id,
                username,
                password_hash,
                groups,
                email,
                display_name,
                disabled,
                version,
            });
        }
    }

    fn finish(mut self) -> Result<Vec<Imported>, Vec<String>> {
        if self.problems.is_empty() {
            return Ok(self.accounts);
        }
        if self.untold > 0 {
            self.problems.push(format!("and {} more problems", self.untold));
        }
        Err(self.problems)
    }
}

/// A hash without what its place has put around it: Spring's `{bcrypt}` and OpenLDAP's `{CRYPT}` name the scheme that the
/// hash itself names, and a compose file writes each `$` twice.
fn unwrapped(hash: &str) -> String {
    let bare = ["{bcrypt}", "{argon2}", "{CRYPT}", "{crypt}"].iter().find_map(|prefix| hash.strip_prefix(prefix));
    let bare = bare.filter(|bare| bare.starts_with('$')).unwrap_or(hash);
    if bare.starts_with("$$") { bare.replace("$$", "$") } else { bare.to_owned() }
}

fn hash_problem(hash: &str, accept: Accept) -> Option<String> {
    const WAY_OUT: &str = "make a new hash with `htpasswd -B`, or leave the account out and add it with \
                           `doorward user add`";
    if hash.is_empty() {
        return Some(String::from("there is no password hash"));
    }
    let is_weak = ["$apr1$", "$1$", "$5$", "$6$", "{SHA}"].iter().any(|kind| hash.starts_with(kind));
    let valid = match accept {
        Accept::Strong => password::validate(hash),
        Accept::Weak => password::validate_weak(hash),
    };
    let kind = match valid {
        Ok(()) => return None,
        Err(error @ HashTextError::Cost) => return Some(format!("the password hash {error}; {WAY_OUT}")),
        Err(HashTextError::Kind) if is_weak && accept == Accept::Weak => {
            return Some(format!("the password hash is damaged or cut; {WAY_OUT}"));
        }
        Err(HashTextError::Kind | HashTextError::Weak) => foreign_kind(hash),
    };
    if let Some(kind) = kind.filter(|_| is_weak) {
        return Some(format!(
            "the password is kept as {kind}, which is quick to guess; `--accept-weak` takes it until the person's next \
             login, which makes it anew, or {WAY_OUT}"
        ));
    }
    Some(match kind {
        Some(kind) => format!("the password is kept as {kind}, which is not accepted; {WAY_OUT}"),
        None if ["$2a$", "$2b$", "$2y$", "$argon2id$", "$bcrypt-sha256$"].iter().any(|kind| hash.starts_with(kind)) => {
            format!("the password hash is damaged or cut; {WAY_OUT}")
        }
        None => format!("the password is neither a bcrypt nor an Argon2id hash; {WAY_OUT}"),
    })
}

/// The name of a scheme that is not accepted.
fn foreign_kind(hash: &str) -> Option<&'static str> {
    const KINDS: [(&str, &str); 15] = [
        ("$apr1$", "Apache's MD5 ($apr1$)"),
        ("$1$", "MD5 crypt ($1$)"),
        ("{SHA}", "unsalted SHA-1 ({SHA})"),
        ("{SSHA}", "SHA-1 ({SSHA})"),
        ("{PLAIN}", "plain text ({PLAIN})"),
        ("$5$", "SHA-256 crypt ($5$)"),
        ("$6$", "SHA-512 crypt ($6$)"),
        ("$pbkdf2", "PBKDF2 ($pbkdf2…)"),
        ("$scrypt$", "scrypt ($scrypt$)"),
        ("$y$", "yescrypt ($y$)"),
        ("$argon2i$", "Argon2i ($argon2i$; only Argon2id is)"),
        ("$argon2d$", "Argon2d ($argon2d$; only Argon2id is)"),
        ("$plaintext$", "plain text ($plaintext$)"),
        ("$base64$", "plain text ($base64$)"),
        ("$2x$", "bcrypt of a faulty version ($2x$)"),
    ];
    let known = KINDS.iter().find(|(prefix, _)| hash.starts_with(prefix)).map(|(_, name)| *name);
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/';
    let like_crypt = || (hash.len() == 13 && hash.bytes().all(sign)).then_some("crypt(3) or plain text");
    known
        .or_else(like_crypt)
        .or_else(|| (!hash.starts_with(['$', '{'])).then_some("plain text or in a scheme unknown here"))
}

/// A key of the file for a message: short, with nothing that a terminal would obey, and no hash, nor the rest of one that
/// a line break has parted, that stands where a key should.
fn shown(key: &str) -> String {
    let is_word = key.chars().all(|sign| sign.is_ascii_lowercase() || matches!(sign, '_' | '-' | '.' | ' '));
    let most = if is_word { 40 } else { 12 };
    without_hash(key, most)
}

#[cfg(test)]
mod tests;
