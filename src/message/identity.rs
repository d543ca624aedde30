//! Identity headers: removing the client's in every spelling, setting ours.
//!
//! Names are compared folded: CGI, WSGI and PHP read every sign in a header's name as the same one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::spelling::push_title_case;
use crate::config::{IdentityHeader, TemplatePart};
use crate::policy::Principal;
use crate::secret::Secret;

/// Families: whatever starts so. Ours, and those by which other gateways name a person or a client's certificate: a
/// backend that has stood behind one of them still believes them.
const FAMILIES: [&str; 38] = [
    "remote-",
    "x-remote-",
    "x-auth-",
    "x-doorward-",
    "x-webauth-",
    "x-authenticated-",
    // authentik, Pomerium, Cloudflare, AWS, Google, Azure, Tailscale, Vouch, Kong, Keycloak, caddy-security.
    "x-authentik-",
    "x-pomerium-",
    "cf-access-",
    "cf-client-cert",
    "x-amzn-oidc-",
    "x-amzn-mtls-",
    "x-goog-authenticated-",
    "x-goog-iap-",
    "x-appengine-user-",
    "x-apigateway-api-userinfo",
    "x-endpoint-api-userinfo",
    "x-ms-client-principal",
    "x-ms-token-",
    "x-arr-clientcert",
    "tailscale-",
    "x-tailscale-",
    "x-vouch-",
    "x-consumer-",
    "x-credential-",
    "x-userinfo",
    "x-keycloak-",
    "x-token-user-",
    "x-token-subject",
    "x-jwt-assertion",
    // mod_auth_openidc, Shibboleth, SiteMinder.
    "oidc-",
    "shib-",
    "sm-user",
    // A client's certificate, as Apache httpd, nginx, HAProxy and RFC 9440 pass it on.
    "ssl-client-",
    "x-ssl-",
    "x-client-cert",
    "client-cert",
    "x-client-verify",
];

/// Families that move the path behind the route; no setting lets them through.
const MOVERS: [&str; 2] = ["x-original-u", "x-rewrite-u"];

/// Other words for the client's address. `X-Forwarded-For` and `X-Real-IP` say it; these would say something else.
const ADDRESSES: [&str; 13] = [
    "client-ip",
    "x-client-ip",
    "true-client-ip",
    "x-cluster-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "fastly-client-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "x-proxyuser-ip",
];

/// Names of those families that name nobody: a secret which the backend itself checks. Under their proper spelling only.
const SECRETS: [&str; 2] = ["x-auth-token", "x-auth-key"];

/// Single names that no backend may see from a client. `Proxy` becomes `$HTTP_PROXY` in CGI programs. The others move
/// the path, so that a backend that believes them (gunicorn does believe `SCRIPT_NAME`, by default, when it comes from
/// its own machine) would serve another one than was decided on; Rack takes the last two for the word of its proxy.
const NAMES: [&str; 10] = [
    "proxy",
    "x-original-method",
    "x-original-host",
    "x-rewrite-path",
    "x-envoy-original-path",
    "script-name",
    "x-script-name",
    "path-info",
    "x-sendfile-type",
    "x-accel-mapping",
];

/// The `X-Forwarded-*` that describe the way and not the person; `forwarded` deals with them under their proper names.
const WAY: [&str; 12] =
    ["for", "proto", "host", "port", "prefix", "server", "uri", "method", "ssl", "scheme", "path", "by"];

/// Names whose proper spelling is dealt with elsewhere; another spelling that folds to one of them is a disguise.
const PROPER_ONLY: [&str; 14] = [
    "transfer-encoding",
    "content-length",
    "content-type",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "http2-settings",
    "x-real-ip",
    "x-request-id",
    "sec-fetch-site",
    "sec-fetch-mode",
    "x-scheme",
    "x-url-scheme",
    "front-end-https",
];

/// What changes the method behind our back.
const METHOD_OVERRIDES: [&str; 4] = ["x-http-method-override", "x-http-method", "x-method-override", "x-method"];

/// Knows every header name that a client must not send. Made once per configuration.
#[derive(Clone, Debug)]
pub struct Guarded {
    /// By first byte: for most headers that is all there is to look at.
    by_first: Vec<Alike>,
    /// What goes on all the same, although it belongs to a family.
    passing: Vec<HeaderName>,
}

/// Guarded names that begin with the same byte, folded.
#[derive(Clone, Debug, Default)]
struct Alike {
    families: Vec<&'static [u8]>,
    /// As families, but whole names.
    addresses: Vec<&'static [u8]>,
    movers: Vec<&'static [u8]>,
    /// In every spelling.
    names: Vec<Box<[u8]>>,
    proper_only: Vec<&'static [u8]>,
}

impl Guarded {
    /// `methods_matter`: routes differ by method, so that method-override headers go too.
    #[must_use]
    pub fn new(ours: &[IdentityHeader], methods_matter: bool) -> Self {
        let passing = SECRETS.map(HeaderName::from_static).to_vec();
        let mut guarded = Self { by_first: vec![Alike::default(); 256], passing };
        for family in FAMILIES.map(str::as_bytes) {
            guarded.add(family, |alike| alike.families.push(family));
        }
        for address in ADDRESSES.map(str::as_bytes) {
            guarded.add(address, |alike| alike.addresses.push(address));
        }
        for mover in MOVERS.map(str::as_bytes) {
            guarded.add(mover, |alike| alike.movers.push(mover));
        }
        for proper in PROPER_ONLY.map(str::as_bytes) {
            guarded.add(proper, |alike| alike.proper_only.push(proper));
        }
        let overrides = if methods_matter { &METHOD_OVERRIDES[..] } else { &[] };
        let ours = ours.iter().map(|header| header.name.as_str());
        for name in NAMES.iter().chain(overrides).copied().chain(ours) {
            let folded: Box<[u8]> = name.bytes().map(fold).collect();
            guarded.add(&folded, |alike| alike.names.push(folded.clone()));
        }
        guarded
    }

    /// Lets further names through, each under its proper spelling only. What we send ourselves, what moves the path and
    /// what frames a message is guarded all the same.
    #[must_use]
    pub fn passing(mut self, names: &[HeaderName]) -> Self {
        self.passing.extend_from_slice(names);
        self
    }

    /// A name of ours may begin with a sign: then whatever folds to the same begins so too.
    fn add(&mut self, folded: &[u8], push: impl Fn(&mut Alike)) {
        for (byte, alike) in (0..=u8::MAX).zip(&mut self.by_first) {
            if folded.first() == Some(&fold(byte)) {
                push(alike);
            }
        }
    }

    /// Whether a client's header of this name must not reach a backend.
    #[must_use]
    pub fn covers(&self, name: &HeaderName) -> bool {
        let whole = name;
        let name = name.as_str().as_bytes();
        let Some(alike) = name.first().and_then(|first| self.by_first.get(usize::from(*first))) else { return false };
        let names_somebody = || {
            alike.families.iter().any(|family| starts_folded(name, family))
                || alike.addresses.iter().any(|address| equals_folded(name, address))
                || covers_forwarded(name)
        };
        alike.names.iter().any(|guarded| equals_folded(name, guarded))
            || alike.movers.iter().any(|mover| starts_folded(name, mover))
            || (names_somebody() && !self.passing.contains(whole))
            || alike.proper_only.iter().any(|proper| has_sign(name) && equals_folded(name, proper))
    }

    /// Removes all of them, every copy.
    #[cfg(test)]
    pub fn strip(&self, headers: &mut HeaderMap) {
        let found: Vec<HeaderName> = headers.keys().filter(|name| self.covers(name)).cloned().collect();
        for name in found {
            headers.remove(name);
        }
    }
}

/// `X-Forwarded-User` and everything else there that is not about the way; also the way in a disguise.
fn covers_forwarded(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"x-forwarded-";
    if !starts_folded(name, PREFIX) {
        return false;
    }
    has_sign(name) || !WAY.iter().any(|way| name.get(PREFIX.len()..) == Some(way.as_bytes()))
}

/// A sign other than the hyphen.
fn has_sign(name: &[u8]) -> bool {
    name.iter().any(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-')
}

const fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

fn equals_folded(name: &[u8], folded: &[u8]) -> bool {
    name.len() == folded.len() && starts_folded(name, folded)
}

fn starts_folded(name: &[u8], folded: &[u8]) -> bool {
    name.len() >= folded.len() && name.iter().zip(folded).all(|(byte, wanted)| fold(*byte) == *wanted)
}

/// Hands over each of our headers that has a value; one that would hold a control character has none.
fn each(ours: &[IdentityHeader], person: &Principal, mut hand_over: impl FnMut(&HeaderName, &[u8])) {
    let mut value = String::new();
    for header in ours {
        value.clear();
        if fill(&mut value, &header.template, person) {
            let value = value.trim();
            if !value.is_empty() {
                hand_over(&header.name, value.as_bytes());
            }
        }
    }
}

/// A person's name and the password that all share, as `Authorization: Basic` has them (RFC 7617): for a backend that
/// wants to be logged in to. `None` where the name can't stand there: it holds a colon.
#[must_use]
pub fn basic(person: &Principal, password: &Secret<String>) -> Option<Secret<String>> {
    let name = &person.username;
    if name.contains(':') || name.chars().any(char::is_control) {
        return None;
    }
    let pair = Secret::new([name.as_str(), ":", password.expose()].concat());
    let mut value = String::from("Basic ");
    STANDARD.encode_string(pair.expose(), &mut value);
    Some(Secret::new(value))
}

/// Our headers for a person as the lines of a head, each with its line end.
#[must_use]
pub fn lines(ours: &[IdentityHeader], person: &Principal) -> Vec<u8> {
    let mut lines = Vec::new();
    each(ours, person, |name, value| {
        push_title_case(&mut lines, name.as_str());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value);
        lines.extend_from_slice(b"\r\n");
    });
    lines
}

/// Sets `headers` from the person; a header without a value is not sent, nor is one that would hold a control character.
pub fn set(headers: &mut HeaderMap, ours: &[IdentityHeader], person: &Principal) {
    for header in ours {
        headers.remove(&header.name);
    }
    each(ours, person, |name, value| {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(name, value);
        }
    });
}

/// Sets every one of `headers`, empty where there is no value: for `/check`, where the proxy in front copies what it
/// finds and leaves the client's own where it finds nothing.
pub fn set_all(headers: &mut HeaderMap, ours: &[IdentityHeader], person: Option<&Principal>) {
    for header in ours {
        let value = person.and_then(|person| value_of(&header.template, person));
        let value = value.unwrap_or(HeaderValue::from_static(""));
        headers.insert(&header.name, value);
    }
}

/// `None`: it can't be sent. Empty where every placeholder is.
fn value_of(template: &[TemplatePart], person: &Principal) -> Option<HeaderValue> {
    let mut value = String::new();
    if fill(&mut value, template, person) { HeaderValue::from_bytes(value.trim().as_bytes()).ok() } else { None }
}

/// `false`: it can't be sent. Empty where every placeholder is.
fn fill(value: &mut String, template: &[TemplatePart], person: &Principal) -> bool {
    let (mut placeholders, mut filled) = (false, false);
    for part in template {
        let before = value.len();
        match part {
            TemplatePart::Text(text) => {
                value.push_str(text);
                continue;
            }
            TemplatePart::Id => value.push_str(&person.id),
            TemplatePart::Username => value.push_str(&person.username),
            TemplatePart::Email => value.push_str(&person.email),
            TemplatePart::DisplayName => value.push_str(&person.display_name),
            TemplatePart::Groups => push_groups(value, &person.groups),
        }
        placeholders = true;
        filled |= value.len() > before;
    }
    if placeholders && !filled {
        value.clear();
    }
    !value.chars().any(char::is_control)
}

/// A group whose name holds a comma would be read as two, so it is left out; one that can't be sent too.
fn push_groups(value: &mut String, groups: &[String]) {
    let start = value.len();
    let sendable =
        |group: &&String| !group.trim().is_empty() && !group.contains(|sign: char| sign == ',' || sign.is_control());
    for group in groups.iter().filter(sendable) {
        if value.len() > start {
            value.push(',');
        }
        value.push_str(group);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(name: &'static str, template: Vec<TemplatePart>) -> IdentityHeader {
        IdentityHeader { name: HeaderName::from_static(name), template }
    }

    fn person() -> Principal {
        Principal {
            id: "1".into(),
            username: "김".into(),
            groups: vec!["a".into(), "b,admin".into(), "c\r\nd".into(), "e f".into()],
            email: String::new(),
            display_name: "x\ny".into(),
        }
    }

    fn covered(guarded: &Guarded, name: &str) -> bool {
        guarded.covers(&HeaderName::from_bytes(name.as_bytes()).unwrap())
    }

    #[test]
    fn every_spelling_of_every_family_is_covered() {
        let guarded = Guarded::new(&[header("my-user", vec![TemplatePart::Username])], false);
        for name in [
            "X-Forwarded-User",
            "X-Forwarded-Email",
            "X-Forwarded-Groups",
            "X-Forwarded-Preferred-Username",
            "Remote-User",
            "Remote-Anything",
            "X-Remote-User",
            "X-Auth-Request-User",
            "X-Auth-User",
            "X-Doorward-Assertion",
            "X-WebAuth-User",
            "X-Authenticated-User",
            "X-Original-URL",
            "X-Original-URI",
            "X-Rewrite-URL",
            "My-User",
            "X-Forwarded-Access-Token",
            "X-Envoy-Original-Path",
            "Script-Name",
            "X-Script-Name",
            "Path-Info",
            "X-Sendfile-Type",
            "X-Accel-Mapping",
        ] {
            for sign in ["-", "_", ".", "~", "!", "'", "|"] {
                assert!(covered(&guarded, &name.replace('-', sign)), "{name} {sign}");
            }
            assert!(covered(&guarded, &name.replacen('-', "_", 1)), "{name}");
        }
        assert!(covered(&guarded, "Proxy"));
    }

    #[test]
    fn the_families_of_other_gateways_are_covered_in_every_spelling() {
        let guarded = Guarded::new(&[], false);
        for name in [
            "X-authentik-username",
            "X-authentik-meta-anything",
            "X-Pomerium-Claim-Email",
            "X-Pomerium-Jwt-Assertion",
            "Cf-Access-Authenticated-User-Email",
            "Cf-Access-Jwt-Assertion",
            "X-Amzn-Oidc-Identity",
            "X-Amzn-Oidc-Data",
            "X-Amzn-Mtls-Clientcert-Subject",
            "X-Goog-Authenticated-User-Email",
            "X-Goog-IAP-JWT-Assertion",
            "X-Ms-Client-Principal",
            "X-Ms-Client-Principal-Name",
            "X-Ms-Token-Aad-Id-Token",
            "X-SSL-Client-S-Dn",
            "SSL-Client-Verify",
            "Ssl-Client-Cert",
            "X-Client-Cert",
            "Client-Cert",
            "Client-Cert-Chain",
            "X-Forwarded-Client-Cert",
            "X-JWT-Assertion",
            "Tailscale-User-Login",
            "X-Tailscale-User",
            "X-Vouch-User",
            "X-Consumer-Username",
            "X-Token-User-Name",
            "OIDC-Claim-Email",
            "Shib-Identity-Provider",
            "Client-IP",
            "X-Client-IP",
            "True-Client-IP",
            "CF-Connecting-IP",
            "X-Cluster-Client-IP",
            "X-Original-Forwarded-For",
            "Fastly-Client-IP",
            "X-Azure-ClientIP",
        ] {
            for sign in ["-", "_", ".", "~"] {
                assert!(covered(&guarded, &name.replace('-', sign)), "{name} {sign}");
            }
            assert!(covered(&guarded, &name.to_ascii_uppercase()), "{name}");
        }
    }

    #[test]
    fn a_secret_that_names_nobody_passes_under_its_proper_name_and_what_the_file_lists() {
        let plain = Guarded::new(&[], false);
        for name in ["X-Auth-Token", "x-auth-key", "X-AUTH-TOKEN"] {
            assert!(!covered(&plain, name), "{name}");
            assert!(covered(&plain, &name.replace('-', "_")), "{name}");
        }
        for name in ["X-Auth-Token-User", "X-Auth-Email", "X-Auth-Signature", "CF-Connecting-IP"] {
            assert!(covered(&plain, name), "{name}");
        }
        // Ours is ours.
        let ours = Guarded::new(&[header("x-auth-token", vec![TemplatePart::Username])], false);
        assert!(covered(&ours, "X-Auth-Token"));
        let listed = ["x-auth-signature", "cf-connecting-ip", "x-original-url", "proxy", "x_auth_other"];
        let listed = Guarded::new(&[], false).passing(&listed.map(HeaderName::from_static));
        for (name, goes_on) in [
            ("X-Auth-Signature", true),
            ("X_Auth_Signature", false),
            ("CF-Connecting-IP", true),
            ("X-Auth-User", false),
            // No setting lets these through.
            ("X-Original-URL", false),
            ("Proxy", false),
        ] {
            assert_eq!(!covered(&listed, name), goes_on, "{name}");
        }
    }

    #[test]
    fn a_name_and_the_shared_password_are_handed_over_as_basic() {
        let password = Secret::new(String::from("p:w"));
        let with_name = |name: &str| basic(&Principal { username: name.into(), ..person() }, &password);
        assert_eq!(with_name("kim").unwrap().expose(), "Basic a2ltOnA6dw==");
        assert_eq!(with_name("\u{ae40}").unwrap().expose(), "Basic 6rmAOnA6dw==");
        assert!(with_name("kim:x").is_none());
    }

    #[test]
    fn a_name_of_ours_that_begins_with_a_sign_is_covered_in_every_spelling() {
        let guarded = Guarded::new(&[header("_user", vec![TemplatePart::Username])], false);
        for name in ["_user", "-user", ".user", "!USER"] {
            assert!(covered(&guarded, name), "{name}");
        }
        assert!(!covered(&guarded, "user"));
    }

    #[test]
    fn disguises_of_framing_and_forwarding_are_covered_and_the_proper_names_are_not() {
        let guarded = Guarded::new(&[], false);
        for name in
            ["Transfer-Encoding", "Content-Length", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "X-Request-Id"]
        {
            assert!(!covered(&guarded, name), "{name}");
            assert!(covered(&guarded, &name.replace('-', "_")), "{name}");
            assert!(covered(&guarded, &name.replacen('-', ".", 1)), "{name}");
        }
    }

    #[test]
    fn ordinary_headers_pass() {
        let guarded = Guarded::new(&[], false);
        for name in [
            "accept",
            "user-agent",
            "cookie",
            "content-type",
            "x-requested-with",
            "x_custom",
            "my.header",
            "referer",
            "range",
            "x-http-method-override",
            "forwarded",
            "x-csrf-token",
            "proxy-status",
            "remote",
            "x-api-key",
            "trace_id",
        ] {
            assert!(!covered(&guarded, name), "{name}");
        }
        for name in ["x-http-method-override", "X_HTTP_Method_Override", "x-http-method", "x-method-override"] {
            assert!(covered(&Guarded::new(&[], true), name), "{name}");
        }
    }

    #[test]
    fn every_copy_goes() {
        let mut headers = HeaderMap::new();
        for name in ["x-forwarded-user", "x-forwarded-user", "x_forwarded_user", "accept"] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("admin"));
        }
        Guarded::new(&[], false).strip(&mut headers);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn values_are_sent_where_there_are_any() {
        let ours = [
            header("x-user", vec![TemplatePart::Username]),
            header("x-groups", vec![TemplatePart::Groups]),
            header("x-email", vec![TemplatePart::Text("mailto:".into()), TemplatePart::Email]),
            header("x-name", vec![TemplatePart::DisplayName]),
        ];
        let mut headers = HeaderMap::new();
        headers.insert("x-email", HeaderValue::from_static("stale"));
        set(&mut headers, &ours, &person());
        assert_eq!(headers["x-user"].as_bytes(), "김".as_bytes());
        assert_eq!(headers["x-groups"], "a,e f");
        assert_eq!(headers.len(), 2);
        set_all(&mut headers, &ours, Some(&person()));
        assert_eq!(
            (headers.len(), headers["x-email"].as_bytes(), headers["x-name"].as_bytes()),
            (4, &b""[..], &b""[..])
        );
    }

    #[test]
    fn no_control_character_is_sent_not_even_one_that_a_header_may_hold() {
        let ours = [header("x-name", vec![TemplatePart::DisplayName]), header("x-groups", vec![TemplatePart::Groups])];
        for sign in ['\t', '\n', '\r', '\0', '\u{7f}', '\u{85}'] {
            let mut person = person();
            person.display_name = format!("x{sign}y");
            person.groups = vec![format!("a{sign}b"), String::from("c")];
            let mut headers = HeaderMap::new();
            set(&mut headers, &ours, &person);
            assert_eq!(headers.get("x-name"), None, "{sign:?}");
            assert_eq!(headers["x-groups"], "c", "{sign:?}");
        }
    }

    proptest! {
        #[test]
        fn folding_decides(signs in prop::collection::vec("[-_.~!#$&'*+^|]", 2), upper in any::<bool>()) {
            let name = format!("x{}forwarded{}user", signs[0], signs[1]);
            let name = if upper { name.to_uppercase() } else { name };
            prop_assert!(covered(&Guarded::new(&[], false), &name));
        }
    }
}
