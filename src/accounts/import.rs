//! Reading htpasswd, JSON and Authelia user files; writing JSON.

use crate::secret::Secret;

/// One account of an import file, checked.
#[derive(Clone, Debug)]
pub struct Imported {
    pub id: Option<crate::store::AccountId>,
    pub username: crate::store::Username,
    pub password_hash: Secret<String>,
    pub groups: Vec<String>,
    pub email: String,
    pub display_name: String,
    pub disabled: bool,
    pub version: u64,
}
