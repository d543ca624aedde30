//! What a terminal or a reader of logs would not show as it stands: it is escaped, so that a line is what it looks like.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Controls (C0, DEL and C1), characters that turn the direction of what follows, those without a width, and the line ends
/// of Unicode.
const fn is_hidden(sign: char) -> bool {
    matches!(sign,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text of a whole JSON value with what is hidden in it as `\uXXXX`. Outside of strings there is nothing of that kind.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    // C0 is escaped by everybody who writes JSON.
    escaped(
        text,
        |sign| sign > '\u{1f}' && is_hidden(sign),
        |into, sign| {
            for unit in sign.encode_utf16(&mut [0; 2]) {
                // Writing to a String can't fail.
                let _ = write!(into, "\\u{unit:04x}");
            }
        },
    )
}

/// The same for text that a person reads: `\u{202e}`, line ends as `\n`; a backslash is doubled.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |sign| sign == '\\' || is_hidden(sign),
        |into, sign| match sign {
            '\\' | '\n' | '\r' | '\t' => into.extend(sign.escape_default()),
            other => into.extend(other.escape_unicode()),
        },
    )
}

fn escaped(text: &str, is_hidden: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.chars().any(&is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len() + 16);
    for sign in text.chars() {
        if is_hidden(sign) {
            escape(&mut result, sign);
        } else {
            result.push(sign);
        }
    }
    Cow::Owned(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_not_show_is_escaped_and_letters_are_not() {
        for (given, of_json, of_text) in [
            ("é 김 lee", "é 김 lee", "é 김 lee"),
            ("a\u{9b}2J", "a\\u009b2J", "a\\u{9b}2J"),
            ("\u{202e}evil", "\\u202eevil", "\\u{202e}evil"),
            ("a\u{2028}b\u{200b}", "a\\u2028b\\u200b", "a\\u{2028}b\\u{200b}"),
            ("\u{e0041}", "\\udb40\\udc41", "\\u{e0041}"),
            ("a\nb\u{1b}[2J", "a\nb\u{1b}[2J", "a\\nb\\u{1b}[2J"),
        ] {
            assert_eq!(json(given), of_json);
            assert_eq!(text(given), of_text);
        }
    }

    proptest! {
        #[test]
        fn json_is_read_back_as_it_was(given in "\\PC*|.*") {
            let written = serde_json::to_string(&given).unwrap();
            let shown = json(&written);
            prop_assert!(!shown.chars().any(is_hidden));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), given.clone());
            prop_assert!(!text(&given).chars().any(is_hidden));
        }
    }
}
