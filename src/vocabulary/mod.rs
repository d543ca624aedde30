//! Words that several rooms read, with one reading each. Imports nothing.

pub mod letters;
pub mod method;
