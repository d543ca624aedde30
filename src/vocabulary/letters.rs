//! Texts that are one to a program which ignores letter case, and the ways in which clients write a path.
//!
//! Invariant: whatever two texts some program takes for the same name (by lower case, upper case, Unicode's full case
//! folding, Turkish rules, NFC or NFD) fold to the same bytes. Folding more than one program does costs a refusal of odd
//! spellings; folding less would be a way around a route.

use std::borrow::Cow;
use std::collections::BTreeSet;

use unicode_normalization::UnicodeNormalization as _;

/// The dot that is left of U+0130 when it is taken apart or made small.
const DOT_ABOVE: char = '\u{307}';

/// Folds letter case. ASCII costs one copy; of anything else only the beginning is folded, up to a little more than
/// `enough` bytes. Bytes that are no UTF-8 are taken for Latin-1.
#[must_use]
pub fn fold(text: &[u8], enough: usize) -> Cow<'_, [u8]> {
    if text.is_ascii() {
        return if text.iter().any(u8::is_ascii_uppercase) { text.to_ascii_lowercase().into() } else { text.into() };
    }
    let characters = text
        .utf8_chunks()
        .flat_map(|chunk| chunk.valid().chars().chain(chunk.invalid().iter().copied().map(char::from)));
    let mut folded = String::with_capacity(text.len().min(enough) + 4);
    for character in characters.filter(|character| !is_ignored(*character)).nfd() {
        // Small, large, small: that one large letter stands for several small ones (s, U+017F) and the other way round.
        let letters = character.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase);
        for letter in letters {
            if letter != DOT_ABOVE || !folded.ends_with('i') {
                folded.push(letter);
            }
        }
        if folded.len() > enough {
            break;
        }
    }
    folded.into_bytes().into()
}

/// What file systems that ignore letter case pass over as well (ext4 and F2FS with `casefold`, HFS+): Unicode's
/// `Default_Ignorable_Code_Point`.
const fn is_ignored(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Every way in which a client writes a path that an operator wrote as a person reads it: as it stands, composed and
/// decomposed, and with what no URL holds in percent signs, large or small.
#[must_use]
pub fn spellings(path: &str) -> Vec<String> {
    let mut texts = BTreeSet::from([path.to_owned(), path.nfc().collect(), path.nfd().collect()]);
    for text in texts.clone() {
        for is_encoded in [of_browsers, of_programs] {
            let written = encoded(&text, is_encoded);
            texts.insert(lower_digits(&written));
            texts.insert(written);
        }
    }
    texts.into_iter().collect()
}

/// The path percent-encode set of the URL standard.
fn of_browsers(byte: u8) -> bool {
    !byte.is_ascii_graphic() || matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'}')
}

/// Whatever is not allowed in a path by RFC 3986 section 3.3.
fn of_programs(byte: u8) -> bool {
    of_browsers(byte) || matches!(byte, b'[' | b']' | b'|')
}

fn encoded(text: &str, is_encoded: fn(u8) -> bool) -> String {
    let mut written = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_encoded(byte) {
            written.push('%');
            for digit in [byte >> 4, byte & 15] {
                written.push(char::from_digit(u32::from(digit), 16).unwrap_or('0').to_ascii_uppercase());
            }
        } else {
            written.push(char::from(byte));
        }
    }
    written
}

/// The same with small digits behind its percent signs.
fn lower_digits(written: &str) -> String {
    let mut digits = 0;
    written
        .chars()
        .map(|character| {
            if character == '%' {
                digits = 2;
                character
            } else if digits > 0 {
                digits -= 1;
                character.to_ascii_lowercase()
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folded(text: &str) -> String {
        String::from_utf8(fold(text.as_bytes(), usize::MAX).into_owned()).unwrap()
    }

    #[test]
    fn letters_that_some_program_takes_for_others_fold_to_them() {
        for (text, plain) in [
            ("ADMIN", "admin"),
            ("adm\u{130}n", "admin"),
            ("adm\u{131}n", "admin"),
            ("admI\u{307}n", "admin"),
            ("bac\u{212a}office", "backoffice"),
            ("u\u{17f}er\u{17f}", "users"),
            ("o\u{fb03}ce", "office"),
            ("\u{fb06}aff", "staff"),
            ("Stra\u{df}e", "strasse"),
            ("STRA\u{1e9e}E", "strasse"),
            ("ad\u{200c}min", "admin"),
            ("\u{feff}admin\u{ad}", "admin"),
            ("\u{c9}t\u{e9}", "e\u{301}te\u{301}"),
            ("E\u{301}te\u{301}", "e\u{301}te\u{301}"),
            ("\u{212b}", "a\u{30a}"),
            ("\u{3a3}\u{3c2}\u{3c3}", "\u{3c3}\u{3c3}\u{3c3}"),
            ("\u{ac00}", "\u{1100}\u{1161}"),
        ] {
            assert_eq!(folded(text), plain, "{text:?}");
        }
        assert_eq!(&*fold(b"/\xe9", 99), "/e\u{301}".as_bytes(), "Latin-1");
    }

    #[test]
    fn a_long_text_is_folded_as_far_as_needed() {
        let long = "\u{130}".repeat(1000);
        assert_eq!(&*fold(long.as_bytes(), 10), b"iiiiiiiiiii");
    }

    #[test]
    fn a_path_is_met_as_clients_write_it() {
        let written = spellings("/caf\u{e9} 1");
        for spelling in ["/caf\u{e9} 1", "/caf%C3%A9%201", "/caf%c3%a9%201", "/cafe%CC%81%201"] {
            assert!(written.iter().any(|one| one == spelling), "{spelling}: {written:?}");
        }
        assert_eq!(spellings("/admin"), ["/admin"]);
        assert!(spellings("/{id}").contains(&String::from("/%7bid%7d")));
    }

    proptest! {
        #[test]
        fn every_case_and_form_of_a_text_folds_alike(text in "\\PC{0,12}") {
            let whole = folded(&text);
            for other in [text.to_lowercase(), text.to_uppercase(), text.nfc().collect(), text.nfd().collect()] {
                prop_assert_eq!(&folded(&other), &whole, "{:?}", other);
            }
            prop_assert_eq!(&folded(&whole), &whole);
        }
    }
}
