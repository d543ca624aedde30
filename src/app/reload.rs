//! Putting a changed configuration in force: checked whole first, swapped at once, or reported and left alone.

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
}

impl Reloader {
    pub(super) fn new(
        shared: Arc<Shared>,
        source: PathBuf,
        centre: Option<Rc<Centre>>,
        swapped: impl Fn(&Arc<Live>) + 'static,
    ) -> Rc<Self> {
        Rc::new(Self { shared, source, centre, swapped: Box::new(swapped) })
    }

    /// Reads the file and puts it in force. The error says everything that is wrong; the old one stays.
    pub(super) fn reload(&self) -> Result<(), String> {
        let outcome = self.try_to();
        let telemetry = self.shared.telemetry();
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
        let mut config = config::load(&self.source, &config::from_process)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
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

    /// Reloads whenever the file's content has changed, as long as the process runs. Watches the folder, for editors and
    /// Kubernetes replace the file by renaming another one over it.
    pub(super) async fn watch(self: Rc<Self>) {
        const QUIET: Duration = Duration::from_millis(200);
        let (sender, mut events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Whoever only reads changes nothing; we read it ourselves, and would wake ourselves up for ever.
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            // The receiver is gone only while the process ends.
            let _ = sender.send(());
        });
        let folder = self.source.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let _watcher = match watching {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::warn!(%error, "the configuration file can't be watched; send SIGHUP after a change");
                return;
            }
        };
        let mut seen = std::fs::read(&self.source).ok();
        while events.recv().await.is_some() {
            // Let a writer finish: wait until nothing has happened for a moment.
            while let Ok(Some(())) = tokio::time::timeout(QUIET, events.recv()).await {}
            let now = std::fs::read(&self.source).ok();
            if now.is_some() && now != seen {
                seen = now;
                // Reported where it is done.
                let _ = self.reload();
            }
        }
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
