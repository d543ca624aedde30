//! What the groups, the e-mail address and the display name of an account may be.
//!
//! They end up in headers, tokens and comma-separated lists, so nothing that would break one of these gets in.

const MAX_NAME_CHARS: usize = 64;
/// All groups of an account together, joined by commas, in bytes: they have to fit a header and a cookie.
const MAX_GROUPS_BYTES: usize = 2_000;
/// RFC 5321 section 4.5.3.1.3, less the angle brackets.
const MAX_EMAIL_CHARS: usize = 254;
const MAX_DISPLAY_NAME_CHARS: usize = 128;

/// Drops duplicates and keeps the order. The error is a sentence without its full stop.
pub(crate) fn groups(groups: Vec<String>) -> Result<Vec<String>, String> {
    let mut kept: Vec<String> = Vec::with_capacity(groups.len().min(MAX_NAME_CHARS));
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    for group in groups {
        let problem = if group.is_empty() {
            "is empty"
        } else if group.chars().count() > MAX_NAME_CHARS {
            "is longer than 64 characters"
        } else if group.chars().any(|character| character.is_control() || character == ',') {
            "has a control character or a comma in it"
        } else if group.trim() != group {
            "starts or ends with white space"
        } else {
            ""
        };
        if !problem.is_empty() {
            return Err(format!("the group {} {problem}", without_hash(&group, MAX_NAME_CHARS)));
        }
        if seen.insert(group.clone()) {
            bytes += group.len() + 1;
            kept.push(group);
        }
    }
    if bytes > MAX_GROUPS_BYTES + 1 {
        return Err(format!("the groups are longer than {MAX_GROUPS_BYTES} bytes together"));
    }
    Ok(kept)
}

/// An address or nothing. Only what could do harm is refused; whether mail arrives there is another question.
pub(crate) fn email(email: &str) -> Result<String, String> {
    let problem = if email.chars().count() > MAX_EMAIL_CHARS {
        "is longer than 254 characters"
    } else if email.chars().any(|character| character.is_control() || character.is_whitespace()) {
        "has a control character or white space in it"
    } else if email.matches('@').count() > 1 {
        "has more than one @"
    } else {
        return Ok(email.to_owned());
    };
    Err(format!("the e-mail address {} {problem}", without_hash(email, MAX_NAME_CHARS)))
}

/// A name for people to read, or nothing.
pub(crate) fn display_name(name: &str) -> Result<String, String> {
    let problem = if name.chars().count() > MAX_DISPLAY_NAME_CHARS {
        "is longer than 128 characters"
    } else if name.chars().any(char::is_control) {
        "has a control character in it"
    } else {
        return Ok(name.to_owned());
    };
    Err(format!("the display name {} {problem}", without_hash(name, MAX_NAME_CHARS)))
}

/// A text for a message, in quotes: so many characters of it, so that the message stays a line, and nothing from the sign on
/// that every hash begins with, for in files columns get mixed up and lines broken.
pub(super) fn without_hash(text: &str, most: usize) -> String {
    let start: String = text.chars().take_while(|sign| *sign != '$').take(most).collect();
    let dots = if start.len() < text.len() { "…" } else { "" };
    format!("{start:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(groups: &[&str]) -> Result<Vec<String>, String> {
        super::groups(groups.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn groups_keep_their_order_without_duplicates() {
        assert_eq!(list(&["b", "a", "b", "in between"]).unwrap(), ["b", "a", "in between"]);
        assert_eq!(list(&[]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn groups_that_would_break_a_list_are_refused() {
        for bad in ["", " a", "a ", "a,b", "a\nb", "a\u{7f}", "\u{a0}a", &"a".repeat(65)] {
            assert!(list(&["good", bad]).is_err(), "{bad:?}");
        }
        assert!(list(&[&"é".repeat(64)]).is_ok());
    }

    #[test]
    fn groups_have_2000_bytes_together() {
        let names: Vec<String> = (0..200).map(|number| format!("{number:09}")).collect();
        let mut joined = groups(names).unwrap();
        assert_eq!(joined.join(",").len(), 1_999);
        joined.push(String::from("a"));
        assert!(groups(joined).is_err());
        let exact = (0..199).map(|number| format!("{number:09}")).chain([String::from("0123456789")]).collect();
        assert_eq!(groups(exact).unwrap().join(",").len(), 2_000);
    }

    #[test]
    fn addresses_and_names_are_bounded_and_of_one_line() {
        for good in ["", "kim@example.com", "kim", &"é".repeat(254)] {
            assert_eq!(email(good).unwrap(), good);
        }
        for bad in ["kim @example.com", "a@b@c", "kim\r\n@example.com", "kim\u{2028}", &"a".repeat(255)] {
            assert!(email(bad).is_err(), "{bad:?}");
        }
        assert_eq!(display_name("Kim Lee 😀").unwrap(), "Kim Lee 😀");
        for bad in ["a\nb", "\0", &"a".repeat(129)] {
            assert!(display_name(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_accepted_can_be_joined_and_cut_again(names in proptest::collection::vec("[ -~é]{0,8}", 0..6)) {
            if let Ok(kept) = groups(names) {
                let joined = kept.join(",");
                let again: Vec<String> = joined.split(',').filter(|name| !name.is_empty()).map(String::from).collect();
                proptest::prop_assert_eq!(kept, again);
            }
        }
    }
}
