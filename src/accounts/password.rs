//! Password hashes: kinds, verification, rules for new passwords.
