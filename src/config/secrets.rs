//! Reading keys: from files that nobody else can read, or the environment.

use std::fs;
use std::path::{Path, PathBuf};

use super::check::Reading;
use super::reader::Section;
use super::{Algorithm, KeyMaterial, sense};
use crate::files;
use crate::secret::Secret;

/// Looks an environment variable up.
pub type Environment<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// The environment of this process. What is not UTF-8 comes back with U+FFFD in it, which no secret may hold.
#[must_use]
pub fn from_process(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// The shortest HS256 secret (RFC 7518 section 3.2).
const MIN_SECRET_BYTES: usize = 32;
/// No key file is longer.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// What signs: `secret_file` or `$JWT_SECRET` for HS256, `private_key_file` for the others. `None`: nothing is named.
pub(super) fn signing_key(
    reading: &Reading<'_>,
    section: &Section<'_>,
    algorithm: Algorithm,
    environment: &Environment<'_>,
) -> Option<KeyMaterial> {
    let secret_file = reading.file(section, "secret_file");
    let private_key_file = reading.file(section, "private_key_file");
    let (key, file, other) = match algorithm {
        Algorithm::Hs256 => {
            ("secret_file", secret_file, private_key_file.map(|(_, place)| ("private_key_file", place)))
        }
        Algorithm::EdDsa | Algorithm::Es256 => {
            ("private_key_file", private_key_file, secret_file.map(|(_, place)| ("secret_file", place)))
        }
    };
    if let Some((other, place)) = other {
        section.problem(&place, other, format!("is not for token.algorithm {:?}; use {key}", name(algorithm)));
    }
    if let Some((path, place)) = file {
        warn_of_variable(reading, section, key, "JWT_SECRET");
        let read = read(&path, environment).and_then(|bytes| material(path.display().to_string(), algorithm, bytes));
        return match read {
            Ok(material) => Some(material),
            Err(message) => {
                section.problem(&place, key, message);
                None
            }
        };
    }
    let secret =
        (algorithm == Algorithm::Hs256).then(|| environment("JWT_SECRET")).flatten().filter(|text| !text.is_empty())?;
    match material(String::from("$JWT_SECRET"), algorithm, Secret::new(secret.into_bytes())) {
        Ok(material) => Some(material),
        Err(message) => {
            section.problem(&section.place, "secret_file", message);
            None
        }
    }
}

/// A file wins over the variable, which is told where both are there: one of them is a left-over, and which one decides
/// whether anybody stays logged in.
pub(super) fn warn_of_variable(reading: &Reading<'_>, section: &Section<'_>, key: &'static str, variable: &str) {
    if (reading.environment)(variable).is_some_and(|text| !text.is_empty()) {
        let message = format!("is what counts; ${variable} is set as well and is not used: take one of them away");
        section.report().warning(&section.place_of(key), &section.full(key), message);
    }
}

/// `previous_files`: the algorithm goes by the content.
pub(super) fn previous_keys(reading: &Reading<'_>, section: &Section<'_>) -> Vec<KeyMaterial> {
    let mut keys = Vec::new();
    for text in section.texts("previous_files") {
        let path = reading.path(section, "previous_files", &text);
        reading.watched(&path);
        let origin = path.display().to_string();
        let read = read(&path, reading.environment).and_then(|bytes| {
            let algorithm = if is_pem(bytes.expose()) { pem_algorithm(bytes.expose())? } else { Algorithm::Hs256 };
            material(origin, algorithm, bytes)
        });
        match read {
            Ok(key) => keys.push(key),
            Err(message) => section.problem(&text.place, "previous_files", message),
        }
    }
    keys
}

/// The text of `store.url_file`, with the file's name for messages.
pub(super) fn database_url(path: &Path, environment: &Environment<'_>) -> Result<(String, Secret<String>), String> {
    let bytes = read(path, environment)?;
    let shown = path.display().to_string();
    match String::from_utf8(bytes.expose().clone()) {
        Ok(text) => Ok((shown, Secret::new(text))),
        Err(_) => Err(format!("{shown} is not UTF-8")),
    }
}

/// `revocation_token_file`: what goes between a centre and its verify-only gateways in `Authorization: Bearer`.
pub(super) fn revocation_token(reading: &Reading<'_>, section: &Section<'_>) -> Option<Secret<String>> {
    let (path, place) = reading.file(section, "revocation_token_file")?;
    let origin = path.display().to_string();
    let token = read(&path, reading.environment).and_then(|bytes| {
        let text = without_final_newline(bytes.expose());
        check_secret(&origin, text)?;
        match std::str::from_utf8(text) {
            Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Secret::new(text.to_owned())),
            _ => Err(format!("{origin} must hold visible ASCII characters only, for it is sent in a header")),
        }
    });
    match token {
        Ok(token) => Some(token),
        Err(message) => {
            section.problem(&place, "revocation_token_file", message);
            None
        }
    }
}

/// `identity.basic_password` or `identity.basic_password_file`: what every person's name is handed over with.
pub(super) fn basic_password(reading: &Reading<'_>, section: &Section<'_>) -> Option<Secret<String>> {
    let written = section.text("basic_password").filter(|text| !text.text.is_empty());
    let file = reading.file(section, "basic_password_file");
    let (key, place, password) = match (written, file) {
        (Some(_), Some((_, place))) => {
            let problem = "there is a basic_password as well; leave one of the two out";
            section.problem(&place, "basic_password_file", problem);
            return None;
        }
        (Some(text), None) => ("basic_password", text.place, Ok(Secret::new(text.text))),
        (None, Some((path, place))) => {
            let password = read(&path, reading.environment).and_then(|bytes| {
                let text = std::str::from_utf8(without_final_newline(bytes.expose()));
                text.map(|text| Secret::new(text.to_owned())).map_err(|_| format!("{} is not UTF-8", path.display()))
            });
            ("basic_password_file", place, password)
        }
        (None, None) => return None,
    };
    let is_unfit =
        |password: &Secret<String>| password.expose().is_empty() || password.expose().chars().any(char::is_control);
    match password {
        Ok(password) if is_unfit(&password) => {
            section.problem(&place, key, "must not be empty or hold a control character");
            None
        }
        Ok(password) => Some(password),
        Err(message) => {
            section.problem(&place, key, message);
            None
        }
    }
}

/// Reads a file that nobody reads but its owner, or the group through which this process was given it.
fn read(path: &Path, environment: &Environment<'_>) -> Result<Secret<Vec<u8>>, String> {
    let shown = path.display();
    // Not shown where there is no such file: a secret may have been pasted in place of its file's name.
    let metadata = fs::metadata(path).map_err(|error| {
        let error = files::told_of_secret(path)(error);
        format!("the file that is named here can't be read: {error}; write the path of a file")
    })?;
    if !metadata.is_file() {
        return Err(format!("{shown} is no file"));
    }
    let credentials = environment("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    if !files::is_private(path, &metadata, credentials.as_deref()) {
        return Err(format!(
            "{shown} can be read by others (mode {:04o}); run: chmod 600 {shown} ({}). Or: {}",
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777,
            files::whose(path, &metadata),
            files::secret_advice()
        ));
    }
    if metadata.len() > MAX_KEY_BYTES {
        return Err(format!("{shown} is too long to be a key"));
    }
    fs::read(path)
        .map(Secret::new)
        .map_err(|error| format!("{shown} can't be read: {}", files::told_of_secret(path)(error)))
}

fn material(origin: String, algorithm: Algorithm, bytes: Secret<Vec<u8>>) -> Result<KeyMaterial, String> {
    let bytes = match algorithm {
        Algorithm::Hs256 => {
            let secret = without_final_newline(bytes.expose());
            check_secret(&origin, secret)?;
            Secret::new(secret.to_vec())
        }
        Algorithm::EdDsa | Algorithm::Es256 => {
            if !is_pem(bytes.expose()) || pem_algorithm(bytes.expose()) != Ok(algorithm) {
                return Err(format!(
                    "{origin} is no {} key in PEM (PKCS #8); `doorward key generate --algorithm {}` makes one",
                    name(algorithm),
                    name(algorithm)
                ));
            }
            bytes
        }
    };
    Ok(KeyMaterial { origin, algorithm, bytes })
}

fn without_final_newline(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).unwrap_or(bytes)
}

fn check_secret(origin: &str, secret: &[u8]) -> Result<(), String> {
    const MAKE: &str = "make one with: head -c 48 /dev/urandom | base64 -w0";
    if secret.is_empty() {
        return Err(format!("{origin} is empty; {MAKE}"));
    }
    if let Some(what) = sense::wrapped(secret) {
        return Err(format!("{origin} {what}"));
    }
    if secret.len() < MIN_SECRET_BYTES {
        return Err(format!("{origin} holds {} bytes, at least {MIN_SECRET_BYTES} are needed; {MAKE}", secret.len()));
    }
    if memchr::memmem::find(secret, "\u{fffd}".as_bytes()).is_some() {
        return Err(format!("{origin} is not UTF-8; put it into a file and name that as token.secret_file"));
    }
    if is_pem(secret) {
        return Err(format!("{origin} holds a PEM key, which is no HS256 secret; set token.algorithm, or {MAKE}"));
    }
    let mut seen = [false; 256];
    for byte in secret {
        if let Some(seen) = seen.get_mut(usize::from(*byte)) {
            *seen = true;
        }
    }
    let distinct = seen.iter().filter(|seen| **seen).count();
    let lower = secret.to_ascii_lowercase();
    let is_placeholder =
        ["changeme", "change-me", "change_me", "replace-me", "replaceme", "your-secret", "your_secret"]
            .iter()
            .any(|word| memchr::memmem::find(&lower, word.as_bytes()).is_some());
    if distinct < 8 || is_placeholder {
        return Err(format!("{origin} is a placeholder or repeats itself; {MAKE}"));
    }
    Ok(())
}

fn is_pem(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, b"-----BEGIN ").is_some()
}

/// The algorithm of a PEM key, private or public.
fn pem_algorithm(bytes: &[u8]) -> Result<Algorithm, String> {
    use jsonwebtoken::{DecodingKey, EncodingKey};
    let is_private = memchr::memmem::find(bytes, b"PRIVATE KEY-----").is_some();
    let ed = if is_private { EncodingKey::from_ed_pem(bytes).is_ok() } else { DecodingKey::from_ed_pem(bytes).is_ok() };
    let ec = if is_private { EncodingKey::from_ec_pem(bytes).is_ok() } else { DecodingKey::from_ec_pem(bytes).is_ok() };
    match (ed, ec && is_p256(bytes, is_private)) {
        (true, false) => Ok(Algorithm::EdDsa),
        (false, true) => Ok(Algorithm::Es256),
        _ => Err(String::from("is neither an Ed25519 nor a P-256 key in PEM")),
    }
}

/// Whether an elliptic key is on the curve of ES256: the parser of `jsonwebtoken` takes every curve.
fn is_p256(bytes: &[u8], is_private: bool) -> bool {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, ParsedPublicKey,
    };
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
    if is_private {
        PrivatePkcs8KeyDer::from_pem_slice(bytes)
            .is_ok_and(|der| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der()).is_ok())
    } else {
        SubjectPublicKeyInfoDer::from_pem_slice(bytes)
            .is_ok_and(|der| ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, der.as_ref()).is_ok())
    }
}

/// As the file writes it.
pub(super) const fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Hs256 => "HS256",
        Algorithm::EdDsa => "EdDSA",
        Algorithm::Es256 => "ES256",
    }
}
