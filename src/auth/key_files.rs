//! Keys that Doorward made itself: one file each in `data_dir/keys`.
//!
//! - The folder has mode 0700 and each file 0600. Where a group was let in since (kubelet does so with a whole volume),
//!   it is shut out again; a key that everybody could read, or that another user has made, is refused.
//! - A file is written whole under another name, forced to disk, and only then takes its place.
//! - Of one algorithm the newest key signs. An older one is accepted until the last token that it can have signed has
//!   ended, counted from when its successor was made.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::keys::{Key, KeyError, name};
use crate::clock::{Clock, rfc3339};
use crate::config::{self, Algorithm, KeyMaterial};
use crate::files;
use crate::secret::Secret;

/// One key as `key list` shows it. Serialises with `created` and `accepted_until` as RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    pub kid: String,
    /// `HS256`, `EdDSA` or `ES256`.
    pub algorithm: &'static str,
    pub role: KeyRole,
    /// Where it came from: a file, or `$JWT_SECRET`.
    pub origin: String,
    /// `None` for keys that Doorward did not make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// `None`: as long as it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_until: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// It signs.
    Current,
    /// It verifies only.
    Previous,
    /// It is no longer accepted.
    Expired,
}

/// A key out of `data_dir/keys`.
#[derive(Clone, Debug)]
pub(super) struct StoredKey {
    pub(super) material: KeyMaterial,
    /// Unix milliseconds; no two keys of one folder are equally old.
    created: u64,
    /// Unix seconds: a configured key that `rotate` put here then.
    retired: Option<u64>,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    algorithm: String,
    created_unix_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired_unix: Option<u64>,
    /// Standard base64 of the secret's bytes, or of the PEM.
    key: String,
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

const FORMAT: u32 = 1;

/// Makes a key in `data_dir/keys`. It signs from the next start or reload on, unless the configuration names a key.
pub fn generate(data_dir: &Path, algorithm: Algorithm, clock: &Clock) -> Result<KeyInfo, KeyError> {
    let stored = read_all(data_dir)?;
    let newest = stored.iter().map(|key| key.created).max().unwrap_or(0);
    let created = clock.unix_millis().max(newest + 1);
    let material = KeyMaterial { origin: String::new(), algorithm, bytes: make(algorithm)? };
    let key = write(data_dir, StoredKey { material, created, retired: None })?;
    info(&key.material, KeyRole::Current, Some(key.created), None)
}

/// Whether there is no key at all: none in the configuration, and none in `data_dir/keys`.
pub fn is_first(token: &config::Token, data_dir: &Path) -> Result<bool, KeyError> {
    Ok(token.signing_key.is_none() && read_all(data_dir)?.is_empty())
}

/// Replaces the key that signs by a new one; the old one stays accepted until the last of its tokens has ended.
/// A key from the environment can't be replaced from here, which the error explains.
pub fn rotate(token: &config::Token, data_dir: &Path, clock: &Clock) -> Result<KeyInfo, KeyError> {
    let Some(current) = &token.signing_key else {
        return generate(data_dir, token.algorithm, clock);
    };
    if current.origin.starts_with('$') {
        return Err(KeyError::Unusable(format!(
            "the key comes from {}, which can't be changed from here: write the old secret to a file that \
             token.previous_files names, give the variable a new secret of at least 32 random bytes, and restart",
            current.origin
        )));
    }
    let path = Path::new(&current.origin);
    let there = Secret::new(fs::read(path).map_err(|source| failed("read", path, source))?);
    if !current.bytes.matches(there.expose()) && !current.bytes.matches(without_newline(there.expose())) {
        return Err(KeyError::Unusable(format!("{} has changed since it was read; try again", current.origin)));
    }
    // First the old key is safe where it will be found, then the new one takes its place: whenever this is interrupted,
    // no token becomes invalid.
    let newest = read_all(data_dir)?.iter().map(|key| key.created).max().unwrap_or(0);
    let old = StoredKey {
        material: current.clone(),
        created: clock.unix_millis().max(newest + 1),
        retired: Some(clock.unix_seconds()),
    };
    write(data_dir, old)?;
    let material =
        KeyMaterial { origin: current.origin.clone(), algorithm: current.algorithm, bytes: make(current.algorithm)? };
    replace_file(path, material.bytes.expose(), path)?;
    info(&material, KeyRole::Current, Some(clock.unix_millis()), None)
}

/// Every key of the configuration and of `data_dir/keys`, the one that signs first. `now`: Unix seconds.
pub fn list(token: &config::Token, data_dir: &Path, now: u64) -> Result<Vec<KeyInfo>, KeyError> {
    let stored = read_all(data_dir)?;
    let signs = current(&stored, token.algorithm).filter(|_| token.signing_key.is_none());
    let mut keys: Vec<KeyInfo> = Vec::new();
    let mut add = |info: KeyInfo| {
        if keys.iter().all(|known| known.kid != info.kid) {
            keys.push(info);
        }
    };
    if let Some(material) = &token.signing_key {
        add(info(material, KeyRole::Current, None, None)?);
    }
    if let Some(key) = signs {
        add(info(&key.material, KeyRole::Current, Some(key.created), None)?);
    }
    for material in &token.previous_keys {
        add(info(material, KeyRole::Previous, None, None)?);
    }
    for key in &stored {
        let until = accepted_until(key, &stored, token);
        let role = if until.is_some_and(|until| until <= now) { KeyRole::Expired } else { KeyRole::Previous };
        add(info(&key.material, role, Some(key.created), until)?);
    }
    Ok(keys)
}

/// Every key in `data_dir/keys`, newest first. No folder: no keys.
pub(super) fn read_all(data_dir: &Path) -> Result<Vec<StoredKey>, KeyError> {
    let folder = data_dir.join("keys");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("read", &folder, source)),
    };
    // Who can put files into it can make tokens.
    keep_private(&folder)?;
    let mut keys = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| failed("read", &folder, source))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            keys.push(read(&path)?);
        }
    }
    keys.sort_by_key(|key| std::cmp::Reverse(key.created));
    Ok(keys)
}

/// The key that signs where the configuration names none.
pub(super) fn current(stored: &[StoredKey], algorithm: Algorithm) -> Option<&StoredKey> {
    stored.iter().find(|key| key.retired.is_none() && key.material.algorithm == algorithm)
}

/// Until when (Unix seconds) a key of the folder is accepted; `None`: nothing has taken its place yet.
pub(super) fn accepted_until(key: &StoredKey, all: &[StoredKey], token: &config::Token) -> Option<u64> {
    let successor = all
        .iter()
        .filter(|other| {
            other.retired.is_none() && other.material.algorithm == key.material.algorithm && other.created > key.created
        })
        .map(|other| other.created.div_ceil(1000))
        .min();
    key.retired.or(successor).map(|at| at.saturating_add(token.horizon().as_secs()))
}

fn read(path: &Path) -> Result<StoredKey, KeyError> {
    keep_private(path)?;
    let damaged = || KeyError::Unusable(format!("{} is no key file of Doorward, or damaged", path.display()));
    let text = Zeroizing::new(fs::read(path).map_err(|source| failed("read", path, source))?);
    let file: KeyFile = serde_json::from_slice(&text).map_err(|_| damaged())?;
    if file.version != FORMAT {
        return Err(KeyError::Unusable(format!("{} was written by another version of Doorward", path.display())));
    }
    let algorithm = [Algorithm::Hs256, Algorithm::EdDsa, Algorithm::Es256]
        .into_iter()
        .find(|algorithm| name(*algorithm) == file.algorithm)
        .ok_or_else(damaged)?;
    let bytes = Secret::new(STANDARD.decode(&file.key).map_err(|_| damaged())?);
    let material = KeyMaterial { origin: path.display().to_string(), algorithm, bytes };
    Ok(StoredKey { material, created: file.created_unix_ms, retired: file.retired_unix })
}

/// A key is refused that others could have read, or have made.
fn keep_private(path: &Path) -> Result<(), KeyError> {
    if files::keep_private(path).map_err(KeyError::Unusable)? {
        tracing::info!(path = %path.display(), "was open to a group; it is its owner's alone again");
    }
    Ok(())
}

fn write(data_dir: &Path, mut key: StoredKey) -> Result<StoredKey, KeyError> {
    let folder = data_dir.join("keys");
    files::private_folder(data_dir).map_err(|source| failed("use the folder", data_dir, source))?;
    files::private_folder(&folder).map_err(|source| failed("make the folder", &folder, source))?;
    keep_private(&folder)?;
    keep_owner(&folder, data_dir)?;
    let path = folder.join(format!("{}.json", Key::new(&key.material, None)?.kid));
    let file = KeyFile {
        version: FORMAT,
        algorithm: name(key.material.algorithm).to_owned(),
        created_unix_ms: key.created,
        retired_unix: key.retired,
        key: STANDARD.encode(key.material.bytes.expose()),
    };
    let text = serde_json::to_vec(&file).map_err(|error| failed("write", &path, error.into()))?;
    replace_file(&path, &Zeroizing::new(text), data_dir)?;
    key.material.origin = path.display().to_string();
    Ok(key)
}

/// Puts `content` in the place of `path` so that every reader, and every power cut, sees the old or the new whole.
/// The new file belongs to whom `like` belongs: the server may run as another user than the command.
fn replace_file(path: &Path, content: &[u8], like: &Path) -> Result<(), KeyError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // A left-over of an interrupted try would keep its mode.
    match fs::remove_file(&beside) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove", &beside, source)),
        _ => {}
    }
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| failed("write", &beside, source))?;
    keep_owner(&beside, like)?;
    fs::rename(&beside, path).map_err(|source| failed("replace", path, source))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| failed("write", folder, source))
}

fn keep_owner(path: &Path, like: &Path) -> Result<(), KeyError> {
    files::give_to_owner_of(path, like).map_err(|source| failed("set the owner of", path, source))
}

/// A new key, as it stands in a file.
fn make(algorithm: Algorithm) -> Result<Secret<Vec<u8>>, KeyError> {
    let no_key = || KeyError::Unusable(String::from("the system gave no randomness for a new key"));
    let der = match algorithm {
        Algorithm::Hs256 => {
            let mut random = Zeroizing::new([0_u8; 32]);
            getrandom::fill(random.as_mut_slice()).map_err(|_| no_key())?;
            // Text, so that it can also go into a file or a variable.
            return Ok(Secret::new(URL_SAFE_NO_PAD.encode(random.as_slice()).into_bytes()));
        }
        Algorithm::EdDsa => Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1()),
        Algorithm::Es256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).and_then(|pair| pair.to_pkcs8v1()),
    };
    let encoded = Zeroizing::new(STANDARD.encode(der.map_err(|_| no_key())?.as_ref()));
    let mut pem = String::with_capacity(encoded.len() + 64);
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    for line in encoded.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Ok(Secret::new(pem.into_bytes()))
}

fn info(
    material: &KeyMaterial,
    role: KeyRole,
    created_millis: Option<u64>,
    accepted_until: Option<u64>,
) -> Result<KeyInfo, KeyError> {
    let key = Key::new(material, None)?;
    Ok(KeyInfo {
        kid: key.kid,
        algorithm: name(key.algorithm),
        role,
        origin: material.origin.clone(),
        created: created_millis.map(|millis| rfc3339(millis / 1000)),
        accepted_until: accepted_until.map(rfc3339),
    })
}

/// As the configuration reads a secret: less one line end, `\n` or `\r\n`.
fn without_newline(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).unwrap_or(bytes)
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> KeyError {
    KeyError::File { action, path: path.display().to_string(), source: files::told(path)(source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::keys::KeyRing;
    use crate::auth::testing::{DAY, NOW, claims, config, hs256};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let made = generate(folder.path(), Algorithm::EdDsa, &Clock::manual(NOW)).unwrap();
        assert_eq!(mode(&folder.path().join("keys")), 0o700);
        assert_eq!(mode(Path::new(&made.origin)), 0o600);
        let load = || KeyRing::load(&config(Algorithm::EdDsa), folder.path(), NOW).map(drop);
        // As kubelet leaves a volume at a pod's second start.
        fs::set_permissions(&made.origin, fs::Permissions::from_mode(0o660)).unwrap();
        fs::set_permissions(folder.path().join("keys"), fs::Permissions::from_mode(0o2770)).unwrap();
        load().unwrap();
        assert_eq!((mode(&folder.path().join("keys")), mode(Path::new(&made.origin))), (0o700, 0o600));
        for open in [0o604, 0o602, 0o644, 0o666] {
            fs::set_permissions(&made.origin, fs::Permissions::from_mode(open)).unwrap();
            let error = load().unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains("this process is uid"), "{error}");
        }
        fs::set_permissions(&made.origin, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(folder.path().join("keys"), fs::Permissions::from_mode(0o707)).unwrap();
        load().unwrap_err();
    }

    #[test]
    fn a_damaged_file_is_an_error_and_names_itself() {
        let folder = tempfile::tempdir().unwrap();
        let made = generate(folder.path(), Algorithm::Hs256, &Clock::manual(NOW)).unwrap();
        let whole = fs::read(&made.origin).unwrap();
        for content in [&b""[..], b"{}", b"null", &whole[..whole.len() - 1], b"\xff"] {
            fs::write(&made.origin, content).unwrap();
            let error = read_all(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&made.origin), "{error}");
        }
    }

    #[test]
    fn a_left_over_of_an_interrupted_try_does_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let made = generate(folder.path(), Algorithm::Hs256, &Clock::manual(NOW)).unwrap();
        fs::write(format!("{}.new", made.origin), b"half").unwrap();
        assert_eq!(read_all(folder.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_configured_key_is_replaced_in_its_file_and_stays_accepted_for_a_while() {
        for algorithm in [Algorithm::Hs256, Algorithm::EdDsa, Algorithm::Es256] {
            let folder = tempfile::tempdir().unwrap();
            let clock = Clock::manual(NOW);
            let path = folder.path().join("signing.key");
            let old = make(algorithm).unwrap();
            fs::write(&path, [old.expose(), &b"\n"[..]].concat()).unwrap();
            let configured = |bytes: Secret<Vec<u8>>| config::Token {
                signing_key: Some(KeyMaterial { origin: path.display().to_string(), algorithm, bytes }),
                ..config(algorithm)
            };
            let before = configured(old);
            let token = KeyRing::load(&before, folder.path(), NOW).unwrap().sign(&claims("kim", NOW)).unwrap();

            let new = rotate(&before, folder.path(), &clock).unwrap();
            assert_eq!(mode(&path), 0o600);
            let after = configured(Secret::new(fs::read(&path).unwrap()));
            let ring = KeyRing::load(&after, folder.path(), NOW).unwrap();
            assert!(ring.verify(&token, NOW).is_ok());
            assert!(ring.sign(&claims("kim", NOW)).unwrap() != token);
            let keys = list(&after, folder.path(), NOW).unwrap();
            assert_eq!(keys.iter().map(|key| key.role).collect::<Vec<_>>(), [KeyRole::Current, KeyRole::Previous]);
            assert_eq!(keys[0].kid, new.kid);
            let ended = list(&after, folder.path(), NOW + 30 * DAY).unwrap();
            assert_eq!(ended[1].role, KeyRole::Expired);
            // The server still runs with the old key in its configuration: it must not treat it as expired.
            assert!(KeyRing::load(&before, folder.path(), NOW + 60 * DAY).is_ok());
            // A second rotation from the same, now outdated, configuration would lose the key in between.
            assert!(rotate(&before, folder.path(), &clock).is_err());
        }
    }

    #[test]
    fn a_key_from_the_environment_can_not_be_rotated_from_here() {
        let folder = tempfile::tempdir().unwrap();
        let error = rotate(&hs256(), folder.path(), &Clock::manual(NOW)).unwrap_err().to_string();
        assert!(error.contains("token.previous_files"), "{error}");
        assert!(!folder.path().join("keys").exists());
    }

    #[test]
    fn the_list_names_the_key_that_signs_first() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::manual(NOW);
        let first = generate(folder.path(), Algorithm::EdDsa, &clock).unwrap();
        let second = generate(folder.path(), Algorithm::EdDsa, &clock).unwrap();
        let other = generate(folder.path(), Algorithm::Es256, &clock).unwrap();
        let keys = list(&config(Algorithm::EdDsa), folder.path(), NOW).unwrap();
        let shown: Vec<_> = keys.iter().map(|key| (key.kid.as_str(), key.role)).collect();
        assert_eq!(
            shown,
            [(&*second.kid, KeyRole::Current), (&*other.kid, KeyRole::Previous), (&*first.kid, KeyRole::Previous)]
        );
        assert_eq!((keys[1].accepted_until.as_deref(), keys[2].accepted_until.is_some()), (None, true));
        assert_eq!(keys[0].created.as_deref(), Some("2027-01-15T08:00:00Z"));
    }
}
