//! `[identity]`: which headers name the person, and which names may never do so.

use http::HeaderName;

use super::check::Reading;
use super::reader::{Section, Text};
use super::secrets;
use super::units::Template;
use super::{Identity, IdentityHeader, TemplatePart};

/// Names that mean something else to a backend or to HTTP itself.
const RESERVED: [&str; 27] = [
    "host",
    "cookie",
    "set-cookie",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "authorization",
    "proxy-authorization",
    "proxy-connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "range",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-request-id",
    "forwarded",
    "date",
    "via",
    "origin",
];

/// The `X-Forwarded-*` that describe the way and not the person.
const WAY: [&str; 12] =
    ["for", "proto", "host", "port", "prefix", "server", "uri", "method", "ssl", "scheme", "path", "by"];

pub(super) fn read(reading: &Reading<'_>, section: Section<'_>) -> Identity {
    let preset = section.choice("preset", &[("forwarded", 0), ("remote", 1), ("none", 2)], 0);
    if section.boolean("assertion", false) {
        let place = section.place_of("assertion");
        section.problem(&place, "assertion", "the signed assertion is not built yet; remove this key");
    }
    let mut headers = preset_headers(preset);
    let table = section.section("headers");
    let mut configured: Vec<IdentityHeader> = Vec::new();
    for (name, template) in table.pairs() {
        let Some(header) = header(&table, &name, &template) else { continue };
        if configured.iter().any(|other| fold(other.name.as_str()) == fold(header.name.as_str())) {
            table.problem(
                &name.place,
                &name.text,
                "is the same header as another one: \"-\", \"_\" and letter case don't count",
            );
            continue;
        }
        // What the file says takes the place of the preset's.
        headers.retain(|other| fold(other.name.as_str()) != fold(header.name.as_str()));
        configured.push(header);
    }
    headers.extend(configured.iter().cloned());
    let pass = passing(&section, &headers);
    let basic_password = secrets::basic_password(reading, &section);
    section.close();
    Identity { headers, configured, pass, basic_password }
}

/// `pass`: names of guarded families that a client may send all the same.
fn passing(section: &Section<'_>, headers: &[IdentityHeader]) -> Vec<HeaderName> {
    let mut pass = Vec::new();
    for text in section.texts("pass") {
        let folded = fold(&text.text);
        let problem = if headers.iter().any(|header| fold(header.name.as_str()) == folded) {
            "is sent by this file: whoever sent it too would be believed; give one of the two another name"
        } else if is_no_name_of_a_person(&folded) || folded.starts_with("x-doorward-") {
            "must not be passed: it means something else"
        } else if let Ok(name) = text.text.parse::<HeaderName>() {
            pass.push(name);
            continue;
        } else {
            "is not a header name"
        };
        section.problem(&text.place, "pass", format!("{:?} {problem}", text.text));
    }
    pass
}

/// What means something else to a backend or to HTTP itself.
fn is_no_name_of_a_person(folded: &str) -> bool {
    folded.strip_prefix("x-forwarded-").is_some_and(|rest| WAY.contains(&rest))
        || folded.starts_with("x-original-")
        || folded.starts_with("x-rewrite-")
        || RESERVED.contains(&folded)
}

fn header(table: &Section<'_>, name: &Text, template: &Text) -> Option<IdentityHeader> {
    let folded = fold(&name.text);
    if is_no_name_of_a_person(&folded) {
        table.problem(
            &name.place,
            &name.text,
            "must not be set: it means something else; choose a name of your own such as \"X-Auth-User\"",
        );
        return None;
    }
    let Ok(header_name) = name.text.parse::<HeaderName>() else {
        table.problem(&name.place, &name.text, "is no header name");
        return None;
    };
    match template.text.parse::<Template>() {
        Ok(template) => Some(IdentityHeader { name: header_name, template: template.0 }),
        Err(error) => {
            table.problem(&template.place, &name.text, error.to_string());
            None
        }
    }
}

/// One spelling for all that CGI, WSGI and PHP take for the same header.
fn fold(name: &str) -> String {
    name.chars().map(|sign| if sign.is_ascii_alphanumeric() { sign.to_ascii_lowercase() } else { '-' }).collect()
}

fn preset_headers(preset: u8) -> Vec<IdentityHeader> {
    let make = |name: &'static str, part| IdentityHeader { name: HeaderName::from_static(name), template: vec![part] };
    match preset {
        0 => vec![
            make("x-forwarded-user", TemplatePart::Username),
            make("x-forwarded-groups", TemplatePart::Groups),
            make("x-forwarded-email", TemplatePart::Email),
            make("x-forwarded-preferred-username", TemplatePart::Username),
        ],
        1 => vec![
            make("remote-user", TemplatePart::Username),
            make("remote-groups", TemplatePart::Groups),
            make("remote-email", TemplatePart::Email),
            make("remote-name", TemplatePart::DisplayName),
        ],
        _ => Vec::new(),
    }
}
