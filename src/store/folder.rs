//! The files around the embedded database: lock, marker, and the checks that are made before the database sees a folder.
//!
//! In `data_dir`: `store.lock` (who holds it may touch the rest), `store/` (the database's files and ours,
//! `doorward`), `dump.jsonl`. The marker file `store/doorward` names the layout and the number of the last change that
//! is known to be on disk, so a database that quietly went back to an older state is noticed. Nothing is opened in
//! place before a copy of it was opened and read through, because opening writes.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::row::{LAYOUT, Meta};
use super::sled::{Engine, OpenError};
use super::{StoreError, dump};
use crate::files;

const MARK: &str = "doorward";
/// What is left free for the database to tidy up in, which takes room at first.
const RESERVE_BYTES: u64 = 4 << 20;
const LOCK_POLL: Duration = Duration::from_millis(50);

/// A data folder that this process holds the lock of.
pub(super) struct Folder {
    data_dir: PathBuf,
    store: PathBuf,
    /// Held, never written.
    _lock: File,
}

/// The open marker file.
pub(super) struct Mark {
    file: File,
    sequence: u64,
}

impl Folder {
    /// Makes the data folder where there is none, and takes its lock; waits for it up to `wait`.
    pub(super) fn lock(data_dir: &Path, wait: Duration) -> Result<Self, StoreError> {
        let place = || format!("{} can't be used", data_dir.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .map_err(|error| StoreError::caused(place(), files::told(data_dir)(error)))?;
        let store = data_dir.join("store");
        let path = data_dir.join("store.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| StoreError::caused(place(), files::told(&path)(error)))?;
        let mut left = wait;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { data_dir: data_dir.to_path_buf(), store, _lock: lock }),
                Err(TryLockError::WouldBlock) if left.is_zero() => {
                    return Err(StoreError::InUse { folder: store.display().to_string() });
                }
                Err(TryLockError::WouldBlock) => {
                    let pause = left.min(LOCK_POLL);
                    std::thread::sleep(pause);
                    left = left.saturating_sub(pause);
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::caused(place(), error)),
            }
        }
    }

    /// Opens the store, or makes one. `beside_dump`: makes one also where a dump tells that there was one.
    pub(super) fn open(&self, beside_dump: bool) -> Result<(Engine, Mark, Meta), StoreError> {
        for leftover in ["store.new", "store.check"] {
            self.remove_leftover(&self.data_dir.join(leftover))?;
        }
        match self.look()? {
            None => {
                if !beside_dump {
                    self.no_dump("the store is gone, but there is a dump of it")?;
                }
                self.make()
            }
            Some(mark) => {
                let meta = self.check_copy(&mark)?;
                if meta.sequence == 0 && !beside_dump {
                    self.no_dump("the store is empty, but there is a dump that is not")?;
                }
                self.remove_torn_snapshots()?;
                self.open_checked(mark)
            }
        }
    }

    /// Opens a folder that this process has checked before.
    pub(super) fn reopen(&self) -> Result<(Engine, Mark, Meta), StoreError> {
        let mark = self.look()?.ok_or_else(|| self.damaged("it is gone"))?;
        self.remove_torn_snapshots()?;
        self.open_checked(mark)
    }

    /// Where the automatic dump goes.
    pub(super) fn dump_path(&self) -> PathBuf {
        self.data_dir.join("dump.jsonl")
    }

    /// [`StoreError::Unavailable`] where less than `more` bytes beyond a reserve are free on the disk.
    ///
    /// Asked before each change, because the database takes a write that failed half-way badly: it then refuses some
    /// reads as well until it was opened anew.
    pub(super) fn room(&self, more: u64) -> Result<(), StoreError> {
        let Ok(disk) = rustix::fs::statvfs(&self.data_dir) else {
            // The change itself will tell.
            return Ok(());
        };
        if disk.f_bavail.saturating_mul(disk.f_frsize) < RESERVE_BYTES.saturating_add(more) {
            return Err(StoreError::unavailable(format!("the disk of {} is full", self.data_dir.display())));
        }
        Ok(())
    }

    /// Whether a file can be written and grow, so that opening the database has a chance.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.data_dir.join("store.probe");
        let probed = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path).and_then(|file| {
            file.write_all_at(&vec![0x55; 2 << 20], 0)?;
            file.sync_all()
        });
        let removed = fs::remove_file(&path);
        probed.and(removed)
    }

    /// What can be seen of a store without opening it, and without its lock: whether it is one, and of this version.
    pub(super) fn glance(data_dir: &Path) -> Result<(), StoreError> {
        // No lock is held: this only looks.
        let nothing =
            File::open("/dev/null").map_err(|error| StoreError::caused("/dev/null can't be opened", error))?;
        let folder = Self { data_dir: data_dir.to_path_buf(), store: data_dir.join("store"), _lock: nothing };
        match folder.look()? {
            None => folder.no_dump("the store is gone, but there is a dump of it"),
            Some(_) => Ok(()),
        }
    }

    /// What can be seen without the database: `None` where there is no store.
    fn look(&self) -> Result<Option<Mark>, StoreError> {
        let names = match fs::read_dir(&self.store) {
            Ok(entries) => entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()
                .map_err(|error| self.unreadable(error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(self.damaged("it is not a folder"));
            }
            Err(error) => return Err(self.unreadable(error)),
        };
        if names.is_empty() {
            return Ok(None);
        }
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        if !has(MARK) {
            return Err(self.damaged("it holds files, but no store of this program"));
        }
        if !(has("db") && has("conf")) {
            return Err(self.damaged("files of it are missing"));
        }
        let mark = Mark::open(&self.store.join(MARK)).map_err(|error| self.unreadable(error))?;
        mark.map(Some).map_err(|problem| self.damaged(problem))
    }

    /// Opens and reads a copy from end to end, so that the folder stays as it is where something is wrong.
    fn check_copy(&self, mark: &Mark) -> Result<Meta, StoreError> {
        let copy = self.data_dir.join("store.check");
        copy_folder(&self.store, &copy).map_err(|error| {
            StoreError::caused(format!("{} can't be copied for a check", self.store.display()), error)
        })?;
        let checked = match Engine::open(&copy) {
            Ok(engine) => engine.verify().and_then(|meta| {
                if meta.sequence < mark.sequence {
                    Err(format!(
                        "its last changes are missing: it ends at change {}, and change {} was written",
                        meta.sequence, mark.sequence
                    ))
                } else {
                    Ok(meta)
                }
            }),
            Err(OpenError::Damaged(problem)) => Err(problem),
            Err(OpenError::InUse) => return Err(StoreError::InUse { folder: self.store.display().to_string() }),
            Err(OpenError::Failed(error)) => {
                self.remove_leftover(&copy)?;
                return Err(self.unreadable(error));
            }
        };
        self.remove_leftover(&copy)?;
        checked.map_err(|problem| self.damaged(problem))
    }

    fn open_checked(&self, mark: Mark) -> Result<(Engine, Mark, Meta), StoreError> {
        let engine = self.open_engine(&self.store)?;
        let meta = engine.meta()?.filter(|meta| meta.sequence >= mark.sequence);
        let meta = meta.ok_or_else(|| self.damaged("its last changes are missing"))?;
        restrict(&self.store).map_err(|error| self.unreadable(error))?;
        Ok((engine, mark, meta))
    }

    /// Makes a store aside and moves it into place, so that one that is half made is never seen.
    fn make(&self) -> Result<(Engine, Mark, Meta), StoreError> {
        let new = self.data_dir.join("store.new");
        let made = DirBuilder::new().mode(0o700).create(&new);
        made.map_err(|error| StoreError::caused(format!("{} can't be made", new.display()), files::told(&new)(error)))?;
        let engine = self.open_engine(&new)?;
        let meta = Meta::default();
        engine.write([(row_meta_key(), Some(super::row::encode_json(super::row::META, &meta)?))].into())?;
        engine.flush()?;
        drop(engine);
        let placed = Mark::create(&new.join(MARK))
            .and_then(|()| restrict(&new))
            .and_then(|()| sync_all_in(&new))
            .and_then(|()| fs::rename(&new, &self.store))
            .and_then(|()| sync_folder(&self.data_dir));
        placed.map_err(|error| StoreError::caused(format!("{} can't be made", self.store.display()), error))?;
        self.reopen()
    }

    fn open_engine(&self, folder: &Path) -> Result<Engine, StoreError> {
        // The database lets its lock go a moment after it was closed.
        let mut tries = 100_u32;
        loop {
            match Engine::open(folder) {
                Ok(engine) => return Ok(engine),
                Err(OpenError::InUse) if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(LOCK_POLL);
                }
                Err(OpenError::InUse) => return Err(StoreError::InUse { folder: folder.display().to_string() }),
                Err(OpenError::Damaged(problem)) => return Err(self.damaged(problem)),
                Err(OpenError::Failed(error)) => return Err(self.unreadable(error)),
            }
        }
    }

    /// A snapshot that a kill left half written makes every later open fail; the whole one before it is still there.
    fn remove_torn_snapshots(&self) -> Result<(), StoreError> {
        let torn = |entry: io::Result<fs::DirEntry>| -> io::Result<()> {
            let entry = entry?;
            if is_torn_snapshot(&entry.file_name()) { fs::remove_file(entry.path()) } else { Ok(()) }
        };
        fs::read_dir(&self.store)
            .and_then(|mut entries| entries.try_for_each(torn))
            .map_err(|error| self.unreadable(error))
    }

    fn remove_leftover(&self, path: &Path) -> Result<(), StoreError> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.unreadable(error)),
            _ => Ok(()),
        }
    }

    fn no_dump(&self, problem: &str) -> Result<(), StoreError> {
        if dump::holds_something(&self.dump_path()) { Err(self.damaged(problem)) } else { Ok(()) }
    }

    fn unreadable(&self, error: io::Error) -> StoreError {
        let error = files::told(&self.store)(error);
        StoreError::caused(format!("{} can't be read or written", self.store.display()), error)
    }

    fn damaged(&self, problem: impl Into<String>) -> StoreError {
        let dump = self.dump_path();
        let way_back = if dump.exists() {
            format!(
                "To go back to its last dump, move the folder away, copy {0} to a safe place, and run \
                 `doorward store restore {0}`.",
                dump.display()
            )
        } else {
            String::from(
                "Put a backup in its place, or move it away and run `doorward store restore` with a dump; without \
                 either, an empty store is made once it is moved away.",
            )
        };
        StoreError::Damaged { folder: self.store.display().to_string(), problem: problem.into(), way_back }
    }
}

fn row_meta_key() -> Vec<u8> {
    super::row::META.to_vec()
}

impl Mark {
    /// Notes that everything up to `sequence` is on disk. Call after the database's own fsync.
    ///
    /// Not synced itself: after a power cut it may name an older change, which only makes the check weaker.
    pub(super) fn note(&mut self, sequence: u64) -> io::Result<()> {
        self.file.write_all_at(mark_line(sequence).as_bytes(), 0)?;
        self.sequence = sequence;
        Ok(())
    }

    /// Puts the note on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn create(path: &Path) -> io::Result<()> {
        let file = File::options().create_new(true).write(true).mode(0o600).open(path)?;
        file.write_all_at(mark_line(0).as_bytes(), 0)?;
        file.sync_all()
    }

    fn open(path: &Path) -> io::Result<Result<Self, String>> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut text = Vec::new();
        (&file).take(4096).read_to_end(&mut text)?;
        Ok(parse_mark(&text).map(|sequence| Self { file, sequence }))
    }
}

/// The marker's only line; always of the same length, so that writing it over the last one is one write of one sector.
fn mark_line(sequence: u64) -> String {
    let body = format!("doorward store, layout {LAYOUT}, change {sequence:020}");
    let checksum = crc32fast::hash(body.as_bytes());
    format!("{body}, {checksum:08x}\n")
}

fn parse_mark(text: &[u8]) -> Result<u64, String> {
    let damaged = || String::from("its marker file is damaged");
    let text = std::str::from_utf8(text).map_err(|_| damaged())?;
    let rest = text.strip_prefix("doorward store, layout ").ok_or_else(damaged)?;
    let (layout, rest) = rest.split_once(", change ").ok_or_else(damaged)?;
    let layout: u32 = layout.parse().map_err(|_| damaged())?;
    let sequence = rest.get(..20).and_then(|digits| digits.parse().ok()).ok_or_else(damaged)?;
    if layout != u32::from(LAYOUT) {
        return Err(format!("it is of version {layout}, this program reads version {LAYOUT}"));
    }
    if text == mark_line(sequence) { Ok(sequence) } else { Err(damaged()) }
}

fn is_torn_snapshot(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating"))
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if !is_torn_snapshot(&entry.file_name()) {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Lets only the owner read and write. The folder alone would do, until somebody copies the files out of it.
fn restrict(folder: &Path) -> io::Result<()> {
    narrow(folder, 0o700)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            restrict(&entry.path())?;
        } else {
            match narrow(&entry.path(), 0o600) {
                // The database removes old snapshots meanwhile.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn narrow(path: &Path, mode: u32) -> io::Result<()> {
    match fs::set_permissions(path, Permissions::from_mode(mode)) {
        // Not ours to change, and as it should be, or in the hands of root and of our own group.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            files::keep_private(path).map(drop).map_err(|problem| io::Error::new(error.kind(), problem))
        }
        narrowed => narrowed,
    }
}

fn sync_all_in(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        File::open(entry?.path())?.sync_all()?;
    }
    sync_folder(folder)
}

/// Makes new, renamed and removed names in a folder last through a power cut.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_marker_says_its_layout_and_its_last_change() {
        assert_eq!(parse_mark(mark_line(0).as_bytes()), Ok(0));
        assert_eq!(parse_mark(mark_line(u64::MAX).as_bytes()), Ok(u64::MAX));
        assert_eq!(mark_line(0).len(), mark_line(u64::MAX).len());
        let other = mark_line(7).replace("layout 1", "layout 2");
        assert!(parse_mark(other.as_bytes()).is_err_and(|problem| problem.contains("version 2")));
    }

    proptest! {
        #[test]
        fn a_marker_of_other_bytes_is_refused(
            sequence in any::<u64>(), at in any::<proptest::sample::Index>(), bit in 0..8_u8, end in any::<Vec<u8>>(),
        ) {
            let mut text = mark_line(sequence).into_bytes();
            let at = at.index(text.len());
            text[at] ^= 1 << bit;
            prop_assert!(parse_mark(&text).is_err());
            prop_assert!(parse_mark(&end).is_err());
            let cut = mark_line(sequence);
            prop_assert!(parse_mark(&cut.as_bytes()[..at]).is_err());
        }
    }
}
