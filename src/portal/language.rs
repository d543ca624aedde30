//! Which language a person reads: English or Korean, by `Accept-Language` (RFC 9110 section 12.5.4).
//!
//! Nothing of the header is ever written into a page: it only chooses between two fixed values.

use http::header::ACCEPT_LANGUAGE;
use http::{HeaderMap, HeaderValue};

/// A language that the pages are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// `en`
    #[default]
    English,
    /// `ko`
    Korean,
}

/// Ranges beyond this many are not looked at; no browser sends so many.
const MAX_RANGES: usize = 64;

impl Language {
    /// The one of our languages that the client likes best; English where it names neither.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        Self::of_lines(headers.get_all(ACCEPT_LANGUAGE))
    }

    /// The same, from the lines of `Accept-Language` alone.
    #[must_use]
    pub fn of_lines<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let mut english = Liking::default();
        let mut korean = Liking::default();
        let ranges = lines.into_iter().filter_map(|line| line.to_str().ok());
        let ranges = ranges.flat_map(|line| line.split(',')).map(str::trim).filter(|range| !range.is_empty());
        for (place, range) in ranges.take(MAX_RANGES).enumerate() {
            let Some((tag, quality)) = parse_range(range) else { continue };
            let primary = tag.split('-').next().unwrap_or_default();
            if primary.eq_ignore_ascii_case("en") {
                english.note(quality, place, true);
            } else if primary.eq_ignore_ascii_case("ko") {
                korean.note(quality, place, true);
            } else if primary == "*" {
                english.note(quality, place, false);
                korean.note(quality, place, false);
            }
        }
        if korean.beats(&english) { Self::Korean } else { Self::English }
    }

    /// The language tag (RFC 5646), for `lang` and `Content-Language`.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Korean => "ko",
        }
    }
}

/// How much a client likes one language.
#[derive(Default)]
struct Liking {
    /// Thousandths, and the place in the list.
    best: Option<(u16, usize)>,
    by_name: bool,
}

impl Liking {
    fn note(&mut self, quality: u16, place: usize, by_name: bool) {
        // A language that is named is not judged by `*` (RFC 4647 section 3.3.1); of two names the better counts.
        if self.by_name && !by_name {
            return;
        }
        if by_name && !self.by_name {
            self.best = None;
            self.by_name = true;
        }
        if self.best.is_none_or(|(best, _)| quality > best) {
            self.best = Some((quality, place));
        }
    }

    fn beats(&self, other: &Self) -> bool {
        match (self.best, other.best) {
            (None | Some((0, _)), _) => false,
            (Some(_), None | Some((0, _))) => true,
            (Some((mine, my_place)), Some((theirs, their_place))) => {
                mine > theirs || (mine == theirs && my_place < their_place)
            }
        }
    }
}

/// A language range and its weight in thousandths. `None`: not what RFC 9110 section 12.4.2 allows, and left out.
fn parse_range(range: &str) -> Option<(&str, u16)> {
    let mut pieces = range.split(';');
    let tag = pieces.next()?.trim();
    if tag.is_empty() {
        return None;
    }
    let Some(weight) = pieces.next() else { return Some((tag, 1000)) };
    if pieces.next().is_some() {
        return None;
    }
    let (name, value) = weight.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    Some((tag, thousandths(value.trim())?))
}

fn thousandths(value: &str) -> Option<u16> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let parts: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(parts),
        "1" if parts == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn chosen(lines: &[&str]) -> Language {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_LANGUAGE, HeaderValue::from_str(line).unwrap());
        }
        Language::of(&headers)
    }

    #[test]
    fn the_better_liked_language_is_chosen() {
        for (lines, expected) in [
            (&[][..], Language::English),
            (&[""], Language::English),
            (&["ko"], Language::Korean),
            (&["ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7"], Language::Korean),
            (&["en-US,en;q=0.9,ko;q=0.8"], Language::English),
            (&["en;q=0.2, KO-kr;q=0.3"], Language::Korean),
            (&["en;q=0.25, ko;q=0.251"], Language::Korean),
            (&["ko;q=0, en;q=0.1"], Language::English),
            (&["ko;q=0"], Language::English),
            (&["fr, de;q=0.9"], Language::English),
            (&["fr, ko;q=0.1"], Language::Korean),
            (&["*"], Language::English),
            (&["en;q=0, *"], Language::Korean),
            (&["*;q=0.5, ko;q=0.4"], Language::English),
            (&["ko;q=0.4, *;q=0.5"], Language::English),
            (&["ko", "en"], Language::Korean),
            (&["en", "ko"], Language::English),
            (&["kok, kor"], Language::English),
            (&["ko;q=1.5"], Language::English),
            (&["ko;q=0.1234"], Language::English),
            (&["ko;q=-1"], Language::English),
            (&["ko;level=1"], Language::English),
            (&["ko;q=1.000"], Language::Korean),
            (&["ko;q=1.001"], Language::English),
        ] {
            assert_eq!(chosen(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_choose_nothing() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT_LANGUAGE, HeaderValue::from_bytes(b"ko\xff").unwrap());
        assert_eq!(Language::of(&headers), Language::English);
    }

    proptest! {
        #[test]
        fn any_header_chooses_one_of_two(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, value)]);
                prop_assert!(["en", "ko"].contains(&Language::of(&headers).tag()));
            }
        }

        #[test]
        fn weights_order_the_two(english in 1u16..=1000, korean in 1u16..=1000) {
            prop_assume!(english != korean);
            let weight = |thousandths: u16| if thousandths == 1000 { String::from("1") } else { format!("0.{thousandths:03}") };
            let line = format!("en;q={},ko;q={}", weight(english), weight(korean));
            let expected = if korean > english { Language::Korean } else { Language::English };
            prop_assert_eq!(chosen(&[&line]), expected);
        }
    }
}
