//! The key ring: the key that signs, the previous ones that still verify, `kid`, JWKS.

use std::path::Path;

use super::Verified;
use super::token::{Claims, TokenError};
use crate::config;

/// Why there is no usable key ring.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{0}")]
    Unusable(String),
}

/// All keys of one configuration. A token's key is chosen by `kid`, its algorithm by the key.
#[derive(Debug)]
pub struct KeyRing {}

impl KeyRing {
    /// From the configuration, and `data_dir/keys` (`current` where the configuration names no key; `previous` always, until they expire).
    pub fn load(_token: &config::Token, _data_dir: &Path, _now: u64) -> Result<Self, KeyError> {
        todo!("helper: auth")
    }

    /// Differs between any two rings of one process, so that remembered verifications are dropped.
    #[must_use]
    pub fn generation(&self) -> u64 {
        todo!()
    }

    pub fn sign(&self, _claims: &Claims) -> Result<String, TokenError> {
        todo!()
    }

    /// Every check that needs no store and no log.
    pub fn verify(&self, _token: &str, _now: u64) -> Result<Verified, TokenError> {
        todo!()
    }

    /// Public keys (RFC 7517); `None` where there are only secrets.
    #[must_use]
    pub fn jwks(&self) -> Option<serde_json::Value> {
        todo!()
    }
}
