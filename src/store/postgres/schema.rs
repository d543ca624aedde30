//! The tables: made and brought up to date under an advisory lock, so that any number of replicas may start at once.
//!
//! Every step runs in one transaction with the version that it leads to. A schema of a newer program is left alone.

use std::time::Duration;

use tokio_postgres::Client;

use super::fault::Fault;
use crate::store::StoreError;

/// Brings an empty database to version 1, version 1 to 2, and so on.
const STEPS: [&str; 2] = [include_str!("schema_1.sql"), include_str!("schema_2.sql")];
/// Any number that no other program uses: "doorward" in ASCII.
const LOCK: i64 = 0x646f_6f72_7761_7264;

/// How long all steps together may take.
pub(super) const LIMIT: Duration = Duration::from_mins(10);

/// Whether the schema is the one that this program knows. `false`: it is older, or there is none.
pub(super) async fn is_current(client: &Client) -> Result<bool, Fault> {
    let version = version(client).await?;
    let known = known();
    if version > known {
        return Err(StoreError::NewerSchema { found: version, known }.into());
    }
    Ok(version == known)
}

/// Makes it current. Waits for another replica that is at it.
pub(super) async fn migrate(client: &Client) -> Result<(), Fault> {
    // Changing a large table may take longer than any call has.
    client
        .batch_execute(
            "BEGIN; SET LOCAL statement_timeout = '10min'; SET LOCAL idle_in_transaction_session_timeout = '1min'",
        )
        .await?;
    client.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})")).await?;
    let found = version(client).await?;
    let done = usize::try_from(found).unwrap_or(usize::MAX);
    for (number, step) in STEPS.iter().enumerate().skip(done) {
        client.batch_execute(step).await?;
        client.batch_execute(&format!("UPDATE doorward_schema SET version = {}", number + 1)).await?;
        tracing::info!(version = number + 1, "the database's schema was brought up to date");
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

fn known() -> u32 {
    u32::try_from(STEPS.len()).unwrap_or(u32::MAX)
}

/// 0: there is none.
async fn version(client: &Client) -> Result<u32, Fault> {
    // From the catalogue's own table, not by to_regclass: that would go on believing, after it has waited for the lock,
    // what it found before.
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relname = 'doorward_schema' AND \
               pg_catalog.pg_table_is_visible(oid))";
    let there = client.query_typed_one(sql, &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let row = client.query_typed_one("SELECT version FROM doorward_schema", &[]).await?;
    Ok(u32::try_from(row.try_get::<_, i32>(0)?).unwrap_or_default())
}
