//! What a reload can't change. Taken apart field by field, so that a new key can't be forgotten.

use super::{Config, Server};

/// The keys whose change waits for a restart.
#[must_use]
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        source: _,
        data_dir,
        server: Server { listen, workers, trusted_proxies: _, drain: _, drain_delay: _, handover, limits },
        admin,
        store,
        token: _,
        central,
        cookie: _,
        login: _,
        portal_prefix: _,
        identity: _,
        upstreams: _,
        routes: _,
        tests: _,
        log,
        files: _,
        warnings: _,
    } = old;
    let mut keys = Vec::new();
    let mut note = |changed: bool, key| {
        if changed {
            keys.push(key);
        }
    };
    note(*data_dir != new.data_dir, "data_dir");
    note(*listen != new.server.listen, "server.listen");
    note(*workers != new.server.workers, "server.workers");
    note(*handover != new.server.handover, "server.handover");
    note(limits.max_connections != new.server.limits.max_connections, "server.limits.max_connections");
    note(*admin != new.admin, "admin.listen");
    note(*store != new.store, "store");
    note(*central != new.central, "the centre's URLs (token.jwks_url, token.revocation_url, login.url)");
    note(*log != new.log, "log");
    keys
}
