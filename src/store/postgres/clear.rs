//! Clearing away what ran out.
//!
//! No single clock decides: what goes had run out by this process's wall clock, by the database's, and by the time that
//! the replicas have lived through together ([`Settled`], kept in `doorward_time`).

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::fault::Fault;
use super::rows::{big, small};
use super::{Core, Parameter};
use crate::clock::Settled;

/// Any number that no other program uses: "doorware" in ASCII. One replica at a time.
const LOCK: i64 = 0x646f_6f72_7761_7265;
const SOME: &str = "LIMIT 5000 FOR UPDATE SKIP LOCKED";
/// Readers go on from the entries of the last hour, in seconds.
const KEEP: u64 = 3600;
/// A clock that is so many seconds from another one is worth a word.
const APART: u64 = 300;

/// Removes what ran out, some of it: whoever calls often has little to do.
pub(super) async fn clear_away(core: &Core) -> Result<(), Fault> {
    let lease = core.begin("BEGIN").await?;
    let done = async {
        let client = lease.client();
        let (settled, past) = look(core, client).await?;
        let sql = "SELECT pg_try_advisory_xact_lock($1)";
        if client.query_typed_one(sql, &[(&LOCK, Type::INT8)]).await?.try_get::<_, bool>(0)? {
            let wall = core.clock.unix_seconds();
            let sql = "UPDATE doorward_time SET seen = greatest(seen, $2), settled = greatest(settled, least($1,
                extract(epoch FROM clock_timestamp())::bigint))";
            client.execute_typed(sql, &[(&big(settled), Type::INT8), (&big(wall), Type::INT8)]).await?;
            remove(client, past).await?;
        }
        client.batch_execute("COMMIT").await?;
        Ok(())
    };
    match done.await {
        Ok(()) => {
            lease.give_back();
            Ok(())
        }
        Err(fault) => Err(fault),
    }
}

/// The settled time, and up to when something may go. Unix seconds.
async fn look(core: &Core, client: &Client) -> Result<(u64, u64), Fault> {
    let sql = "SELECT settled, extract(epoch FROM clock_timestamp())::bigint FROM doorward_time";
    let row = client.query_typed_one(sql, &[]).await?;
    let (known, database) = (small(row.try_get(0)?), small(row.try_get(1)?));
    let mut place = core.settled.borrow_mut();
    let clock = &core.clock;
    let is_first = place.is_none();
    let settled = place.get_or_insert_with(|| Settled::since(known, clock));
    settled.raise(known, clock);
    let now = settled.now(clock);
    let apart = clock.unix_seconds().abs_diff(database);
    if let Some(seconds) = settled.new_jump() {
        tracing::warn!(
            seconds,
            "the clock jumped: nothing is cleared away by the new time before it has stood for a day"
        );
    } else if is_first && apart > APART {
        tracing::warn!(seconds = apart, "this machine's clock and the database's are apart");
    }
    Ok((now, now.min(database)))
}

async fn remove(client: &Client, past: u64) -> Result<(), Fault> {
    let until: Parameter<'_> = (&big(past), Type::INT8);
    let sessions = format!(
        "DELETE FROM doorward_session WHERE id IN (SELECT id FROM doorward_session WHERE expires <= $1 {SOME})"
    );
    client.execute_typed(&sessions, &[until]).await?;
    // The newest stays: it is where readers go on from. So do those that ran out a moment ago.
    let log = format!(
        "WITH gone AS (
            DELETE FROM doorward_log WHERE number IN (SELECT number FROM doorward_log WHERE expires <= $1
            AND number < (SELECT max(number) FROM doorward_log) {SOME}) RETURNING number, at, what->>'kind' AS kind
        ), last AS (
            SELECT max(number) AS number, max(at) FILTER (WHERE kind NOT IN ('session', 'changed')) AS at FROM gone
        )
        UPDATE doorward_time SET forgotten_until = greatest(forgotten_until, $1),
            forgotten_number = greatest(forgotten_number, last.number),
            forgotten_at = greatest(forgotten_at, last.at) FROM last WHERE last.number IS NOT NULL"
    );
    client.execute_typed(&log, &[(&big(past.saturating_sub(KEEP)), Type::INT8)]).await?;
    // The database's clock alone would let everybody try again at once when it jumps.
    let tries = format!(
        "DELETE FROM doorward_wrong_try WHERE ctid = ANY(ARRAY(SELECT ctid FROM doorward_wrong_try
        WHERE expires <= least(clock_timestamp(), to_timestamp($1)) {SOME}))"
    );
    client.execute_typed(&tries, &[(&big(past), Type::INT8)]).await?;
    Ok(())
}
