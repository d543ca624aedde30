//! Tokens, sessions, revocation. `auth` never hashes a password.

pub mod cache;
pub mod keys;
pub mod revocation;
pub mod session;
pub mod token;

use std::sync::Arc;

use http::HeaderMap;

use crate::policy::{Caller, Principal};
use crate::store::{AccountId, SessionId};

/// A token that verified, ready for every request that carries it. Immutable.
#[derive(Debug)]
pub struct Verified {
    pub principal: Arc<Principal>,
    pub account: AccountId,
    /// `None`: a foreign issuer's token, or one of ours that names no session.
    pub session: Option<SessionId>,
    /// 128 bits of the account's and the session's id, as [`revocation::Revocations`] keys them.
    pub account_key: u128,
    pub session_key: Option<u128>,
    /// The log's number when it was issued; foreign tokens have none.
    pub seq: Option<u64>,
    /// `__v`; foreign tokens have none.
    pub version: Option<u64>,
    /// Unix seconds; a foreign token's `iat`.
    pub auth_time: u64,
    pub issued_at: u64,
    /// Unix seconds: `exp`, but never later than `auth_time` + `max_lifetime` and `iat` + horizon.
    pub expires: u64,
}

/// Where the credential was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Cookie,
    Bearer,
}

/// What the revocation log says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Current,
    /// The account has changed since entry `since`: its groups are to be read again.
    Changed {
        since: u64,
    },
    Revoked,
}

/// A caller together with the credential that names him.
#[derive(Debug)]
pub struct Identified {
    pub caller: Caller,
    /// The token behind a [`Caller::Person`].
    pub credential: Option<(Arc<Verified>, Source)>,
    pub standing: Standing,
    /// A cookie of our name came but is no login: the refusal that follows clears it.
    pub stale_cookie: bool,
    /// The bearer token is one that our keys made (valid or not any more): it goes no further than here.
    pub own_bearer: bool,
}

/// Finds out who sent a request, without I/O. Tries every cookie of the name and `Authorization: Bearer`; valid ones of
/// two people count as none.
pub fn identify(
    _headers: &HeaderMap,
    _cookie_name: &str,
    _ring: &keys::KeyRing,
    _cache: &mut cache::TokenCache,
    _revocations: &revocation::Revocations,
    _now: u64,
) -> Identified {
    todo!("helper: auth")
}
