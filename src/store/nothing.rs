//! The store of a verify-only gateway: there is none.
//!
//! Whatever asks for an account here is told where accounts are kept; the revocation log comes from the centre's feed.

use std::sync::Arc;

use super::{
    Account, AccountId, Applied, LogEntry, LogFollower, Session, SessionId, Store, StoreError, StoreFuture, Username,
    Write,
};

/// Holds nothing and takes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

fn refused<T: Send + 'static>() -> StoreFuture<'static, T> {
    let problem = "this gateway keeps no accounts (store.kind = \"none\"); its centre does";
    Box::pin(std::future::ready(Err(StoreError::unavailable(problem))))
}

impl Store for Nothing {
    fn account(&self, _: &AccountId) -> StoreFuture<'_, Option<Account>> {
        refused()
    }

    fn account_by_name(&self, _: &Username) -> StoreFuture<'_, Option<Account>> {
        refused()
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        refused()
    }

    fn session(&self, _: &SessionId) -> StoreFuture<'_, Option<Session>> {
        refused()
    }

    fn sessions(&self, _: Option<&AccountId>) -> StoreFuture<'_, Vec<Session>> {
        refused()
    }

    fn apply(&self, _: Vec<Write>) -> StoreFuture<'_, Applied> {
        refused()
    }

    fn log_head(&self) -> StoreFuture<'_, u64> {
        refused()
    }

    fn follow(&self, _: Arc<dyn LogFollower>) -> StoreFuture<'_, ()> {
        refused()
    }

    fn log(&self) -> StoreFuture<'_, Vec<LogEntry>> {
        refused()
    }

    fn health(&self) -> StoreFuture<'_, ()> {
        refused()
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}
