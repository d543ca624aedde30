//! How records lie in the embedded store: keys, and values with a version and a checksum.
//!
//! A value is `version (1 byte), CRC-32 (4 bytes, little-endian), payload`; the checksum covers the key as well, so a
//! value under another record's key is noticed. Nothing in here reads or writes a file.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Account, AccountId, Counts, Forgotten, LogEntry, Session, SessionId, StoreError, Username};
use crate::secret::Secret;

/// The version of keys and values; in the marker file and at the start of each value.
pub(super) const LAYOUT: u8 = 1;
/// The largest value that the store takes, in bytes. Larger ones would go to files of their own and leak there.
pub(super) const MAX_VALUE_BYTES: usize = 32 * 1024;

pub(super) const ACCOUNTS: u8 = b'a';
pub(super) const NAMES: u8 = b'n';
pub(super) const SESSIONS: u8 = b's';
/// Account id, NUL, session id; ids are visible ASCII, so NUL parts them.
pub(super) const SESSIONS_OF: u8 = b'i';
pub(super) const LOG: u8 = b'l';
pub(super) const META: &[u8] = b"m";

/// What stands before a value's payload, in bytes.
pub(super) const HEAD_BYTES: usize = 5;

/// Why a value can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RowError {
    #[error("a record is cut off")]
    CutOff,
    #[error("a record is of version {0}, this program reads version {LAYOUT}")]
    Version(u8),
    #[error("a record's checksum is wrong")]
    Checksum,
    #[error("a record can't be read")]
    Unreadable,
}

impl From<RowError> for StoreError {
    fn from(error: RowError) -> Self {
        Self::caused("it is damaged", error)
    }
}

/// What the store knows about itself; rewritten with every change, in the same transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// How many changes there have been.
    pub(super) sequence: u64,
    pub(super) accounts: u64,
    pub(super) sessions: u64,
    pub(super) entries: u64,
    /// Rows of all kinds, indexes included, this one not.
    pub(super) rows: u64,
    /// The wrapping sum of all rows' checksums: tells a lost or an older row from the right one.
    pub(super) sum: u64,
    pub(super) log_head: u64,
    /// What was let go of for good.
    #[serde(default)]
    pub(super) forgotten: Forgotten,
    /// The latest time that the wall clock has shown, in Unix seconds.
    #[serde(default)]
    pub(super) seen: u64,
    /// See [`super::Write::Longest`].
    #[serde(default)]
    pub(super) longest: u64,
}

impl Meta {
    pub(super) const fn counts(&self) -> Counts {
        Counts { accounts: self.accounts, sessions: self.sessions, entries: self.entries }
    }

    /// Counts a row in or out.
    pub(super) fn count(&mut self, key: &[u8], value: &[u8], add: bool) {
        let kind = match key.first() {
            Some(&ACCOUNTS) => Some(&mut self.accounts),
            Some(&SESSIONS) => Some(&mut self.sessions),
            Some(&LOG) => Some(&mut self.entries),
            _ => None,
        };
        for counter in kind.into_iter().chain([&mut self.rows]) {
            *counter = if add { counter.wrapping_add(1) } else { counter.wrapping_sub(1) };
        }
        let sum = u64::from(stored_checksum(value));
        self.sum = if add { self.sum.wrapping_add(sum) } else { self.sum.wrapping_sub(sum) };
    }
}

/// An account as it is written to the store and to a dump.
#[derive(Serialize, Deserialize)]
pub(super) struct AccountRow<'a> {
    id: Cow<'a, AccountId>,
    username: Cow<'a, Username>,
    password_hash: Cow<'a, str>,
    groups: Cow<'a, [String]>,
    email: Cow<'a, str>,
    display_name: Cow<'a, str>,
    disabled: bool,
    version: u64,
    created: u64,
    changed: u64,
    revision: u64,
}

impl<'a> From<&'a Account> for AccountRow<'a> {
    fn from(account: &'a Account) -> Self {
        Self {
            id: Cow::Borrowed(&account.id),
            username: Cow::Borrowed(&account.username),
            password_hash: Cow::Borrowed(account.password_hash.expose()),
            groups: Cow::Borrowed(&account.groups),
            email: Cow::Borrowed(&account.email),
            display_name: Cow::Borrowed(&account.display_name),
            disabled: account.disabled,
            version: account.version,
            created: account.created,
            changed: account.changed,
            revision: account.revision,
        }
    }
}

impl From<AccountRow<'_>> for Account {
    fn from(row: AccountRow<'_>) -> Self {
        Self {
            id: row.id.into_owned(),
            username: row.username.into_owned(),
            password_hash: Secret::new(row.password_hash.into_owned()),
            groups: row.groups.into_owned(),
            email: row.email.into_owned(),
            display_name: row.display_name.into_owned(),
            disabled: row.disabled,
            version: row.version,
            created: row.created,
            changed: row.changed,
            revision: row.revision,
        }
    }
}

fn prefixed(prefix: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}

pub(super) fn account_key(id: &AccountId) -> Vec<u8> {
    prefixed(ACCOUNTS, id.as_str().as_bytes())
}

pub(super) fn name_key(name: &Username) -> Vec<u8> {
    prefixed(NAMES, name.as_str().as_bytes())
}

pub(super) fn session_key(id: &SessionId) -> Vec<u8> {
    prefixed(SESSIONS, id.as_str().as_bytes())
}

/// The start of the keys of an account's sessions.
pub(super) fn sessions_of_prefix(account: &AccountId) -> Vec<u8> {
    let mut key = prefixed(SESSIONS_OF, account.as_str().as_bytes());
    key.push(0);
    key
}

pub(super) fn session_of_key(account: &AccountId, session: &SessionId) -> Vec<u8> {
    let mut key = sessions_of_prefix(account);
    key.extend_from_slice(session.as_str().as_bytes());
    key
}

/// The key of the session that an index key names.
pub(super) fn session_key_of_index(index_key: &[u8]) -> Option<Vec<u8>> {
    let end = index_key.iter().position(|byte| *byte == 0)?;
    Some(prefixed(SESSIONS, index_key.get(end + 1..)?))
}

pub(super) fn log_key(number: u64) -> Vec<u8> {
    prefixed(LOG, &number.to_be_bytes())
}

/// The value of a record whose payload is these bytes.
pub(super) fn encode(key: &[u8], payload: &[u8]) -> Result<Vec<u8>, StoreError> {
    let size = HEAD_BYTES + payload.len();
    if size > MAX_VALUE_BYTES {
        return Err(StoreError::TooLarge { size, limit: MAX_VALUE_BYTES });
    }
    let mut value = Vec::with_capacity(size);
    value.push(LAYOUT);
    value.extend_from_slice(&checksum(key, LAYOUT, payload).to_le_bytes());
    value.extend_from_slice(payload);
    Ok(value)
}

/// The value of a record, as JSON.
pub(super) fn encode_json(key: &[u8], record: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let payload =
        serde_json::to_vec(record).map_err(|error| StoreError::caused("a record can't be written as JSON", error))?;
    encode(key, &payload)
}

/// The payload of a value; checks version and checksum.
pub(super) fn decode<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], RowError> {
    let (head, payload) = value.split_at_checked(HEAD_BYTES).ok_or(RowError::CutOff)?;
    let version = head.first().copied().ok_or(RowError::CutOff)?;
    if version != LAYOUT {
        return Err(RowError::Version(version));
    }
    if stored_checksum(head) != checksum(key, version, payload) {
        return Err(RowError::Checksum);
    }
    Ok(payload)
}

fn decode_json<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, RowError> {
    serde_json::from_slice(decode(key, value)?).map_err(|_| RowError::Unreadable)
}

pub(super) fn decode_account(key: &[u8], value: &[u8]) -> Result<Account, RowError> {
    decode_json::<AccountRow<'static>>(key, value).map(Account::from)
}

pub(super) fn decode_session(key: &[u8], value: &[u8]) -> Result<Session, RowError> {
    decode_json(key, value)
}

pub(super) fn decode_entry(key: &[u8], value: &[u8]) -> Result<LogEntry, RowError> {
    decode_json(key, value)
}

pub(super) fn decode_meta(value: &[u8]) -> Result<Meta, RowError> {
    decode_json(META, value)
}

/// The id that a name leads to.
pub(super) fn decode_name(key: &[u8], value: &[u8]) -> Result<AccountId, RowError> {
    let text = std::str::from_utf8(decode(key, value)?).map_err(|_| RowError::Unreadable)?;
    text.parse().map_err(|_| RowError::Unreadable)
}

fn checksum(key: &[u8], version: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[0xff, version]);
    hasher.update(payload);
    hasher.finalize()
}

fn stored_checksum(value: &[u8]) -> u32 {
    value.get(1..HEAD_BYTES).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn too_large_a_value_is_refused() {
        assert!(encode(b"k", &vec![0; MAX_VALUE_BYTES - HEAD_BYTES]).is_ok());
        assert!(matches!(
            encode(b"k", &vec![0; MAX_VALUE_BYTES - HEAD_BYTES + 1]),
            Err(StoreError::TooLarge { size, limit: MAX_VALUE_BYTES }) if size == MAX_VALUE_BYTES + 1
        ));
    }

    #[test]
    fn an_index_key_leads_to_its_session() {
        let (account, session) = (AccountId::random(), SessionId::random());
        assert_eq!(session_key_of_index(&session_of_key(&account, &session)), Some(session_key(&session)));
        assert_eq!(session_key_of_index(b"iabc"), None);
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_noticed(
            key in proptest::collection::vec(any::<u8>(), 1..40),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<proptest::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let mut value = encode(&key, &payload).unwrap();
            prop_assert_eq!(decode(&key, &value), Ok(payload.as_slice()));
            let at = at.index(value.len());
            value[at] ^= 1 << bit;
            prop_assert!(decode(&key, &value).is_err());
        }

        #[test]
        fn hostile_values_are_errors(key in any::<Vec<u8>>(), payload in any::<Vec<u8>>(), raw in any::<bool>()) {
            let value = if raw { payload } else { encode(&key, &payload).unwrap() };
            prop_assert!(decode_account(&key, &value).is_err());
            prop_assert!(decode_session(&key, &value).is_err());
            prop_assert!(decode_entry(&key, &value).is_err());
            prop_assert!(decode_meta(&value).is_err());
            let _ = decode_name(&key, &value);
        }
    }
}
