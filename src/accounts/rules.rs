//! What a new password must be.

use super::password::MAX_BYTES;
use crate::config;

/// Checks a password that is to be set. The error is a sentence without its full stop, for the person who chose it.
pub(crate) fn check_new_password(login: &config::Login, _username: &str, password: &str) -> Result<(), String> {
    if password.chars().count() < login.min_password_length {
        return Err(format!("the password is shorter than {} characters", login.min_password_length));
    }
    if password.len() > MAX_BYTES {
        return Err(format!("the password is longer than {MAX_BYTES} bytes"));
    }
    if password.contains('\0') {
        return Err(String::from("the password has a NUL character in it"));
    }
    Ok(())
}
