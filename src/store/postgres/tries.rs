//! Wrong passwords, counted for all replicas together. The database's clock is the one that counts.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::rows::{big, small};
use super::{Calls, Parameter};
use crate::store::{StoreFuture, WrongTries};

/// Answers that a password has to wait for come in this time, or the process's own count alone decides.
const PATIENCE: Duration = Duration::from_millis(500);

const WAIT: &str = "
    SELECT ceil(extract(epoch FROM at + make_interval(secs => $2::float8 / 1000) - clock_timestamp()) * 1000)::bigint
    FROM doorward_wrong_try
    WHERE bucket = $1 AND at > clock_timestamp() - make_interval(secs => $2::float8 / 1000)
    ORDER BY at DESC OFFSET $3 LIMIT 1";
const COUNT: &str = "
    INSERT INTO doorward_wrong_try (bucket, at, expires)
    VALUES ($1, clock_timestamp(), clock_timestamp() + make_interval(secs => $2::float8 / 1000))";

/// The table of wrong tries.
pub(super) struct Tries(pub(super) Arc<Calls>);

impl WrongTries for Tries {
    fn wait(&self, bucket: [u8; 16], max_attempts: u32, window: Duration) -> StoreFuture<'_, Option<Duration>> {
        self.0.call(Some(PATIENCE), async move |core| {
            let row = core
                .read(async |client| {
                    let offset = i64::from(max_attempts.saturating_sub(1));
                    let parameters: [Parameter<'_>; 3] =
                        [(&bucket.as_slice(), Type::BYTEA), (&millis(window), Type::INT8), (&offset, Type::INT8)];
                    Ok(client.query_typed_opt(WAIT, &parameters).await?)
                })
                .await?;
            let left = row.map(|row| row.try_get::<_, i64>(0)).transpose()?;
            Ok(left.map(|left| Duration::from_millis(small(left))).filter(|left| !left.is_zero()))
        })
    }

    fn wrong(&self, bucket: [u8; 16], window: Duration) -> StoreFuture<'_, ()> {
        self.0.call(Some(PATIENCE), async move |core| {
            core.once(async |client| {
                let parameters: [Parameter<'_>; 2] = [(&bucket.as_slice(), Type::BYTEA), (&millis(window), Type::INT8)];
                client.execute_typed(COUNT, &parameters).await?;
                Ok(())
            })
            .await
        })
    }

    fn right(&self, bucket: [u8; 16]) -> StoreFuture<'_, ()> {
        self.0.call(Some(PATIENCE), async move |core| {
            core.read(async |client| {
                let sql = "DELETE FROM doorward_wrong_try WHERE bucket = $1";
                client.execute_typed(sql, &[(&bucket.as_slice(), Type::BYTEA)]).await?;
                Ok(())
            })
            .await
        })
    }
}

fn millis(span: Duration) -> i64 {
    big(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}
