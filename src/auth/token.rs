//! The token: claims (RFC 7519), and everything that can be wrong with one.

use serde::{Deserialize, Serialize};

/// What a token says. Duplicate and ill-typed claims are refused by their types.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    #[serde(rename = "_id")]
    pub id: String,
    pub username: String,
    pub groups: Vec<String>,
    pub sid: String,
    #[serde(rename = "__v")]
    pub version: u64,
    pub auth_time: u64,
    pub seq: u64,
    pub iat: u64,
    pub exp: u64,
}

/// Why a token is no login. `token inspect` prints it; a client never sees more than "not logged in".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it is not a signed JWT: {0}")]
    Malformed(&'static str),
    #[error("no key of ours made it")]
    UnknownKey,
    #[error("the signature is wrong")]
    Signature,
    #[error("its algorithm is not the key's")]
    Algorithm,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("a claim is missing or wrong: {0}")]
    Claim(&'static str),
}
