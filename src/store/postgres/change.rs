//! Changes: one transaction each, whose last statement takes the log's numbers.
//!
//! The numbers come from one row (`doorward_log_head`). Whoever has raised it holds its lock until his transaction ends,
//! so the next number is given out only when the one before it is visible or was never taken. The row is touched last,
//! so that nothing waits for it longer than a commit takes; and always after all others, so that nobody waits in a circle.

use std::collections::HashSet;

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::connections::Lease;
use super::fault::Fault;
use super::rows::{array, big, bounded, json, small};
use super::{Core, Parameter};
use crate::store::row::AccountRow;
use crate::store::{
    Account, AccountId, Applied, Import, LogEntry, MAX_ENDED, Revocation, SLACK, Session, SessionId, StoreError, Write,
};

/// How often a list is tried again because somebody else was at the same rows.
const TRIES: usize = 4;
/// New accounts, sessions or entries in one statement.
const TOGETHER: usize = 500;

const ACCOUNT: &str = "
    SELECT id, username, password_hash, groups, email, display_name, disabled, version, created, changed, revision
    FROM jsonb_to_recordset($1::text::jsonb) AS r (
        id text, username text, password_hash text, groups text[], email text, display_name text, disabled boolean,
        version bigint, created bigint, changed bigint, revision bigint)";
const SESSION: &str = "
    SELECT id, account, created, renewed, expires, address, user_agent
    FROM jsonb_to_recordset($1::text::jsonb) AS r (
        id text, account text, created bigint, renewed bigint, expires bigint, address text, user_agent text)";
const PUT_SESSION: &str = "
    ON CONFLICT (id) DO UPDATE SET account = excluded.account, created = excluded.created, renewed = excluded.renewed,
        expires = greatest(doorward_session.expires, excluded.expires), address = excluded.address, user_agent = excluded.user_agent";
const APPEND: &str = "
    WITH entries AS (
        SELECT * FROM ROWS FROM (jsonb_to_recordset($1::text::jsonb) AS (what jsonb, at bigint, expires bigint))
            WITH ORDINALITY AS e (what, at, expires, place)
    ), head AS (
        UPDATE doorward_log_head SET number = number + $2, mark = gen_random_uuid() RETURNING number, mark
    ), written AS (
        INSERT INTO doorward_log (number, mark, what, at, expires)
        SELECT head.number - $2 + place, CASE place WHEN $2 THEN head.mark ELSE gen_random_uuid() END, what, at, expires
        FROM head, entries
    )
    SELECT number FROM head";

/// Applies all writes or none.
pub(super) async fn apply(core: &Core, writes: &[Write]) -> Result<Applied, Fault> {
    let mut tries = 0;
    loop {
        tries += 1;
        let lease = core.begin("BEGIN").await?;
        match attempt(lease.client(), writes, core.clock.unix_seconds()).await {
            Ok(applied) => {
                lease.give_back();
                return Ok(applied);
            }
            Err(fault) => {
                roll_back(lease, &fault).await;
                if tries == TRIES || !fault.is_race() {
                    return Err(fault);
                }
            }
        }
    }
}

/// What a refused list did is taken back, and its connection is as good as before.
async fn roll_back(lease: Lease, fault: &Fault) {
    if !fault.is_end() && lease.client().batch_execute("ROLLBACK").await.is_ok() {
        lease.give_back();
    }
}

async fn attempt(client: &Client, writes: &[Write], now: u64) -> Result<Applied, Fault> {
    // First of all, for the sessions that they cover may be removed by the same list.
    let mut revokes = Vec::new();
    for write in writes {
        if let Write::Revoke { what, at, expires } = write {
            let expires = reach(client, what, *at, *expires).await?;
            revokes.push(NewEntry { what: what.clone(), at: *at, expires });
        }
    }
    let mut rest = writes;
    while let Some(write) = rest.first() {
        let inserts = rest.iter().take(TOGETHER).map_while(inserted).collect::<Vec<_>>();
        if inserts.is_empty() {
            one(client, write, now, &mut revokes).await?;
            rest = rest.get(1..).unwrap_or_default();
        } else {
            insert_accounts(client, &inserts).await?;
            rest = rest.get(inserts.len()..).unwrap_or_default();
        }
    }
    finish(client, revokes).await
}

/// Until when (Unix seconds) a token that an entry covers could live, whatever the configuration says now and will say
/// later.
async fn reach(client: &Client, what: &Revocation, at: u64, expires: u64) -> Result<u64, Fault> {
    const LATEST: &str = "SELECT longest, coalesce((SELECT max(expires) FROM doorward_session";
    let (filter, value) = match what {
        Revocation::Session { session } => ("WHERE id = $1", Some(session.as_str())),
        Revocation::Account { account } | Revocation::Changed { account } => {
            ("WHERE account = $1", Some(account.as_str()))
        }
        Revocation::AccountWithoutSession { .. } => ("WHERE false", None),
        Revocation::All => ("", None),
    };
    let sql = format!("{LATEST} {filter}), 0) FROM doorward_time");
    let row = match &value {
        Some(value) => client.query_typed_one(&sql, &[(value, Type::TEXT)]).await?,
        None => client.query_typed_one(&sql, &[]).await?,
    };
    let (longest, ends) = (small(row.try_get(0)?), small(row.try_get(1)?));
    let of_tokens = if matches!(what, Revocation::Session { .. }) { 0 } else { at.saturating_add(longest) };
    Ok(expires.max(of_tokens.max(ends).saturating_add(SLACK)))
}

fn inserted(write: &Write) -> Option<&Account> {
    match write {
        Write::InsertAccount(account) => Some(account),
        _ => None,
    }
}

async fn one(client: &Client, write: &Write, now: u64, revokes: &mut Vec<NewEntry>) -> Result<(), Fault> {
    match write {
        Write::InsertAccount(account) => insert_accounts(client, &[account]).await,
        Write::UpdateAccount(account) => update_account(client, account).await,
        Write::RemoveAccount(id) => {
            let sql = "DELETE FROM doorward_account WHERE id = $1";
            match client.execute_typed(sql, &[(&id.as_str(), Type::TEXT)]).await? {
                0 => Err(StoreError::NoSuchAccount.into()),
                _ => Ok(()),
            }
        }
        Write::PutSession(session) => put_sessions(client, &[json(session)?]).await,
        Write::TouchSession(session) => touch_session(client, session, now).await,
        Write::RemoveSession(id) => remove_sessions(client, Some(("id", id.as_str()))).await,
        Write::RemoveSessionsOf(account) => remove_sessions(client, Some(("account", account.as_str()))).await,
        Write::EndOldestSessions { account, spare, keep, at, expires } => {
            let ended = end_oldest_sessions(client, (account, spare), *keep, now).await?;
            revokes.extend(ended.into_iter().map(|(session, end)| NewEntry {
                what: Revocation::Session { session },
                at: *at,
                expires: end.saturating_add(SLACK).max(*expires),
            }));
            Ok(())
        }
        Write::RemoveAllSessions => remove_sessions(client, None).await,
        Write::Longest(seconds) => {
            let sql = "UPDATE doorward_time SET longest = $1 WHERE longest < $1";
            client.execute_typed(sql, &[(&big(*seconds), Type::INT8)]).await?;
            Ok(())
        }
        // Appended at the end.
        Write::Revoke { .. } => Ok(()),
    }
}

async fn insert_accounts(client: &Client, accounts: &[&Account]) -> Result<(), Fault> {
    let mut records = Vec::with_capacity(accounts.len());
    for account in accounts {
        records.push(json(&AccountRow::from(*account))?);
    }
    let names: Vec<&str> = accounts.iter().map(|account| account.username.as_str()).collect();
    let ids: Vec<&str> = accounts.iter().map(|account| account.id.as_str()).collect();
    let sql = "SELECT id, username FROM doorward_account WHERE username = ANY($1) OR id = ANY($2)";
    let there = client.query_typed(sql, &[(&names, Type::TEXT_ARRAY), (&ids, Type::TEXT_ARRAY)]).await?;
    let (mut known_ids, mut known_names) = (HashSet::new(), HashSet::new());
    for row in &there {
        known_ids.insert(row.try_get::<_, &str>(0)?);
        known_names.insert(row.try_get::<_, &str>(1)?);
    }
    for account in accounts {
        if !known_names.insert(account.username.as_str()) {
            return Err(StoreError::NameTaken(account.username.to_string()).into());
        }
        if !known_ids.insert(account.id.as_str()) {
            return Err(StoreError::IdTaken(account.id.to_string()).into());
        }
    }
    let sql = format!("INSERT INTO doorward_account {ACCOUNT}");
    client.execute_typed(&sql, &[(&array(&records), Type::TEXT)]).await?;
    Ok(())
}

async fn update_account(client: &Client, account: &Account) -> Result<(), Fault> {
    let sql = "SELECT revision FROM doorward_account WHERE id = $1 FOR UPDATE";
    let stored = client.query_typed_opt(sql, &[(&account.id.as_str(), Type::TEXT)]).await?;
    let stored = stored.ok_or(StoreError::NoSuchAccount)?;
    if small(stored.try_get(0)?) != account.revision {
        return Err(StoreError::Conflict.into());
    }
    let sql = "SELECT 1 FROM doorward_account WHERE username = $1 AND id <> $2";
    let name: (&str, &str) = (account.username.as_str(), account.id.as_str());
    if client.query_typed_opt(sql, &[(&name.0, Type::TEXT), (&name.1, Type::TEXT)]).await?.is_some() {
        return Err(StoreError::NameTaken(account.username.to_string()).into());
    }
    let record = json(&AccountRow::from(account))?;
    let sql = format!(
        "UPDATE doorward_account a SET username = n.username, password_hash = n.password_hash, groups = n.groups, \
         email = n.email, display_name = n.display_name, disabled = n.disabled, version = n.version, \
         created = n.created, changed = n.changed, revision = n.revision + 1 FROM ({ACCOUNT}) n WHERE a.id = n.id"
    );
    client.execute_typed(&sql, &[(&array(&[record]), Type::TEXT)]).await?;
    Ok(())
}

async fn put_sessions(client: &Client, records: &[String]) -> Result<(), Fault> {
    let sql = format!("INSERT INTO doorward_session {SESSION} {PUT_SESSION}");
    client.execute_typed(&sql, &[(&array(records), Type::TEXT)]).await?;
    Ok(())
}

async fn touch_session(client: &Client, session: &Session, now: u64) -> Result<(), Fault> {
    let sql = format!(
        "UPDATE doorward_session s SET account = n.account, created = n.created, renewed = n.renewed, \
         expires = greatest(s.expires, n.expires), address = n.address, user_agent = n.user_agent FROM ({SESSION}) n \
         WHERE s.id = n.id AND s.expires > $2"
    );
    // One that ran out is gone, whether it has been cleared away yet or not.
    client.execute_typed(&sql, &[(&array(&[json(session)?]), Type::TEXT), (&big(now), Type::INT8)]).await?;
    Ok(())
}

async fn remove_sessions(client: &Client, of: Option<(&str, &str)>) -> Result<(), Fault> {
    match of {
        Some((column, value)) => {
            let sql = format!("DELETE FROM doorward_session WHERE {column} = $1");
            client.execute_typed(&sql, &[(&value, Type::TEXT)]).await?
        }
        None => client.execute_typed("DELETE FROM doorward_session", &[]).await?,
    };
    Ok(())
}

/// Removes what an account has beyond `keep` sessions, and says which and when each would have ended.
async fn end_oldest_sessions(
    client: &Client,
    (account, spare): (&AccountId, &SessionId),
    keep: usize,
    now: u64,
) -> Result<Vec<(SessionId, u64)>, Fault> {
    /// As many logins of one account at once don't see each other before they look.
    const UNSEEN: usize = 64;
    let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let sql = "SELECT count(*) FROM doorward_session WHERE account = $1";
    let count = client.query_typed_one(sql, &[(&account.as_str(), Type::TEXT)]).await?.try_get::<_, i64>(0)?;
    if count.saturating_add(whole(UNSEEN)) <= whole(keep) {
        return Ok(Vec::new());
    }
    // From here on one after the other, until each has committed.
    let sql = "SELECT 1 FROM (SELECT pg_advisory_xact_lock(hashtextextended($1, 7306))) AS l";
    client.query_typed(sql, &[(&account.as_str(), Type::TEXT)]).await?;
    let sql = "DELETE FROM doorward_session WHERE id IN (
            SELECT id FROM doorward_session WHERE account = $1 AND id <> $2 AND expires > $3
            ORDER BY created DESC, id DESC OFFSET $4 LIMIT $5
        ) RETURNING id, expires";
    let parameters: [Parameter<'_>; 5] = [
        (&account.as_str(), Type::TEXT),
        (&spare.as_str(), Type::TEXT),
        (&big(now), Type::INT8),
        (&whole(keep.saturating_sub(1)), Type::INT8),
        (&whole(MAX_ENDED), Type::INT8),
    ];
    let mut ended = Vec::new();
    for row in client.query_typed(sql, &parameters).await? {
        if let Ok(session) = row.try_get::<_, &str>(0)?.parse() {
            ended.push((session, small(row.try_get(1)?)));
        }
    }
    Ok(ended)
}

/// An entry that has no number yet.
#[derive(Serialize)]
struct NewEntry {
    what: Revocation,
    at: u64,
    expires: u64,
}

/// Appends to the log, wakes the other replicas, and commits.
async fn finish(client: &Client, revokes: Vec<NewEntry>) -> Result<Applied, Fault> {
    if revokes.is_empty() {
        // The head is told, not raised.
        let row = client.query_typed_one("SELECT number FROM doorward_log_head", &[]).await?;
        client.batch_execute("COMMIT").await?;
        return Ok(Applied { log_head: small(row.try_get(0)?), entries: Vec::new() });
    }
    let (log_head, entries) = append(client, revokes).await?;
    client.batch_execute("NOTIFY doorward_log; COMMIT").await?;
    Ok(Applied { log_head, entries })
}

async fn append(client: &Client, revokes: Vec<NewEntry>) -> Result<(u64, Vec<LogEntry>), Fault> {
    let count = u64::try_from(revokes.len()).unwrap_or(u64::MAX);
    let entries: Vec<LogEntry> = revokes
        .into_iter()
        .map(|NewEntry { what, at, expires }| bounded(LogEntry { number: 0, what, at, expires }))
        .collect();
    let records = entries.iter().map(json).collect::<Result<Vec<_>, _>>()?;
    let parameters: [Parameter<'_>; 2] = [(&array(&records), Type::TEXT), (&big(count), Type::INT8)];
    let head = small(client.query_typed_one(APPEND, &parameters).await?.try_get(0)?);
    let first = head.saturating_sub(count) + 1;
    let numbered = entries.into_iter().zip(first..).map(|(entry, number)| LogEntry { number, ..entry });
    Ok((head, numbered.collect()))
}

/// Fills an empty store.
pub(super) async fn import(core: &Core, import: &Import) -> Result<Applied, Fault> {
    let lease = core
        .begin("BEGIN; SET LOCAL statement_timeout = '1min'; SET LOCAL idle_in_transaction_session_timeout = '1min'")
        .await?;
    match fill(lease.client(), import).await {
        Ok(applied) => {
            lease.give_back();
            Ok(applied)
        }
        Err(fault) => {
            roll_back(lease, &fault).await;
            Err(fault)
        }
    }
}

async fn fill(client: &Client, import: &Import) -> Result<Applied, Fault> {
    // Nobody writes until it is whole; readers are not in the way.
    client
        .batch_execute("LOCK TABLE doorward_account, doorward_session, doorward_log IN SHARE ROW EXCLUSIVE MODE")
        .await?;
    let empty = "SELECT NOT EXISTS (SELECT FROM doorward_account) AND NOT EXISTS (SELECT FROM doorward_session)
        AND NOT EXISTS (SELECT FROM doorward_log)";
    if !client.query_typed_one(empty, &[]).await?.try_get::<_, bool>(0)? {
        return Err(StoreError::NotEmpty.into());
    }
    for some in import.accounts.chunks(TOGETHER) {
        insert_accounts(client, &some.iter().collect::<Vec<_>>()).await?;
    }
    for some in import.sessions.chunks(TOGETHER) {
        put_sessions(client, &some.iter().map(json).collect::<Result<Vec<_>, _>>()?).await?;
    }
    let mut entries: Vec<LogEntry> = import.log.iter().cloned().map(bounded).collect();
    for some in entries.chunks(TOGETHER) {
        let records = array(&some.iter().map(json).collect::<Result<Vec<_>, _>>()?);
        let sql = "INSERT INTO doorward_log (number, mark, what, at, expires)
            SELECT number, gen_random_uuid(), what, at, expires FROM jsonb_to_recordset($1::text::jsonb)
            AS r (number bigint, what jsonb, at bigint, expires bigint)";
        client.execute_typed(sql, &[(&records, Type::TEXT)]).await?;
    }
    let last = entries.last().map_or(0, |entry| entry.number).max(import.log_head);
    // Where the newest number is an entry's, its mark is that entry's, as after every other change.
    let sql = "UPDATE doorward_log_head h SET number = greatest(h.number, $1), mark = coalesce(
            (SELECT mark FROM doorward_log WHERE number = greatest(h.number, $1)), gen_random_uuid()
        ) RETURNING h.number";
    let mut log_head = small(client.query_typed_one(sql, &[(&big(last), Type::INT8)]).await?.try_get(0)?);
    let forgotten = &import.forgotten;
    let time: [Parameter<'_>; 4] = [
        (&big(import.longest), Type::INT8),
        (&big(forgotten.until), Type::INT8),
        (&big(forgotten.number), Type::INT8),
        (&big(forgotten.at), Type::INT8),
    ];
    let sql =
        "UPDATE doorward_time SET longest = greatest(longest, $1), forgotten_until = greatest(forgotten_until, $2),
        forgotten_number = greatest(forgotten_number, $3), forgotten_at = greatest(forgotten_at, $4)";
    client.execute_typed(sql, &time).await?;
    if let Some(times) = import.revoke_all {
        let all = NewEntry { what: Revocation::All, at: times.at, expires: times.expires };
        let (head, appended) = append(client, vec![all]).await?;
        log_head = head;
        entries.extend(appended);
    }
    client.batch_execute("NOTIFY doorward_log; COMMIT").await?;
    Ok(Applied { log_head, entries })
}
