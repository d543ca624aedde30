//! Records as the database has them: whole rows as JSON, the spelling of a dump.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::row::{HEAD_BYTES, MAX_VALUE_BYTES};
use crate::store::{LogEntry, StoreError};

/// A number for a `bigint`; what is beyond it stands for "never" anyway.
pub(super) fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A number of a `bigint`; none that is written is below 0.
pub(super) fn small(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// A record from its row.
pub(super) fn record<T: DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    // The parser's own text can quote the row, which may be a hash.
    serde_json::from_str(json).map_err(|error| {
        StoreError::unavailable(format!("a row can't be read (column {} of its JSON)", error.column()))
    })
}

/// A record for its row.
pub(super) fn json(record: &impl Serialize) -> Result<String, StoreError> {
    let text = serde_json::to_string(record)
        .map_err(|error| StoreError::caused("a record can't be written as JSON", error))?;
    // The limit is the embedded store's: whatever is in one store fits into the other.
    let size = HEAD_BYTES + text.len();
    if size > MAX_VALUE_BYTES { Err(StoreError::TooLarge { size, limit: MAX_VALUE_BYTES }) } else { Ok(text) }
}

/// Records as one JSON array.
pub(super) fn array(records: &[String]) -> String {
    let mut text = String::with_capacity(records.iter().map(|record| record.len() + 1).sum::<usize>() + 2);
    text.push('[');
    for (index, record) in records.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(record);
    }
    text.push(']');
    text
}

/// An entry whose end fits into its column.
pub(super) fn bounded(entry: LogEntry) -> LogEntry {
    LogEntry { at: entry.at.min(i64::MAX.unsigned_abs()), expires: entry.expires.min(i64::MAX.unsigned_abs()), ..entry }
}
