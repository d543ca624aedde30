//! What is stored: accounts, sessions, entries of the revocation log.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::secret::Secret;

/// The id of an account: a `UUIDv7` for accounts made here, up to 64 visible ASCII characters for imported ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountId(String);

/// The id of a session: a `UUIDv7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

/// A canonical user name: NFKC, lower case, 1 to 64 characters, no control character and no white space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Username(String);

/// Why a name or an id was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is left of it.
    #[error("is empty")]
    Empty,
    /// More than 64 characters.
    #[error("is longer than 64 characters")]
    TooLong,
    /// Control characters, white space, invisible or direction-changing characters.
    #[error("has a control character, white space or an invisible character in it")]
    Forbidden,
    /// An id with something else than visible ASCII characters.
    #[error("may hold visible ASCII characters only")]
    NotVisibleAscii,
}

/// The most characters that a name, an id or a group may have.
pub const MAX_NAME_CHARS: usize = 64;

macro_rules! visible_ascii_id {
    ($name:ident) => {
        impl $name {
            /// A new random, time-ordered id (`UUIDv7`, RFC 9562 section 5.7).
            #[must_use]
            pub fn random() -> Self {
                Self(uuid::Uuid::now_v7().to_string())
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                if text.is_empty() {
                    Err(NameError::Empty)
                } else if text.len() > MAX_NAME_CHARS {
                    Err(NameError::TooLong)
                } else if text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    Ok(Self(text))
                } else {
                    Err(NameError::NotVisibleAscii)
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

visible_ascii_id!(AccountId);
visible_ascii_id!(SessionId);

impl Username {
    /// Makes the canonical form of a name.
    pub fn canonical(typed: &str) -> Result<Self, NameError> {
        if typed.is_empty() {
            return Err(NameError::Empty);
        }
        // Bounded before the work: NFKC can make one character eighteen.
        if typed.chars().count() > MAX_NAME_CHARS {
            return Err(NameError::TooLong);
        }
        // Lower-casing can undo the normal form and the other way round: repeat until nothing changes.
        let mut canonical: String = typed.nfkc().collect();
        for _ in 0..4 {
            let next: String = canonical.to_lowercase().nfkc().collect();
            if next == canonical {
                break;
            }
            canonical = next;
        }
        if canonical.is_empty() {
            return Err(NameError::Empty);
        }
        if canonical.chars().count() > MAX_NAME_CHARS {
            return Err(NameError::TooLong);
        }
        if canonical.chars().any(is_forbidden) {
            return Err(NameError::Forbidden);
        }
        Ok(Self(canonical))
    }

    /// The canonical form of what a person typed into a field: phones put a blank behind a name that they complete.
    pub fn typed(text: &str) -> Result<Self, NameError> {
        Self::canonical(text.trim())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Beside control characters and white space: what Unicode calls default ignorable, because two names must not look the
/// same for want of ink, and the blank pattern of Braille.
fn is_forbidden(character: char) -> bool {
    character.is_control()
        || character.is_whitespace()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{ffff}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

impl TryFrom<String> for Username {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::canonical(&text)
    }
}

impl std::str::FromStr for Username {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::canonical(text)
    }
}

impl From<Username> for String {
    fn from(name: Username) -> Self {
        name.0
    }
}

impl std::fmt::Display for Username {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A person who may log in.
#[derive(Clone, Debug)]
pub struct Account {
    pub id: AccountId,
    pub username: Username,
    /// A modular-crypt string; see `accounts::password` for the kinds.
    pub password_hash: Secret<String>,
    pub groups: Vec<String>,
    pub email: String,
    pub display_name: String,
    pub disabled: bool,
    /// `__v`: rises with a password change and with "sign out everywhere".
    pub version: u64,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds.
    pub changed: u64,
    /// Raised by the store with every update; for compare-and-swap. 0 for a new account.
    pub revision: u64,
}

/// One login of one person in one browser or program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: SessionId,
    pub account: AccountId,
    /// Unix seconds: when the person typed a password (`auth_time`).
    pub created: u64,
    /// Unix seconds.
    pub renewed: u64,
    /// Unix seconds: when the last token of this session ends.
    pub expires: u64,
    /// The client's address at login or the last renewal.
    pub address: String,
    /// At most 256 characters of what the browser called itself.
    pub user_agent: String,
}

/// Those to end so that, with one more, `keep` are left: the oldest first, some at a time.
pub(in crate::store) fn oldest_beyond(mut others: Vec<Session>, keep: usize) -> Vec<Session> {
    sort_sessions(&mut others);
    others.truncate((others.len() + 1).saturating_sub(keep).min(super::MAX_ENDED));
    others
}

/// Oldest first; those of the same second by id, which is ordered by time too.
pub(super) fn sort_sessions(sessions: &mut [Session]) {
    sessions.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
}

/// What is no longer valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Revocation {
    /// This session is over.
    Session { session: SessionId },
    /// Every token of this account that was issued before this entry is over.
    Account { account: AccountId },
    /// Every token of this account that names no session and was issued before this entry is over.
    AccountWithoutSession { account: AccountId },
    /// The account has changed: read it again before believing an older token's groups.
    Changed { account: AccountId },
    /// Every token that was issued before this entry is over.
    All,
}

/// One entry of the revocation log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Ascending, never used twice; the first is 1.
    pub number: u64,
    pub what: Revocation,
    /// Unix seconds: when it was written. Tokens without a `seq` go by this.
    pub at: u64,
    /// Unix seconds: it can be forgotten after this.
    pub expires: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blanks_around_what_was_typed_are_no_part_of_a_name() {
        for typed in ["lee", "lee ", " lee", "\u{3000}LEE\u{a0}", "\tlee\r\n"] {
            assert_eq!(Username::typed(typed).map(|name| name.to_string()), Ok(String::from("lee")), "{typed:?}");
        }
        for typed in ["l ee", "lee\0", "lee\u{200b}"] {
            assert_eq!(Username::typed(typed), Err(NameError::Forbidden), "{typed:?}");
        }
        assert_eq!(Username::typed("  "), Err(NameError::Empty));
    }

    #[test]
    fn names_have_one_form() {
        for typed in ["kim", "KIM", "Kim", "ｋｉｍ"] {
            assert_eq!(Username::canonical(typed).map(String::from), Ok(String::from("kim")));
        }
        for (typed, error) in [
            ("", NameError::Empty),
            ("kim ", NameError::Forbidden),
            ("k im", NameError::Forbidden),
            ("kim\0", NameError::Forbidden),
            ("k\u{202e}im", NameError::Forbidden),
            ("kim\u{200b}", NameError::Forbidden),
        ] {
            assert_eq!(Username::canonical(typed), Err(error), "{typed:?}");
        }
        // Each of them would make a second name that looks like the first.
        for unseen in [
            '\u{0}',
            '\u{7f}',
            '\u{85}',
            '\u{a0}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b4}',
            '\u{180b}',
            '\u{180e}',
            '\u{2000}',
            '\u{200b}',
            '\u{200d}',
            '\u{200f}',
            '\u{2028}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2800}',
            '\u{3000}',
            '\u{3164}',
            '\u{fe00}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fffc}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e0100}',
        ] {
            for typed in [format!("kim{unseen}"), format!("{unseen}kim"), format!("k{unseen}im")] {
                assert_eq!(Username::canonical(&typed), Err(NameError::Forbidden), "{typed:?}");
            }
        }
        assert_eq!(Username::canonical(&"a".repeat(65)), Err(NameError::TooLong));
        assert!(Username::canonical(&"é".repeat(64)).is_ok());
    }

    proptest! {
        #[test]
        fn a_canonical_name_is_its_own_canonical_form(typed in ".{0,70}") {
            if let Ok(name) = Username::canonical(&typed) {
                prop_assert_eq!(Username::canonical(name.as_str()), Ok(name));
            }
        }
    }
}
