//! What goes wrong between this program and the database, and what it means.

use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The store's own refusal.
    Refused(StoreError),
    /// The driver's or the server's.
    Database(tokio_postgres::Error),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(error) => error,
            // A server's message only, with its code: details and context can quote a row.
            Fault::Database(error) => match error.as_db_error() {
                Some(said) => {
                    Self::unavailable(format!("the database says: {} ({})", said.message(), said.code().code()))
                }
                None => Self::caused("the database can't be reached", error),
            },
        }
    }
}

impl Fault {
    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Database(error) => error.code(),
            Self::Refused(_) => None,
        }
    }

    /// Somebody else was at the same rows: the whole list may be tried again.
    pub(super) fn is_race(&self) -> bool {
        self.code().is_some_and(|code| {
            [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE]
                .contains(code)
        })
    }

    /// The database has no connection left for us.
    pub(super) fn is_crowd(&self) -> bool {
        self.code() == Some(&SqlState::TOO_MANY_CONNECTIONS)
    }

    /// The connection did not outlive it, or is to a server that takes no changes any more.
    pub(super) fn is_end(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Database(error) => match error.as_db_error() {
                // Classes 57 (operator intervention: shutdown, terminated) and 08 (connection), and a server that has
                // become a standby.
                Some(said) => {
                    let code = said.code().code();
                    code.starts_with("57P")
                        || code.starts_with("08")
                        || *said.code() == SqlState::READ_ONLY_SQL_TRANSACTION
                }
                None => true,
            },
        }
    }
}
