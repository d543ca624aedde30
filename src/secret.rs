//! A value that must not be printed, compared in variable time, or left in memory.

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Holds a secret. It has no `Display`, no `PartialEq` and no `Serialize`; `Debug` shows only that it is there;
/// the memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// Lends the value to the code that needs it. Search for this name to see who does.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize + AsRef<[u8]>> Secret<T> {
    /// Compares without telling by its duration where two secrets of the same length differ.
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.as_ref().ct_eq(other).into()
    }
}

impl<T: Zeroize + Default> Default for Secret<T> {
    fn default() -> Self {
        Self(T::default())
    }
}

impl<T: Zeroize> std::fmt::Debug for Secret<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not compile where the type has the trait: the compiler then can't choose between the two implementations.
    macro_rules! assert_has_not {
        ($type:ty: $($bound:path),+) => {$({
            trait Chosen<A> {
                fn choose() {}
            }
            impl<T: ?Sized> Chosen<()> for T {}
            struct Has;
            impl<T: ?Sized + $bound> Chosen<Has> for T {}
            <$type as Chosen<_>>::choose();
        })+};
    }

    #[test]
    fn a_secret_can_not_be_printed_compared_or_written_down() {
        use std::borrow::Borrow;
        use std::fmt::{Display, LowerHex};
        use std::hash::Hash;
        use std::ops::Deref;
        assert_has_not!(Secret<String>: Display, PartialEq, PartialOrd, Hash, serde::Serialize, Deref, ToString);
        assert_has_not!(Secret<String>: AsRef<str>, AsRef<[u8]>, Borrow<str>, Into<String>);
        assert_has_not!(Secret<Vec<u8>>: Display, LowerHex, PartialEq, PartialOrd, Hash, serde::Serialize, Deref);
        assert_has_not!(Secret<Vec<u8>>: AsRef<[u8]>, Borrow<[u8]>, Into<Vec<u8>>);
        // What holds one can be none of it either, unless somebody writes it out by hand.
        assert_has_not!(crate::config::KeyMaterial: Display, PartialEq, Hash, serde::Serialize);
        assert_has_not!(crate::store::Account: Display, PartialEq, Hash, serde::Serialize);
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::new(String::from("canary"));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(secret.matches(b"canary"));
        assert!(!secret.matches(b"canarx"));
        assert!(!secret.matches(b"canar"));
    }
}
