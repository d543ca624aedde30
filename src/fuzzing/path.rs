//! The every-reading rule, against a reading of it that is as naive as can be.

use std::collections::HashMap;

use crate::message::path::Readings;

/// Readings that the reference works out before it gives up: one more than the product.
const MOST: usize = 257;

/// Any path: its readings are exactly those that the reference finds.
pub fn path(data: &[u8]) {
    let Ok(sent) = std::str::from_utf8(data) else { return };
    // What hyper hands over begins so and is never empty.
    if !sent.starts_with('/') || sent.len() > 512 {
        return;
    }
    let found = Readings::of(sent);
    let reference = reference(sent.as_bytes());
    let Some(found) = found else {
        assert!(!matches!(reference, Reference::Whole(_)), "refused without a NUL: {sent:?}");
        return;
    };
    let mut readings = Vec::new();
    found.all(&mut |reading| {
        readings.push(reading.to_vec());
        true
    });
    assert_eq!(readings.first().map(Vec::as_slice), Some(sent.as_bytes()), "the path as sent comes first");
    let mut distinct = readings.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), readings.len(), "a reading is there twice: {sent:?}");
    assert!(readings.iter().all(|reading| reading.starts_with(b"/")), "a reading is no path: {sent:?}");
    assert!(readings.iter().flatten().all(|byte| *byte != 0), "a NUL: {sent:?}");
    assert!(!sent.bytes().any(|byte| byte.is_ascii_control()), "a raw control character: {sent:?}");
    let canonical = found.canonical();
    assert!(
        readings.iter().any(|reading| String::from_utf8_lossy(reading) == canonical),
        "the canonical path is no reading: {sent:?}: {canonical:?}"
    );
    assert_eq!(found.is_plain(), readings.len() == 1 && found.complete(), "{sent:?}");
    match reference {
        Reference::Control => assert!(!found.complete(), "a NUL went unseen: {sent:?}"),
        Reference::TooMany => assert!(!found.complete(), "said to be complete: {sent:?}"),
        Reference::Whole(whole) => {
            for reading in &readings {
                assert!(whole.contains(reading), "{sent:?} can't be read as {:?}", String::from_utf8_lossy(reading));
            }
            if found.complete() {
                for reading in &whole {
                    let shown = String::from_utf8_lossy(reading);
                    assert!(readings.contains(reading), "{sent:?} can be read as {shown:?}, which was missed");
                }
            }
        }
    }
    // Whoever reads a reading once more, without decoding, finds nothing new.
    if found.complete() && readings.len() <= 32 {
        for reading in &readings {
            for again in steps(reading) {
                assert!(readings.contains(&again), "{sent:?}: {:?} is not closed", String::from_utf8_lossy(reading));
            }
        }
    }
}

/// What the reference makes of a path.
pub(super) enum Reference {
    /// Every reading.
    Whole(Vec<Vec<u8>>),
    /// A NUL comes to light in one of them, or a control character stood there from the beginning.
    Control,
    /// More than anybody wants to know.
    TooMany,
}

/// All readings by the rule of the specification: whatever a backend may do, in any order, with at most two decodings.
/// Keeps for each text the smallest number of decodings that leads to it, and goes on as long as anything gets smaller.
pub(super) fn reference(sent: &[u8]) -> Reference {
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut open = vec![(sent.to_vec(), 0)];
    let mut too_many = false;
    if sent.iter().any(|byte| *byte < 0x20 || *byte == 0x7f) {
        return Reference::Control;
    }
    while let Some((text, decodings)) = open.pop() {
        if text.contains(&0) {
            return Reference::Control;
        }
        match known.get(&text) {
            Some(before) if *before <= decodings => continue,
            _ => known.insert(text.clone(), decodings),
        };
        if known.len() > MOST {
            too_many = true;
            break;
        }
        open.extend(steps(&text).into_iter().map(|next| (next, decodings)));
        if decodings < 2 {
            open.extend(self::decodings(&text).into_iter().map(|next| (rooted(next), decodings + 1)));
        }
    }
    if too_many { Reference::TooMany } else { Reference::Whole(known.into_keys().collect()) }
}

fn rooted(text: Vec<u8>) -> Vec<u8> {
    if text.starts_with(b"/") { text } else { [b"/", text.as_slice()].concat() }
}

/// What may be done at any time.
fn steps(text: &[u8]) -> Vec<Vec<u8>> {
    let segments: Vec<&[u8]> = text.split(|byte| *byte == b'/').collect();
    let join = |segments: Vec<Vec<u8>>| segments.join(&b"/"[..]);
    let each = |change: &dyn Fn(&[u8]) -> Vec<u8>| join(segments.iter().map(|segment| change(segment)).collect());
    let before = |segment: &[u8], sign: u8| segment.split(|byte| *byte == sign).next().unwrap_or_default().to_vec();
    let without_end = |segment: &[u8], signs: &[u8]| {
        let mut kept = segment.to_vec();
        while kept.last().is_some_and(|last| signs.contains(last)) {
            kept.pop();
        }
        kept
    };
    let mut last_cut = segments.clone();
    let last = before(last_cut.pop().unwrap_or_default(), b';');
    let last_cut = join(last_cut.into_iter().map(<[u8]>::to_vec).chain([last]).collect());
    let mut merged = text.to_vec();
    while let Some(at) = merged.windows(2).position(|pair| pair == b"//") {
        merged.remove(at);
    }
    [
        text.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect(),
        each(&|segment| before(segment, b';')),
        last_cut,
        before(text, b'?'),
        before(text, b'#'),
        before(&before(text, b'\r'), b'\n'),
        text.iter().copied().filter(|byte| ![9, 10, 13].contains(byte)).collect(),
        text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect(),
        each(&|segment| before(segment, b':')),
        each(&|segment| without_end(segment, &(0..=32).collect::<Vec<_>>())),
        each(&|segment| {
            if segment == b"." || segment == b".." { segment.to_vec() } else { without_end(segment, b". ") }
        }),
        merged,
        without_dots(text),
        without_host(text),
        to_ascii(text),
    ]
    .into_iter()
    .map(rooted)
    .collect()
}

/// What a URL parser makes of a text that begins with two slashes: a host and a path (RFC 3986 section 4.2).
fn without_host(text: &[u8]) -> Vec<u8> {
    if !text.starts_with(b"//") {
        return text.to_vec();
    }
    let after_slashes: Vec<u8> = text.iter().copied().skip_while(|byte| *byte == b'/').collect();
    after_slashes.into_iter().skip_while(|byte| *byte != b'/').collect()
}

/// RFC 3986 section 5.2.4, letter by letter as it stands there.
fn without_dots(text: &[u8]) -> Vec<u8> {
    let mut input = text.to_vec();
    let mut output: Vec<u8> = Vec::new();
    let back = |output: &mut Vec<u8>| {
        let end = output.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        output.truncate(end);
    };
    while !input.is_empty() {
        if input.starts_with(b"/./") {
            input.drain(..2);
        } else if input == b"/." {
            input = b"/".to_vec();
        } else if input.starts_with(b"/../") {
            input.drain(..3);
            back(&mut output);
        } else if input == b"/.." {
            input = b"/".to_vec();
            back(&mut output);
        } else {
            let end = input.iter().skip(1).position(|byte| *byte == b'/').map_or(input.len(), |at| at + 1);
            output.extend(input.drain(..end));
        }
    }
    output
}

/// What counts as one decoding.
fn decodings(text: &[u8]) -> Vec<Vec<u8>> {
    let percent = |text: &[u8]| replaced(text, &|rest| Some((vec![two_digits(rest.strip_prefix(b"%")?)?], 3)));
    let wide = |text: &[u8]| {
        replaced(text, &|rest| {
            let digits = rest.strip_prefix(b"%u").or_else(|| rest.strip_prefix(b"%U"))?;
            let code = u32::from(two_digits(digits)?) << 8 | u32::from(two_digits(digits.get(2..)?)?);
            let character = char::from_u32(code).unwrap_or('\u{fffd}');
            Some((character.to_string().into_bytes(), 6))
        })
    };
    let has_wide = text.windows(2).any(|pair| pair == b"%u" || pair == b"%U");
    let mut all = vec![percent(text)];
    if has_wide {
        all.push(to_ascii(&percent(&wide(text))));
    }
    all
}

/// What is written as overlong UTF-8, of up to six bytes, or in full-width letters.
fn to_ascii(text: &[u8]) -> Vec<u8> {
    replaced(text, &|rest| {
        let bits = |bytes: &[u8]| -> Option<u32> {
            bytes.iter().try_fold(0, |sum, byte| (byte & 0xc0 == 0x80).then_some(sum << 6 | u32::from(byte & 0x3f)))
        };
        let (code, length) = match rest {
            [lead, tail, ..] if lead & 0xe0 == 0xc0 => (u32::from(lead & 0x1f) << 6 | bits(&[*tail])?, 2),
            [lead, one, two, ..] if lead & 0xf0 == 0xe0 => (u32::from(lead & 0x0f) << 12 | bits(&[*one, *two])?, 3),
            [lead, one, two, three, ..] if lead & 0xf8 == 0xf0 => {
                (u32::from(lead & 0x07) << 18 | bits(&[*one, *two, *three])?, 4)
            }
            [lead, tails @ ..] if lead & 0xfc == 0xf8 => (u32::from(lead & 0x03) << 24 | bits(tails.get(..4)?)?, 5),
            [lead, tails @ ..] if lead & 0xfe == 0xfc => (u32::from(lead & 0x01) << 30 | bits(tails.get(..5)?)?, 6),
            _ => return None,
        };
        // U+FF01 to U+FF5E are the full-width forms of `!` to `~`.
        let code = if (0xff01..=0xff5e).contains(&code) { code - 0xff01 + 0x21 } else { code };
        let proper = char::from_u32(code)?.to_string().into_bytes();
        (proper.len() < length).then_some((proper, length))
    })
}

/// What is put in, and for how many bytes.
type Replacement = (Vec<u8>, usize);

/// Goes through a text and replaces what `look` finds at each place.
fn replaced(text: &[u8], look: &dyn Fn(&[u8]) -> Option<Replacement>) -> Vec<u8> {
    let mut result = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if let Some((replacement, length)) = look(&text[at..]) {
            result.extend(replacement);
            at += length;
        } else {
            result.push(text[at]);
            at += 1;
        }
    }
    result
}

fn two_digits(text: &[u8]) -> Option<u8> {
    let digits = text.get(..2)?;
    let both_are_digits = digits.iter().all(u8::is_ascii_hexdigit);
    both_are_digits.then(|| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
}
