//! Putting a changed configuration in force: checked whole first, swapped at once, or reported and left alone.
//!
//! Watched are the file and every file that it names: secrets, keys, certificates. Events tell at once of what happens in
//! their folders; a look every two seconds tells of the rest: file systems without events, and links that are changed
//! further up, as in `current/secret`.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::centre::Centre;
use crate::config::{self, Config};
use crate::gate::{Live, Shared};
use crate::telemetry::audit::Event;

/// Told of every configuration that came into force.
type Swapped = Box<dyn Fn(&Arc<Live>)>;

/// Reads one configuration file again and again.
pub(super) struct Reloader {
    shared: Arc<Shared>,
    source: PathBuf,
    /// Whose keys are in force, for a verify-only gateway.
    centre: Option<Rc<Centre>>,
    swapped: Swapped,
    /// The last try did not get as far as a whole configuration: a file is missing, or not whole yet.
    is_unreadable: Cell<bool>,
}

impl Reloader {
    pub(super) fn new(
        shared: Arc<Shared>,
        source: PathBuf,
        centre: Option<Rc<Centre>>,
        swapped: impl Fn(&Arc<Live>) + 'static,
    ) -> Rc<Self> {
        Rc::new(Self { shared, source, centre, swapped: Box::new(swapped), is_unreadable: Cell::new(false) })
    }

    /// Reads the file and puts it in force. The error says everything that is wrong; the old one stays.
    pub(super) fn reload(&self) -> Result<(), String> {
        let outcome = self.try_to();
        let telemetry = self.shared.telemetry();
        // Log rotation moves the file away and says so with the same signal.
        telemetry.audit.look_for_file();
        match &outcome {
            Ok(()) => {
                telemetry.metrics.reload("ok");
                telemetry.audit.record(&Event { event: "reload", outcome: "ok", ..Event::default() });
                tracing::info!(file = %self.source.display(), "the configuration was read again and is in force");
            }
            Err(problems) => {
                telemetry.metrics.reload("refused");
                telemetry.audit.record(&Event {
                    event: "reload",
                    outcome: "refused",
                    detail: problems,
                    ..Event::default()
                });
                tracing::error!(file = %self.source.display(), %problems, "the new configuration is refused; the old one stays in force");
            }
        }
        outcome
    }

    fn try_to(&self) -> Result<(), String> {
        let loaded = config::load(&self.source, &config::from_process);
        self.is_unreadable.set(loaded.is_err());
        let mut config =
            loaded.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        let current = self.shared.live();
        let fixed = config::diff::needs_restart(&current.config, &config);
        if !fixed.is_empty() {
            tracing::warn!(keys = fixed.join(", "), "changed, but in force only after a restart");
            keep_what_is_fixed(&current.config, &mut config);
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let live = Live::new(config, self.shared.clock(), &self.shared.telemetry().metrics)
            .map_err(|error| error.to_string())?;
        let live = match &self.centre {
            Some(centre) => {
                let ring = centre.reloaded(&live.config.token);
                live.with_ring(ring)
            }
            None => live,
        };
        self.shared.replace(live);
        (self.swapped)(&self.shared.live());
        Ok(())
    }

    /// Reloads whenever the file's content, or a file that it names, has changed, as long as the process runs. Watches the
    /// folders, for editors and Kubernetes replace a file, or a link to its folder, by renaming another one over it.
    pub(super) async fn watch(self: Rc<Self>) {
        let mut folders = Folders::new();
        let mut seen = Seen::of(self.files());
        loop {
            folders.follow(&seen);
            folders.wait().await;
            let now = Seen::of(self.files());
            let has_changed = now.differs_from(&seen);
            seen = now;
            // What a refusal was about may lie outside of what is watched: a new file's, or a folder's mode.
            let is_readable_again =
                || self.is_unreadable.get() && config::load(&self.source, &config::from_process).is_ok();
            if has_changed || is_readable_again() {
                // Reported where it is done.
                let _ = self.reload();
                seen.go_on_with(self.files());
            }
        }
    }

    /// The configuration first, then what it names.
    fn files(&self) -> Vec<PathBuf> {
        let live = self.shared.live();
        std::iter::once(&self.source).chain(&live.config.files).cloned().collect()
    }
}

/// What tells one state of a file from another without reading it: number, size, change, owner and mode.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp([u64; 5], [i64; 2]);

impl Stamp {
    /// `None`: there is no such file, or it can't be seen. Links are followed.
    fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        let owner = u64::from(file.uid()) << 32 | u64::from(file.gid());
        Some(Self(
            [file.dev(), file.ino(), file.size(), owner, u64::from(file.mode())],
            [file.mtime(), file.mtime_nsec()],
        ))
    }
}

/// The files as they were at one time.
struct Seen {
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    /// The configuration's text: it is often written anew as it was.
    text: Option<Vec<u8>>,
}

impl Seen {
    fn of(files: Vec<PathBuf>) -> Self {
        // First the stamps: what changes in between is seen the next time.
        let stamps: Vec<_> = files
            .into_iter()
            .map(|path| {
                let stamp = Stamp::of(&path);
                (path, stamp)
            })
            .collect();
        let text = stamps.first().and_then(|(source, _)| std::fs::read(source).ok());
        Self { stamps, text }
    }

    /// A configuration that is away for the moment is no change.
    fn differs_from(&self, before: &Self) -> bool {
        self.text.is_some() && (self.text != before.text || self.stamps.get(1..) != before.stamps.get(1..))
    }

    /// After a reload other files may be named. What was seen before it stays, for it may have changed since.
    fn go_on_with(&mut self, files: Vec<PathBuf>) {
        let before = std::mem::take(&mut self.stamps);
        let stamp = |path: &PathBuf| before.iter().find(|(known, _)| known == path).map(|(_, stamp)| *stamp);
        self.stamps = files
            .into_iter()
            .map(|path| {
                let stamp = stamp(&path).unwrap_or_else(|| Stamp::of(&path));
                (path, stamp)
            })
            .collect();
    }
}

/// The folders of the watched files.
struct Folders {
    watcher: Option<notify::RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    events: mpsc::UnboundedReceiver<()>,
    /// Keeps `events` open where nothing can be watched.
    _sender: mpsc::UnboundedSender<()>,
}

impl Folders {
    fn new() -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let told = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Whoever only reads changes nothing; we read it ourselves, and would wake ourselves up for ever.
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            // The receiver is gone only while the process ends.
            let _ = told.send(());
        });
        let watcher = watcher
            .inspect_err(
                |error| tracing::info!(%error, "no events of changed files; they are looked at every two seconds"),
            )
            .ok();
        Self { watcher, watched: BTreeSet::new(), events, _sender: sender }
    }

    fn follow(&mut self, seen: &Seen) {
        let Some(watcher) = &mut self.watcher else { return };
        let folder = |path: &Path| {
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
        };
        let wanted: BTreeSet<PathBuf> = seen.stamps.iter().map(|(path, _)| folder(path)).collect();
        for gone in self.watched.difference(&wanted) {
            // It may be gone itself.
            let _ = watcher.unwatch(gone);
        }
        // One that can't be watched is tried again, and its files are looked at meanwhile.
        let new = wanted.into_iter().filter(|folder| {
            self.watched.contains(folder) || watcher.watch(folder, RecursiveMode::NonRecursive).is_ok()
        });
        self.watched = new.collect();
    }

    /// Until something has happened and a writer has had time to finish, or it is time for a look.
    async fn wait(&mut self) {
        const LOOK: Duration = Duration::from_secs(2);
        const QUIET: Duration = Duration::from_millis(200);
        if !matches!(tokio::time::timeout(LOOK, self.events.recv()).await, Ok(Some(()))) {
            return;
        }
        let quiet = async { while let Ok(Some(())) = tokio::time::timeout(QUIET, self.events.recv()).await {} };
        // A log that grows in the same folder never lets it be quiet.
        let _ = tokio::time::timeout(LOOK, quiet).await;
    }
}

/// What can't change while the process runs stays as it is, so that what is in force is one consistent whole.
fn keep_what_is_fixed(current: &Config, new: &mut Config) {
    new.data_dir.clone_from(&current.data_dir);
    new.server.listen.clone_from(&current.server.listen);
    new.server.workers = current.server.workers;
    new.admin = current.admin.clone();
    new.store = current.store.clone();
    if new.central.is_some() != current.central.is_some() {
        // Keys of the one kind of gateway are none for the other.
        new.token = current.token.clone();
    }
    new.central.clone_from(&current.central);
    new.log = current.log.clone();
}
