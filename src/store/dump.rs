//! A whole store as one JSON-lines file, and back.
//!
//! The first line says the version and how many records follow, the last one how many lines came before it and their
//! SHA-256, so that a dump that was cut off or changed is noticed. A dump holds password hashes. It is restored all at
//! once or not at all, into an empty store only, and the log's numbers go on far above the dump's, because numbers that
//! were given out after the dump was made must not come again.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::row::AccountRow;
use super::{
    Account, Counts, Everything, Forgotten, Import, LogEntry, RevokeAll, Row, SLACK, Session, Store, StoreError, folder,
};
use crate::clock::rfc3339;

const VERSION: u64 = 1;
/// The longest line that is read, in bytes; a record has at most 32 KiB, and JSON can make six bytes of one.
const MAX_LINE_BYTES: u64 = 512 * 1024;
/// How far above the dump's the log goes on after a restore. More changes than that are not lost with a dump that is
/// written every minute.
const LOG_GAP: u64 = 1 << 20;

/// What a restore brought back.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    /// What the store holds now.
    pub counts: Counts,
    /// The number of the newest log entry.
    pub log_head: u64,
}

/// Why a dump was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A line is not what it must be. Lines count from 1.
    #[error("line {line}: {problem}")]
    Invalid {
        /// Its number.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// The dump ends before its last line.
    #[error("line {line}: the dump is cut off here")]
    CutOff {
        /// The number of the line that is missing.
        line: u64,
    },
    /// A store that is copied is not what it says.
    #[error("the source is damaged: {problem}")]
    Source {
        /// What is wrong.
        problem: String,
    },
    /// Reading it failed.
    #[error("the dump can't be read")]
    Read(#[source] io::Error),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a dump was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the dump can't be written")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
struct Header {
    doorward_dump: u64,
    made: String,
    accounts: u64,
    sessions: u64,
    entries: u64,
    log_head: u64,
    /// How many changes the store had seen.
    sequence: u64,
    #[serde(default)]
    forgotten: Forgotten,
    #[serde(default)]
    longest: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    #[serde(borrow)]
    Account(AccountRow<'a>),
    Session(Session),
    Entry(LogEntry),
    End(End),
}

#[derive(Serialize, Deserialize)]
struct End {
    lines: u64,
    sha256: String,
}

/// Writes everything of `store` to `out`. `now`: Unix seconds. [`StoreError::Unavailable`] also where `out` fails.
pub async fn write_dump(store: &dyn Store, now: u64, out: &mut (dyn Write + Send)) -> Result<Counts, StoreError> {
    let everything = store.export().await?;
    let counts = everything.counts;
    match write(everything, now, BufWriter::new(out)) {
        Ok(()) => Ok(counts),
        Err(WriteError::Store(error)) => Err(error),
        Err(WriteError::Io(error)) => Err(StoreError::caused("the dump can't be written", error)),
    }
}

/// Fills `store`, which must be empty, with a dump. Nothing is changed where any line is wrong.
///
/// `revoke_all` ends every login that the dump knows or does not know of any more, and leaves the dump's sessions out;
/// `None` keeps them (`--keep-sessions`). Reading blocks: not for a thread that serves requests.
pub async fn restore(
    reader: impl BufRead,
    store: &dyn Store,
    revoke_all: Option<RevokeAll>,
) -> Result<Restored, RestoreError> {
    let mut import = read_dump(reader)?;
    import.log_head = import.log_head.saturating_add(LOG_GAP);
    // The tokens of sessions that are left out live as long as those sessions would have.
    let ends = import.sessions.iter().map(|session| session.expires).max().unwrap_or(0);
    import.revoke_all = revoke_all.map(|times| {
        let longest = ends.max(times.at.saturating_add(import.longest)).saturating_add(SLACK);
        RevokeAll { expires: times.expires.max(longest), ..times }
    });
    if revoke_all.is_some() {
        import.sessions.clear();
    }
    Ok(fill(store, import).await?)
}

/// Fills `store`, which must be empty, all or nothing.
pub async fn fill(store: &dyn Store, import: Import) -> Result<Restored, StoreError> {
    let mut counts = counts_of(&import);
    counts.entries += u64::from(import.revoke_all.is_some());
    let applied = store.import(import).await?;
    Ok(Restored { counts, log_head: applied.log_head })
}

/// A whole store, with its log's numbers and its sessions as they are: what goes into another store when nobody is to
/// be logged out. `seen` is told of each record.
pub fn collect(everything: Everything, mut seen: impl FnMut()) -> Result<Import, RestoreError> {
    let wanted = everything.counts;
    let mut reading = Reading::default();
    for row in everything.rows {
        let invalid = |problem| RestoreError::Source { problem };
        match row? {
            Row::Account(account) => reading.add_account(account).map_err(invalid)?,
            Row::Session(session) => reading.add_session(session).map_err(invalid)?,
            Row::Entry(entry) => reading.add_entry(entry, everything.log_head).map_err(invalid)?,
        }
        seen();
    }
    if counts_of(&reading.import) != wanted {
        return Err(RestoreError::Source { problem: String::from("it gave fewer records than it holds, or more") });
    }
    reading.import.log_head = everything.log_head;
    reading.import.forgotten = everything.forgotten;
    reading.import.longest = everything.longest;
    Ok(reading.import)
}

fn counts_of(import: &Import) -> Counts {
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    Counts {
        accounts: count(import.accounts.len()),
        sessions: count(import.sessions.len()),
        entries: count(import.log.len()),
    }
}

/// Whether there is a dump that is not one of an empty store. A file that is no dump counts as one: it is somebody's.
pub(super) fn holds_something(path: &Path) -> bool {
    match header_of(path) {
        None => path.metadata().is_ok_and(|metadata| metadata.len() > 0),
        Some(header) => header.accounts > 0 || header.sessions > 0 || header.log_head > 0,
    }
}

/// The number of changes that the dump at this path knows of.
pub(super) fn sequence_of(path: &Path) -> Option<u64> {
    header_of(path).map(|header| header.sequence)
}

fn header_of(path: &Path) -> Option<Header> {
    let mut line = Vec::new();
    io::BufReader::new(File::open(path).ok()?).take(4096).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

/// Replaces the dump at `path`: a reader sees the old one or the new one, also after a power cut. Mode 0600.
pub(super) fn replace(everything: Everything, now: u64, path: &Path) -> Result<(), WriteError> {
    let new = path.with_extension("jsonl.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let written =
        File::options().create_new(true).write(true).mode(0o600).open(&new).map_err(WriteError::from).and_then(
            |file| {
                write(everything, now, BufWriter::with_capacity(1 << 16, &file))?;
                file.sync_all()?;
                fs::rename(&new, path)?;
                Ok(())
            },
        );
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written?;
    if let Some(parent) = path.parent() {
        folder::sync_folder(parent)?;
    }
    Ok(())
}

/// A writer of lines that counts and hashes them.
struct Lines<W> {
    out: W,
    digest: Sha256,
    count: u64,
}

impl<W: Write> Lines<W> {
    fn write(&mut self, record: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.digest.update(&line);
        self.count += 1;
        self.out.write_all(&line)
    }
}

fn write(everything: Everything, now: u64, out: impl Write) -> Result<(), WriteError> {
    let mut lines = Lines { out, digest: Sha256::new(), count: 0 };
    lines.write(&Header {
        doorward_dump: VERSION,
        made: rfc3339(now),
        accounts: everything.counts.accounts,
        sessions: everything.counts.sessions,
        entries: everything.counts.entries,
        log_head: everything.log_head,
        sequence: everything.sequence,
        forgotten: everything.forgotten,
        longest: everything.longest,
    })?;
    for row in everything.rows {
        match row? {
            Row::Account(account) => lines.write(&Line::Account(AccountRow::from(&account)))?,
            Row::Session(session) => lines.write(&Line::Session(session))?,
            Row::Entry(entry) => lines.write(&Line::Entry(entry))?,
        }
    }
    let end = End { lines: lines.count, sha256: hex(&lines.digest.clone().finalize()) };
    lines.write(&Line::End(end))?;
    lines.out.flush()?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads and checks a whole dump: cut off or changed, it is an error and not half a store.
pub fn read_dump(mut reader: impl BufRead) -> Result<Import, RestoreError> {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    if !read_line(&mut reader, &mut line, 1)? {
        return Err(RestoreError::CutOff { line: 1 });
    }
    let header = read_header(&line)?;
    digest.update(&line);
    let mut dump = Reading::default();
    let mut number = 1;
    let end = loop {
        number += 1;
        if !read_line(&mut reader, &mut line, number)? {
            return Err(RestoreError::CutOff { line: number });
        }
        let invalid = |problem: String| RestoreError::Invalid { line: number, problem };
        // The parser's own text can quote the line, which may be a hash; its position is told instead.
        let record: Line<'_> = serde_json::from_slice(&line)
            .map_err(|error| invalid(format!("no record of a dump (column {})", error.column())))?;
        if let Line::End(end) = record {
            break end;
        }
        dump.add(record, header.log_head).map_err(invalid)?;
        digest.update(&line);
    };
    let invalid = |problem: &str| Err(RestoreError::Invalid { line: number, problem: problem.to_owned() });
    if end.lines != number - 1 {
        return invalid("lines are missing before this one, or there are too many");
    }
    if end.sha256 != hex(&digest.finalize()) {
        return invalid("the checksum does not fit: the dump was changed or damaged");
    }
    if counts_of(&dump.import)
        != (Counts { accounts: header.accounts, sessions: header.sessions, entries: header.entries })
    {
        return invalid("there are not as many records as the first line says");
    }
    if !reader.fill_buf().map_err(RestoreError::Read)?.is_empty() {
        return Err(RestoreError::Invalid {
            line: number + 1,
            problem: String::from("something follows the last line"),
        });
    }
    dump.import.log_head = header.log_head;
    dump.import.forgotten = header.forgotten;
    dump.import.longest = header.longest;
    Ok(dump.import)
}

fn read_header(line: &[u8]) -> Result<Header, RestoreError> {
    #[derive(Deserialize)]
    struct Version {
        doorward_dump: u64,
    }
    let invalid = |problem: String| RestoreError::Invalid { line: 1, problem };
    let version: Version =
        serde_json::from_slice(line).map_err(|_| invalid(String::from("this is no dump of a store")))?;
    if version.doorward_dump != VERSION {
        let found = version.doorward_dump;
        return Err(invalid(format!("the dump is of version {found}, this program reads version {VERSION}")));
    }
    serde_json::from_slice(line).map_err(|_| invalid(String::from("the first line is damaged")))
}

/// Reads one line with its end; `false` at the end of the file.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, number: u64) -> Result<bool, RestoreError> {
    line.clear();
    reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', line).map_err(RestoreError::Read)?;
    if line.is_empty() {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        return Ok(true);
    }
    if u64::try_from(line.len()).is_ok_and(|length| length == MAX_LINE_BYTES) {
        return Err(RestoreError::Invalid { line: number, problem: String::from("the line is too long") });
    }
    Err(RestoreError::CutOff { line: number })
}

/// What was read so far.
#[derive(Default)]
struct Reading {
    import: Import,
    seen: HashSet<String>,
    last_entry: u64,
}

impl Reading {
    fn add(&mut self, record: Line<'_>, log_head: u64) -> Result<(), String> {
        match record {
            Line::Account(row) => self.add_account(Account::from(row)),
            Line::Session(session) => self.add_session(session),
            Line::Entry(entry) => self.add_entry(entry, log_head),
            Line::End(_) => Ok(()),
        }
    }

    fn add_account(&mut self, account: Account) -> Result<(), String> {
        if !self.seen.insert(format!("name {}", account.username)) {
            return Err(format!("there are two accounts named {:?}", account.username.as_str()));
        }
        if !self.seen.insert(format!("account {}", account.id)) {
            return Err(format!("there are two accounts with the id {:?}", account.id.as_str()));
        }
        self.import.accounts.push(account);
        Ok(())
    }

    fn add_session(&mut self, session: Session) -> Result<(), String> {
        if !self.seen.insert(format!("session {}", session.id)) {
            return Err(format!("there are two sessions with the id {:?}", session.id.as_str()));
        }
        self.import.sessions.push(session);
        Ok(())
    }

    fn add_entry(&mut self, entry: LogEntry, log_head: u64) -> Result<(), String> {
        if entry.number <= self.last_entry || entry.number > log_head {
            return Err(format!("the log's numbers are out of order at {}", entry.number));
        }
        self.last_entry = entry.number;
        self.import.log.push(entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::conformance::{account, session};
    use super::super::{Memory, Revocation};
    use super::*;
    use crate::clock::Clock;

    fn sample(accounts: usize) -> Vec<u8> {
        let accounts: Vec<_> = (0..accounts).map(|number| account(&format!("user{number}"))).collect();
        let sessions = accounts.iter().map(|account| session(&account.id, 5)).collect();
        let log = vec![LogEntry { number: 4, what: Revocation::All, at: 1, expires: u64::MAX }];
        let mut out = Vec::new();
        write(Everything::from_parts(accounts, sessions, log, 9), 0, &mut out).unwrap();
        out
    }

    fn refusal(dump: &[u8]) -> String {
        let store = Memory::new(Clock::manual(0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(restore(dump, &store, None)).unwrap_err();
        assert!(runtime.block_on(store.accounts()).unwrap().is_empty());
        error.to_string()
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
        let good = String::from_utf8(sample(2)).unwrap();
        assert!(read_dump(good.as_bytes()).is_ok());
        let lines: Vec<&str> = good.lines().collect();
        let without = |left_out: usize| -> String {
            let kept = lines.iter().enumerate().filter(|(number, _)| *number != left_out);
            kept.map(|(_, line)| [line, "\n"].concat()).collect()
        };
        for (dump, told) in [
            (String::new(), "line 1: the dump is cut off"),
            (String::from("hello\n"), "line 1: this is no dump"),
            (good.replace("\"doorward_dump\":1", "\"doorward_dump\":2"), "line 1: the dump is of version 2"),
            (without(6), "line 7: the dump is cut off"),
            (without(2), "line 6: lines are missing"),
            (good.replace("user1@", "user7@"), "line 7: the checksum"),
            (good.replace("user1", "user0"), "line 3: there are two accounts named \"user0\""),
            (good.replace("\"number\":4", "\"number\":10"), "line 6: the log's numbers"),
            (good.replace("\"entries\":1", "\"entries\":2"), "line 7: the checksum"),
            (good.clone() + "\n", "line 8: something follows"),
            (good.replacen("{\"session\"", "{\"sermon\"", 1), "line 4: no record"),
            (format!("{}\n{}", lines[0], "x".repeat(600_000)), "line 2: the line is too long"),
        ] {
            let error = refusal(dump.as_bytes());
            assert!(error.starts_with(told), "{told} | {error}");
            assert!(!error.contains("$2b$"));
        }
    }

    #[tokio::test]
    async fn a_store_goes_into_another_one_as_it_is() {
        let source = Memory::new(Clock::manual(0));
        source.import(read_dump(sample(3).as_slice()).unwrap()).await.unwrap();
        let mut seen = 0;
        let everything = collect(source.export().await.unwrap(), || seen += 1).unwrap();
        assert_eq!((seen, everything.log_head), (7, 9));
        let target = Memory::new(Clock::manual(0));
        let filled = fill(&target, everything.clone()).await.unwrap();
        assert_eq!((filled.counts, filled.log_head), (Counts { accounts: 3, sessions: 3, entries: 1 }, 9));
        let rows = |dump: &[u8]| -> Vec<String> {
            let text = String::from_utf8(dump.to_vec()).unwrap();
            text.lines()
                .filter(|line| !line.contains("doorward_dump") && !line.contains("\"end\""))
                .map(str::to_owned)
                .collect()
        };
        let mut dumps = [Vec::new(), Vec::new()];
        write_dump(&source, 0, &mut dumps[0]).await.unwrap();
        write_dump(&target, 0, &mut dumps[1]).await.unwrap();
        assert_eq!(rows(&dumps[0]), rows(&dumps[1]));
        assert!(matches!(fill(&target, everything).await, Err(StoreError::NotEmpty)));
    }

    #[test]
    fn a_source_that_gives_less_than_it_says_is_not_copied() {
        let whole = || {
            let import = read_dump(sample(2).as_slice()).unwrap();
            Everything::from_parts(import.accounts, import.sessions, import.log, import.log_head)
        };
        let short = Everything { rows: Box::new(whole().rows.skip(1)), ..whole() };
        assert!(matches!(collect(short, || {}), Err(RestoreError::Source { .. })));
        let broken = std::iter::once(Err(StoreError::TimedOut));
        let broken = Everything { rows: Box::new(whole().rows.take(2).chain(broken)), ..whole() };
        assert!(matches!(collect(broken, || {}), Err(RestoreError::Store(StoreError::TimedOut))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_dump_that_was_cut_or_changed_is_never_restored(
            at in any::<proptest::sample::Index>(), bit in 0..8_u8, hostile in any::<Vec<u8>>(),
        ) {
            let good = sample(3);
            let at = at.index(good.len());
            prop_assert!(read_dump(&good[..at]).is_err());
            let mut flipped = good.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(read_dump(flipped.as_slice()).is_err());
            prop_assert!(read_dump(hostile.as_slice()).is_err());
            let first = good.iter().position(|byte| *byte == b'\n').unwrap();
            let started: Vec<u8> = good[..=first].iter().chain(&hostile).copied().collect();
            prop_assert!(read_dump(started.as_slice()).is_err());
        }
    }
}
