//! Owners and modes of files.
//!
//! - What this process makes is its own: folders 0700, files 0600. Where somebody has widened them since (kubelet does, at
//!   every start of a pod with an `fsGroup`), they are narrowed again.
//! - A folder or a secret that somebody else has made is taken as it is, as long as it is in the hands of its owner, of
//!   root, or of a group of this process.
//! - What root makes in another user's folder belongs to that user afterwards.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

/// What others may do.
const OTHERS: u32 = 0o007;
/// What the group may do.
const GROUP: u32 = 0o070;
/// Only the owner of a file in such a folder may rename or remove it.
const STICKY: u32 = 0o1000;

/// Who may put files into a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hands {
    /// Its owner, root, and at most a group of this process.
    Own,
    /// Everybody, as in an `emptyDir`: what is private in it is kept so by its own mode.
    Everybody,
}

/// Who this process is, as the kernel sees it.
struct Process {
    user: u32,
    group: u32,
    groups: Vec<u32>,
}

impl Process {
    fn current() -> Self {
        let group = rustix::process::getegid().as_raw();
        let others = rustix::process::getgroups().unwrap_or_default();
        Self {
            user: rustix::process::geteuid().as_raw(),
            group,
            groups: others.into_iter().map(rustix::process::Gid::as_raw).chain([group]).collect(),
        }
    }

    const fn is_root(&self) -> bool {
        self.user == 0
    }

    /// Whether somebody who could do anything to this process anyway is the owner.
    const fn trusts(&self, owner: u32) -> bool {
        owner == 0 || owner == self.user || self.is_root()
    }
}

/// Whether a file or a program of this owner may be relied on: it is this process's user or root, or we are root.
#[must_use]
pub fn is_trusted(owner: u32) -> bool {
    Process::current().trusts(owner)
}

/// Makes a folder where there is none, and narrows it to its owner where that is in our hands.
///
/// # Errors
///
/// The folder can't be made or looked at; the text says who we are and whose it is.
pub fn private_folder(folder: &Path) -> io::Result<Hands> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(told(folder))?;
    let metadata = fs::metadata(folder).map_err(told(folder))?;
    let (mode, process) = (metadata.mode(), Process::current());
    if mode & (GROUP | OTHERS) == 0 {
        return Ok(Hands::Own);
    }
    // Root's folder with another group that may write: a volume for whoever runs in that group, whom 0700 would lock out.
    let is_of_group = process.is_root() && metadata.uid() == 0 && metadata.gid() != 0 && mode & 0o020 != 0;
    let is_ours = process.user == metadata.uid() || process.is_root();
    if is_ours && !is_of_group && fs::set_permissions(folder, Permissions::from_mode(0o700)).is_ok() {
        return Ok(Hands::Own);
    }
    let by_group = mode & 0o020 != 0 && !process.is_root() && !process.groups.contains(&metadata.gid());
    let by_others = mode & 0o002 != 0 && mode & STICKY == 0;
    Ok(if by_group || by_others { Hands::Everybody } else { Hands::Own })
}

/// Narrows a file or a folder that this program has made to its owner. `Ok(true)`: it had been open to a group.
///
/// # Errors
///
/// A sentence: it belongs to somebody else, everybody could read it, or a group that can't be shut out.
pub fn keep_private(path: &Path) -> Result<bool, String> {
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| format!("{shown} can't be read: {}", told(path)(error)))?;
    let (mode, process) = (metadata.mode(), Process::current());
    if !process.trusts(metadata.uid()) {
        return Err(format!("{shown} was made by another user ({})", whose(path, &metadata)));
    }
    if mode & OTHERS != 0 {
        return Err(format!(
            "others can read {shown} ({}): run `chmod 600 {shown}` (without a shell in the image from another container \
             with the same volume), and make a new key if somebody may have read it",
            whose(path, &metadata)
        ));
    }
    if mode & GROUP == 0 {
        return Ok(false);
    }
    let narrowed = Permissions::from_mode(mode & 0o700);
    match fs::set_permissions(path, narrowed) {
        Ok(()) => Ok(true),
        // Root's, put there for the group that we run in.
        Err(_) if process.groups.contains(&metadata.gid()) && metadata.uid() == 0 => Ok(false),
        Err(error) => Err(format!("{shown} is open to a group and can't be closed: {}", told(path)(error))),
    }
}

/// Whether a secret is in the right hands: its owner alone reads it, or the group does through which it was given to this
/// process. `credentials`: the folder in which the service manager puts secrets for this process alone
/// (`$CREDENTIALS_DIRECTORY`).
#[must_use]
pub fn is_private(path: &Path, metadata: &Metadata, credentials: Option<&Path>) -> bool {
    let (mode, process) = (metadata.mode(), Process::current());
    if mode & OTHERS != 0 {
        return false;
    }
    if mode & GROUP == 0 {
        return true;
    }
    // An access list that names this user shows as a group that reads.
    let is_credential = credentials.is_some_and(|folder| folder.is_absolute() && path.parent() == Some(folder));
    if is_credential && mode & 0o020 == 0 && process.trusts(metadata.uid()) {
        return true;
    }
    let group = metadata.gid();
    if process.is_root() || group == 0 {
        // The group of number 0 is everybody's on some platforms.
        return false;
    }
    // Kubernetes gives a mounted secret to the pod's group.
    (metadata.uid() == 0 && process.groups.contains(&group))
        || (metadata.uid() == process.user && group == process.group && is_group_of_one(group, process.user))
}

/// Whether nobody else is in the group: it is the user's own by its number, as systems make one for each user, and the
/// files of this machine name no other member.
fn is_group_of_one(group: u32, user: u32) -> bool {
    let read = |name: &str| fs::read_to_string(name).unwrap_or_default();
    group == user && !has_others(group, user, &read("/etc/passwd"), &read("/etc/group"))
}

/// `passwd` and `group`: the text of those files (passwd(5), group(5)).
fn has_others(group: u32, user: u32, passwd: &str, groups: &str) -> bool {
    let number = |field: Option<&str>| field.and_then(|field| field.parse::<u32>().ok());
    let mut names = Vec::new();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        let name = fields.next();
        let (of_user, of_group) = (number(fields.nth(1)), number(fields.next()));
        if of_user == Some(user) {
            names.extend(name);
        } else if of_group == Some(group) {
            return true;
        }
    }
    groups.lines().any(|line| {
        let mut fields = line.split(':').skip(2);
        number(fields.next()) == Some(group)
            && fields.next().unwrap_or_default().split(',').any(|name| !name.is_empty() && !names.contains(&name))
    })
}

/// Gives what root has made to the owner of the folder that it is in, or of the file that it replaces. Does nothing for
/// other users: what they make is theirs.
///
/// # Errors
///
/// The owner can't be read or set.
pub fn give_to_owner_of(path: &Path, like: &Path) -> io::Result<()> {
    if !Process::current().is_root() {
        return Ok(());
    }
    let wanted = fs::metadata(like)?;
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    give(&opened, wanted.uid(), wanted.gid()).map(drop)
}

/// Gives away what is root's, and says what it is. A link stays as it is, and so does a file with a second name, which may
/// stand for one that lies elsewhere.
fn give(opened: &impl std::os::fd::AsFd, user: u32, group: u32) -> io::Result<FileType> {
    let stat = rustix::fs::fstat(opened)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_here_only = kind == FileType::Directory || (kind != FileType::Symlink && stat.st_nlink == 1);
    if stat.st_uid == 0 && is_here_only && (user, group) != (stat.st_uid, stat.st_gid) {
        let (user, group) = (rustix::process::Uid::from_raw(user), rustix::process::Gid::from_raw(group));
        rustix::fs::chownat(opened, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
    }
    Ok(kind)
}

/// Gives everything that root has made in another user's folder to that user, so that the service that runs as that user
/// can go on with it. Does nothing for other users, and nothing in root's own folder.
///
/// # Errors
///
/// The first file or folder that can't be read or given away.
pub fn give_to_folder_owner(folder: &Path) -> io::Result<()> {
    let metadata = fs::metadata(folder)?;
    if !Process::current().is_root() || metadata.uid() == 0 {
        return Ok(());
    }
    let opened = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    give_away(&opened, metadata.uid(), metadata.gid())
}

/// Goes by descriptors and follows no link: the folder's owner may put anything into it meanwhile, and must not come by a
/// file of root's that lies elsewhere.
fn give_away(folder: &impl std::os::fd::AsFd, user: u32, group: u32) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            // A file of a moment.
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if give(&opened, user, group)? == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = rustix::fs::openat(folder, name, flags, Mode::empty())?;
            give_away(&inner, user, group)?;
        }
    }
    Ok(())
}

/// Everything that this process makes from here on is its own alone, also between the making of a file and the setting of
/// its mode.
pub fn make_private_files() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Adds to a refusal of the system who we are, whose the file is, and what helps.
pub fn told(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| {
        if !is_refusal(&error) {
            return error;
        }
        let text = format!("{error} ({}); {}", story(path), advice(path));
        io::Error::new(error.kind(), text)
    }
}

/// Adds to the refusal to read a secret who we are, whose it is, and how it gets into the right hands.
pub fn told_of_secret(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| {
        if !is_refusal(&error) {
            return error;
        }
        io::Error::new(error.kind(), format!("{error} ({}); {}", story(path), secret_advice()))
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// How a secret gets into this process's hands, in the words of those who can do it.
#[must_use]
pub fn secret_advice() -> String {
    let Process { user, group, .. } = Process::current();
    format!(
        "as a file of this user: `chown {user}:{group} FILE && chmod 600 FILE`; under systemd `LoadCredential=NAME:FILE` in \
         the unit and the path /run/credentials/doorward.service/NAME here; in Kubernetes `fsGroup: {group}` in the pod's \
         securityContext and `defaultMode: 0400` at the volume"
    )
}

fn advice(path: &Path) -> String {
    let Process { user, group, .. } = Process::current();
    format!(
        "give it to this user (`chown -R {user}:{group} {}`; without a shell in the image from another container with the \
         same volume), or run Doorward as its owner; in Kubernetes set `fsGroup: {group}` in the pod's securityContext",
        path.display()
    )
}

/// Who we are, and whose the nearest thing is that we can see on the way to `path`.
#[must_use]
pub fn story(path: &Path) -> String {
    for place in path.ancestors().filter(|place| !place.as_os_str().is_empty()) {
        if let Ok(metadata) = fs::metadata(place) {
            return whose(place, &metadata);
        }
    }
    format!("this process is {}", us())
}

/// Whose something is, how open it is, and who we are.
#[must_use]
pub fn whose(path: &Path, metadata: &Metadata) -> String {
    format!(
        "{} belongs to uid {}, gid {} and has mode {:04o}; this process is {}",
        path.display(),
        metadata.uid(),
        metadata.gid(),
        metadata.mode() & 0o7777,
        us()
    )
}

fn us() -> String {
    let Process { user, group, mut groups } = Process::current();
    groups.retain(|other| *other != group);
    let others = groups.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let others = if others.is_empty() { String::new() } else { format!(", also in {others}") };
    format!("uid {user}, gid {group}{others}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_private_when_nobody_else_is_in_it() {
        let passwd = "root:x:0:0::/:/bin/sh\nkim:x:1000:1000::/:/bin/sh\nlee:x:1001:1001::/:/bin/sh\n";
        for (groups, others) in [
            ("", false),
            ("kim:x:1000:\n", false),
            ("kim:x:1000:kim\n", false),
            ("kim:x:1000:kim,lee\n", true),
            ("staff:x:50:lee\nkim:x:1000:lee\n", true),
            ("staff:x:50:lee\n", false),
        ] {
            assert_eq!(has_others(1000, 1000, passwd, groups), others, "{groups:?}");
        }
        let shared = "kim:x:1000:1000::/:/bin/sh\nlee:x:1001:1000::/:/bin/sh\n";
        assert!(has_others(1000, 1000, shared, ""));
        // A second name of the same user.
        assert!(!has_others(1000, 1000, "kim:x:1000:1000::/:\nkimmy:x:1000:1000::/:\n", "g:x:1000:kimmy\n"));
        assert!(!has_others(65532, 65532, "", ""));
    }

    #[test]
    fn a_widened_file_is_narrowed_and_an_open_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "a key").unwrap();
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        for (before, outcome, after) in [
            (0o600, Ok(false), 0o600),
            (0o400, Ok(false), 0o400),
            (0o660, Ok(true), 0o600),
            (0o440, Ok(true), 0o400),
            (0o620, Ok(true), 0o600),
            (0o604, Err(()), 0o604),
            (0o666, Err(()), 0o666),
            (0o602, Err(()), 0o602),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            assert_eq!(keep_private(&path).map_err(drop), outcome, "{before:o}");
            assert_eq!(mode(), after, "{before:o}");
        }
    }

    #[test]
    fn a_refusal_says_who_we_are_and_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no/such/thing");
        let told = told(&path)(io::ErrorKind::PermissionDenied.into()).to_string();
        let metadata = fs::metadata(folder.path()).unwrap();
        let mode = metadata.mode() & 0o7777;
        let expected = format!("belongs to uid {}, gid {} and has mode {mode:04o}", metadata.uid(), metadata.gid());
        assert!(told.contains(&expected) && told.contains("this process is uid "), "{told}");
        assert!(told.contains("fsGroup"), "{told}");
        let other = super::told(&path)(io::ErrorKind::NotFound.into()).to_string();
        assert!(!other.contains("belongs to"), "{other}");
    }
}
