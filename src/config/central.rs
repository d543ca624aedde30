//! What a verify-only gateway (`store.kind = "none"`) has to know of its centre.
//!
//! It holds no key and no secret but the one that it shows to the centre, so keys of the one kind of gateway are
//! mistakes in the other.

use super::check::Reading;
use super::reader::{Section, Text};
use super::routes::ca_file;
use super::urls::HttpUrl;
use super::{Algorithm, Central, CentralUrl, Cookie, StoreKind, UpstreamUrl};

/// The last segments of the feed's URL.
const FEED: &str = "/gateways/revocations";

/// `[token]` of a verify-only gateway; `login_url` is filled in by the caller. `None`: something is missing or wrong,
/// and reported.
pub(super) fn read(reading: &Reading<'_>, section: &Section<'_>) -> Option<Central> {
    let url = |key, example: &str| {
        let Some(text) = section.text(key).filter(|text| !text.text.is_empty()) else {
            let message = format!("is missing; a verify-only gateway needs it, for example {example:?}");
            section.problem(&section.place_of(key), key, message);
            return None;
        };
        match parse(&text.text) {
            Ok(url) => Some((url, text)),
            Err(why) => {
                section.problem(&text.place, key, format!("{why}; write for example {example:?}"));
                None
            }
        }
    };
    let jwks = url("jwks_url", "https://login.example.com/.well-known/jwks.json");
    let revocations = url("revocation_url", "https://login.example.com/gateways/revocations").filter(|(url, text)| {
        let right = url.path.ends_with(FEED);
        if !right {
            section.problem(&text.place, "revocation_url", format!("must end with {FEED:?}"));
        }
        right
    });
    if reading.file(section, "revocation_token_file").is_none() {
        section.problem(
            &section.place,
            "revocation_token_file",
            "is missing; it names a file with the token that the centre's revocation_token_file holds",
        );
    }
    let algorithm = match section.text("algorithm").as_ref().map(|text| text.text.as_str()) {
        Some("EdDSA") => Some(Algorithm::EdDsa),
        Some("ES256") => Some(Algorithm::Es256),
        Some("HS256") => {
            section.problem(
                &section.place_of("algorithm"),
                "algorithm",
                "HS256 has no public key, so a verify-only gateway can't check it; use \"EdDSA\" or \"ES256\" at the centre",
            );
            None
        }
        // Anything else is reported where the key is read.
        _ => None,
    };
    let ca_file = ca_file(reading, section);
    Some(Central { jwks: jwks?.0, revocations: revocations?.0, algorithm, login_url: String::new(), ca_file })
}

/// `login.url`: where a verify-only gateway sends people.
pub(super) fn login_url(section: &Section<'_>, kind: &StoreKind, cookie: &Cookie) -> Option<String> {
    let text = section.text("url").filter(|text| !text.text.is_empty());
    match (kind, text) {
        (StoreKind::None, None) => {
            section.problem(
                &section.place_of("url"),
                "url",
                "is missing; a verify-only gateway sends people there, for example \"https://login.example.com/login\"",
            );
            None
        }
        (StoreKind::None, Some(text)) => checked_login_url(section, &text, cookie),
        (_, None) => None,
        (_, Some(text)) => {
            section.problem(&text.place, "url", "is for store.kind = \"none\"; this gateway has a login of its own");
            None
        }
    }
}

fn checked_login_url(section: &Section<'_>, text: &Text, cookie: &Cookie) -> Option<String> {
    match parse(&text.text) {
        Ok(url) if url.path.ends_with("/login") => {
            let (UpstreamUrl::Http { host, .. } | UpstreamUrl::Https { host, .. }) = &url.server else { return None };
            let is_name = host != "localhost" && host.parse::<std::net::IpAddr>().is_err();
            if cookie.domain.is_empty() && is_name {
                section.report().warning(
                    &section.place_of("url"),
                    "cookie.domain",
                    "is empty: the cookie of a login at the centre reaches this gateway only with the same domain in both",
                );
            }
            Some(text.text.clone())
        }
        Ok(_) => {
            section.problem(&text.place, "url", "must end with \"/login\"");
            None
        }
        Err(why) => {
            section.problem(
                &text.place,
                "url",
                format!("{why}; write for example \"https://login.example.com/login\""),
            );
            None
        }
    }
}

/// A verify-only gateway has no key of its own.
pub(super) fn refuse_keys(section: &Section<'_>) {
    for key in ["secret_file", "private_key_file", "previous_files"] {
        let is_set = section.has(key)
            && (!section.is_text(key) || section.text(key).is_some_and(|text| !text.text.is_empty()))
            && (key != "previous_files" || !section.texts(key).is_empty());
        if is_set {
            let message = "is not for store.kind = \"none\": a verify-only gateway holds no key; remove this key";
            section.problem(&section.place_of(key), key, message);
        }
    }
}

/// Any other gateway has no centre.
pub(super) fn refuse_urls(section: &Section<'_>) {
    for key in ["jwks_url", "revocation_url", "ca_file"] {
        if let Some(text) = section.text(key).filter(|text| !text.text.is_empty()) {
            section.problem(&text.place, key, "is for store.kind = \"none\", a verify-only gateway; remove this key");
        }
    }
}

/// A plain `http` or `https` URL with a path and nothing after it.
fn parse(text: &str) -> Result<CentralUrl, &'static str> {
    let HttpUrl { is_https, host, port, authority, rest } = HttpUrl::parse(text)?;
    if rest.contains(['?', '#']) {
        return Err("must end with its path");
    }
    if !rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return Err("holds a sign in its path that no URL may hold");
    }
    let bare = host.to_ascii_lowercase();
    let server = if is_https {
        UpstreamUrl::Https { host: bare, port: port.unwrap_or(443) }
    } else {
        UpstreamUrl::Http { host: bare, port: port.unwrap_or(80) }
    };
    let path = if rest.is_empty() { "/" } else { rest };
    Ok(CentralUrl { server, authority: authority.to_ascii_lowercase(), path: path.to_owned() })
}
