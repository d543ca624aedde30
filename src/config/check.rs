//! From the file to what was meant: every key is read, every problem is reported.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use super::reader::{Place, Problem, Report, Section, Text};
use super::secrets::{self, Environment};
use super::units::{ByteSize, Network, PathPrefix, RedirectHost, Span, address};
use super::{
    Admin, Algorithm, Central, Config, Cookie, Database, DatabaseTls, Limits, Listen, Log, LogFormat, Login, OnStale,
    SameSite, SecureCookie, Server, Store, StoreKind, Token,
};
use super::{central, routes, sense};
use crate::secret::Secret;

/// Reads and checks a file. `environment` looks environment variables up.
pub fn load(path: &Path, environment: &Environment<'_>) -> Result<Config, Vec<Problem>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        vec![Problem {
            file: path.to_owned(),
            line: 1,
            column: 1,
            key: String::new(),
            message: format!("the file can't be read: {}", crate::files::told(path)(error)),
        }]
    })?;
    parse(&text, path, environment)
}

/// Checks the text of a file. Relative paths in it are relative to the file's folder.
pub fn parse(text: &str, origin: &Path, environment: &Environment<'_>) -> Result<Config, Vec<Problem>> {
    let report = Report::new(origin, text);
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let place = error.span().unwrap_or(0..0);
            report.problem(&place, "", format!("this is no TOML: {}", error.message().replace('\n', ", ")));
            return Err(report.finish().0);
        }
    };
    let folder = origin.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let reading = Reading { folder, environment, named: RefCell::default() };
    let root = Section::new(&report, String::new(), Some(table.get_ref()), 0..0);
    let mut config = reading.whole(root);
    config.source = Some(origin.to_owned());
    config.files = reading.named.take();
    drop(table);
    let (problems, warnings) = report.finish();
    if problems.is_empty() {
        config.warnings = warnings;
        Ok(config)
    } else {
        Err(problems)
    }
}

/// What `log.level` says.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// What `store.kind` says.
#[derive(Clone, Copy)]
enum Kind {
    Sled,
    Postgres,
    None,
}

/// What reading needs beside the text.
pub(super) struct Reading<'e> {
    folder: PathBuf,
    pub(super) environment: &'e Environment<'e>,
    /// See [`Config::files`].
    named: RefCell<Vec<PathBuf>>,
}

impl Reading<'_> {
    /// A path of the file; relative ones start at the file's folder. One that would have to be expanded is reported.
    pub(super) fn path(&self, section: &Section<'_>, key: &str, text: &Text) -> PathBuf {
        if let Some(why) = sense::unexpanded(&text.text) {
            section.problem(&text.place, key, why);
        }
        self.folder.join(&text.text)
    }

    /// A file that is read, and read again when it has changed.
    pub(super) fn watched(&self, path: &Path) {
        let mut named = self.named.borrow_mut();
        if named.iter().all(|known| known != path) {
            named.push(path.to_owned());
        }
    }

    /// A file that a key names and that is read; `None` where the key is missing or empty.
    pub(super) fn file(&self, section: &Section<'_>, key: &'static str) -> Option<(PathBuf, Place)> {
        let file = self.place(section, key);
        if let Some((path, _)) = &file {
            self.watched(path);
        }
        file
    }

    /// The path of a file that a key names; `None` where the key is missing or empty.
    fn place(&self, section: &Section<'_>, key: &'static str) -> Option<(PathBuf, Place)> {
        let text = section.text(key).filter(|text| !text.text.is_empty())?;
        Some((self.path(section, key, &text), text.place))
    }

    fn whole(&self, root: Section<'_>) -> Config {
        let data_dir = match root.text("data_dir") {
            None => PathBuf::from("/var/lib/doorward"),
            Some(text) => {
                if text.text.is_empty() {
                    root.problem(&text.place, "data_dir", "is empty; write for example \"/var/lib/doorward\"");
                }
                self.path(&root, "data_dir", &text)
            }
        };
        let server_section = root.section("server");
        let handover = server_section.place_of("handover");
        let server = server(server_section);
        let handover = server.handover.then_some(handover);
        let admin = admin(root.section("admin"), &server);
        let store = self.store(root.section("store"), handover);
        let token_section = root.section("token");
        let centre = (store.kind == StoreKind::None).then(|| central::read(self, &token_section)).flatten();
        let token = self.token(token_section, store.kind == StoreKind::None);
        let cookie_section = root.section("cookie");
        let places =
            [cookie_section.place_of("domain"), cookie_section.place_of("path"), cookie_section.place_of("secure")];
        let cookie = cookie(cookie_section);
        let login_section = root.section("login");
        let login_url = central::login_url(&login_section, &store.kind, &cookie);
        let redirect_hosts = login_section.place_of("redirect_hosts");
        let login = login(login_section);
        let central = centre.zip(login_url).map(|(centre, login_url)| Central { login_url, ..centre });
        let portal_prefix = portal(root.section("portal"));
        let identity = super::identity::read(self, root.section("identity"));
        let upstreams = routes::upstreams(self, &root.section("upstream"), &server);
        if identity.basic_password.is_none() {
            for (name, section) in root.section("upstream").named() {
                if upstreams.get(&name.text).is_some_and(|upstream| upstream.basic) {
                    section.problem(&section.place_of("basic"), "basic", "needs identity.basic_password, or _file");
                }
            }
        }
        if store.kind == StoreKind::None {
            for (name, section) in root.section("upstream").named() {
                if upstreams.get(&name.text).is_some_and(|upstream| upstream.adopt_login) {
                    let problem = "needs a store here; with store.kind = \"none\" logins are the centre's";
                    section.problem(&section.place_of("adopt_login"), "adopt_login", problem);
                }
            }
        }
        let read_routes = routes::routes(&root, &upstreams, &portal_prefix);
        let tests = routes::tests(&root);
        let log = self.log(root.section("log"));
        let config = Config {
            source: None,
            data_dir,
            server,
            admin,
            store,
            token,
            central,
            cookie,
            login,
            portal_prefix,
            identity,
            upstreams,
            routes: read_routes,
            tests,
            log,
            files: Vec::new(),
            warnings: Vec::new(),
        };
        let [domain, path, secure] = places;
        let routes = root.sections("route").into_iter().map(|section| section.place).collect();
        sense::warn(&root, &config, &sense::Places { domain, path, secure, redirect_hosts, routes });
        root.close();
        config
    }

    /// `handover`: where `server.handover` is wanted.
    fn store(&self, section: Section<'_>, handover: Option<Place>) -> Store {
        let kinds = [("sled", Kind::Sled), ("postgres", Kind::Postgres), ("none", Kind::None)];
        let wanted = section.choice("kind", &kinds, Kind::Sled);
        if let Some(place) = handover.filter(|_| !matches!(wanted, Kind::Postgres)) {
            let message = "needs store.kind = \"postgres\": of another store there is one process only";
            section.report().problem(&place, "server.handover", message);
        }
        let pool_size = usize::try_from(section.integer("pool_size", 8, 1..=1000)).unwrap_or(8);
        let only_for_postgres = |kind| {
            if let Some((_, place)) = self.file(&section, "url_file") {
                section.problem(&place, "url_file", "is only for store.kind = \"postgres\"");
            }
            kind
        };
        let kind = match wanted {
            Kind::Sled => only_for_postgres(StoreKind::Sled),
            Kind::None => only_for_postgres(StoreKind::None),
            Kind::Postgres => match self.database(&section) {
                Some(database) => StoreKind::Postgres { database, pool_size },
                // A problem was reported, so this configuration is served by nobody.
                None => StoreKind::Sled,
            },
        };
        // A centre gives a sign of life every two seconds: less than two of them is no staleness.
        let least = if kind == StoreKind::None { "5s" } else { "1s" };
        let store = Store {
            kind,
            max_staleness: span(&section, "max_staleness", "10s", least, "1d"),
            on_stale: section.choice(
                "on_stale",
                &[("serve", OnStale::Serve), ("refuse", OnStale::Refuse)],
                OnStale::Serve,
            ),
            timeout: span(&section, "timeout", "2s", "10ms", "5m"),
        };
        section.close();
        store
    }

    /// `url_file` or `$DOORWARD_STORE_URL`. `None`: a problem was reported.
    fn database(&self, section: &Section<'_>) -> Option<Database> {
        let (place, read) = if let Some((path, place)) = self.file(section, "url_file") {
            secrets::warn_of_variable(self, section, "url_file", "DOORWARD_STORE_URL");
            (place, secrets::database_url(&path, self.environment))
        } else {
            let place = section.place_of("kind");
            let Some(url) = (self.environment)("DOORWARD_STORE_URL").filter(|url| !url.is_empty()) else {
                let message =
                    "\"postgres\" needs a URL: name a file that holds it as store.url_file, or set $DOORWARD_STORE_URL";
                section.problem(&place, "kind", message);
                return None;
            };
            (place, Ok((String::from("$DOORWARD_STORE_URL"), Secret::new(url))))
        };
        let parsed = read.and_then(|(origin, url)| {
            let database = Database::parse(url.expose().trim_end(), &self.folder);
            database.map_err(|problem| format!("{origin} {problem}"))
        });
        if let Some(path) = parsed.as_ref().ok().and_then(|database| database.roots.as_deref()) {
            self.watched(path);
        }
        let parsed = parsed.and_then(|database| match &database.roots {
            Some(path) if database.tls != DatabaseTls::Disable => routes::check_authorities(path)
                .map(|()| database.clone())
                .map_err(|why| format!("names {} as sslrootcert, which {why}", path.display())),
            _ => Ok(database),
        });
        match parsed {
            Ok(database) => {
                if database.tls == DatabaseTls::Require {
                    let message =
                        "sslmode=require encrypts, but believes whoever answers; verify-full knows the database";
                    section.report().warning(&place, &section.full("url_file"), message);
                }
                Some(database)
            }
            Err(message) => {
                section.problem(&place, "url_file", message);
                None
            }
        }
    }

    fn token(&self, section: Section<'_>, is_verify_only: bool) -> Token {
        let algorithm = section.choice(
            "algorithm",
            &[("HS256", Algorithm::Hs256), ("EdDSA", Algorithm::EdDsa), ("ES256", Algorithm::Es256)],
            Algorithm::Hs256,
        );
        let (signing_key, previous_keys) = if is_verify_only {
            central::refuse_keys(&section);
            (None, Vec::new())
        } else {
            central::refuse_urls(&section);
            let signing_key = secrets::signing_key(self, &section, algorithm, self.environment);
            (signing_key, secrets::previous_keys(self, &section))
        };
        let gateway_secret = secrets::revocation_token(self, &section);
        if gateway_secret.is_some() && !is_verify_only && algorithm == Algorithm::Hs256 {
            section.problem(
                &section.place_of("revocation_token_file"),
                "revocation_token_file",
                "is for verify-only gateways, which can't check HS256; set token.algorithm to \"EdDSA\" or \"ES256\"",
            );
        }
        let issuer = section.text_or("issuer", "doorward");
        if issuer.is_empty() || issuer.len() > 255 || issuer.chars().any(char::is_control) {
            section.problem(
                &section.place_of("issuer"),
                "issuer",
                "must be 1 to 255 characters without control characters",
            );
        }
        let lifetime = span(&section, "lifetime", "7d", "1m", "3660d");
        let max_lifetime = span(&section, "max_lifetime", "30d", "0s", "36600d");
        let half = Span::from(lifetime / 2);
        let refresh_below = section.parsed("refresh_below", half).duration();
        if refresh_below >= lifetime {
            let place = section.place_of("refresh_below");
            section.problem(&place, "refresh_below", "must be shorter than token.lifetime; half of it is the default");
        }
        if !max_lifetime.is_zero() && max_lifetime < lifetime {
            let place = section.place_of(if section.has("max_lifetime") { "max_lifetime" } else { "lifetime" });
            section.problem(&place, "max_lifetime", "must be at least token.lifetime, or \"0s\" for no limit");
        }
        section.close();
        Token { algorithm, signing_key, previous_keys, issuer, lifetime, refresh_below, max_lifetime, gateway_secret }
    }

    fn log(&self, section: Section<'_>) -> Log {
        let format = section.choice("format", &[("json", LogFormat::Json), ("text", LogFormat::Text)], LogFormat::Json);
        // Never the filter's own grammar: it takes every word for the name of a target, and silences all others.
        let level = section.choice("level", &LEVELS.map(|level| (level, level)), "info").to_owned();
        let access = section.boolean("access", true);
        let audit_file = self.place(&section, "audit_file").map(|(path, _)| path);
        section.close();
        Log { format, level, access, audit_file }
    }
}

/// Refuses by name what a later version brings.
fn not_built(section: &Section<'_>, key: &'static str, what: &str) {
    let place = section.place_of(key);
    section.problem(&place, key, format!("{what} is not built yet; remove this key"));
}

/// A duration with its default and its bounds.
pub(super) fn span(section: &Section<'_>, key: &'static str, default: &str, least: &str, most: &str) -> Duration {
    // The texts are ours and right; a slip would show in the test that loads the defaults.
    let own = |text: &str| text.parse::<Span>().unwrap_or(Span::from(Duration::ZERO)).duration();
    let value = section.parsed(key, Span::from(own(default))).duration();
    if value < own(least) || value > own(most) {
        let place = section.place_of(key);
        section.problem(&place, key, format!("is out of range; write something from \"{least}\" to \"{most}\""));
        return own(default);
    }
    value
}

fn server(section: Section<'_>) -> Server {
    let mut listen: Vec<Listen> = Vec::new();
    let texts = section.texts("listen");
    for text in &texts {
        match text.text.parse::<Listen>() {
            Ok(place) if listen.contains(&place) => {
                section.problem(&text.place, "listen", format!("{:?} is named twice", text.text));
            }
            Ok(place) => listen.push(place),
            Err(error) => section.problem(&text.place, "listen", error.to_string()),
        }
    }
    if texts.is_empty() {
        if section.has("listen") {
            section.problem(&section.place_of("listen"), "listen", "is empty; write for example [\"127.0.0.1:8080\"]");
        }
        listen.push(Listen::Tcp(([127, 0, 0, 1], 8080).into()));
    }
    let workers = match section.integer("workers", 0, 0..=1024) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => usize::try_from(workers).unwrap_or(1),
    };
    if section.boolean("h2c", false) {
        not_built(&section, "h2c", "HTTP/2 without TLS");
    }
    let mut trusted_proxies = Vec::new();
    for text in section.texts("trusted_proxies") {
        match text.text.parse::<Network>() {
            Ok(network) => trusted_proxies.push(network.0),
            Err(error) => section.problem(&text.place, "trusted_proxies", error.to_string()),
        }
    }
    let drain = span(&section, "drain", "30s", "0s", "1d");
    let drain_delay = span(&section, "drain_delay", "0s", "0s", "1h");
    if section.has("tls") {
        not_built(&section, "tls", "TLS on the listener");
    }
    let handover = section.boolean("handover", false);
    let limits = limits(section.section("limits"));
    section.close();
    Server { listen, workers, trusted_proxies, drain, drain_delay, handover, limits }
}

fn limits(section: Section<'_>) -> Limits {
    let max_header_bytes = section.parsed("max_header_bytes", ByteSize(32 * 1024)).0;
    // Below 4 KiB no token fits beside an ordinary browser's head; above 1 MiB nobody's head is honest.
    let max_header_bytes = if (4 * 1024..=1024 * 1024).contains(&max_header_bytes) {
        max_header_bytes
    } else {
        section.problem(
            &section.place_of("max_header_bytes"),
            "max_header_bytes",
            "is out of range; write something from \"4KiB\" to \"1MiB\"",
        );
        32 * 1024
    };
    let integer = |key, default, range| usize::try_from(section.integer(key, default, range)).unwrap_or(usize::MAX);
    let limits = Limits {
        header_timeout: span(&section, "header_timeout", "10s", "100ms", "10m"),
        idle_timeout: span(&section, "idle_timeout", "75s", "100ms", "1d"),
        max_headers: integer("max_headers", 100, 16..=1000),
        max_header_bytes,
        body_timeout: span(&section, "body_timeout", "60s", "100ms", "1d"),
        stall_timeout: span(&section, "stall_timeout", "10m", "100ms", "7d"),
        max_connections: integer("max_connections", 10_000, 1..=1_000_000),
    };
    section.close();
    limits
}

fn admin(section: Section<'_>, server: &Server) -> Admin {
    let listen = match section.text("listen") {
        None => Some(([127, 0, 0, 1], 9180).into()),
        Some(text) if text.text.is_empty() => None,
        Some(text) => match address(&text.text) {
            Ok(address) => Some(address),
            Err(error) => {
                section.problem(&text.place, "listen", error.to_string());
                None
            }
        },
    };
    if listen.is_some_and(|address| address.port() != 0 && server.listen.contains(&Listen::Tcp(address))) {
        section.problem(
            &section.place_of("listen"),
            "listen",
            "is one of server.listen; the admin listener needs its own",
        );
    }
    section.close();
    Admin { listen }
}

fn cookie(section: Section<'_>) -> Cookie {
    let name = section.text_or("name", "access_token");
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_token) {
        section.problem(&section.place_of("name"), "name", "must be 1 to 64 letters, digits, \"-\" or \"_\"");
    }
    let domain = section.text_or("domain", "").trim_start_matches('.').to_ascii_lowercase();
    let is_domain = domain.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    if !domain.is_empty() && (!is_domain || !domain.contains('.') || domain.parse::<std::net::IpAddr>().is_ok()) {
        let place = section.place_of("domain");
        section.problem(&place, "domain", "must be a domain such as \"example.com\", or \"\" for this host only");
    }
    let path = section.text_or("path", "/");
    if !path.starts_with('/') || path.bytes().any(|byte| byte == b';' || byte.is_ascii_control() || !byte.is_ascii()) {
        section.problem(&section.place_of("path"), "path", "must begin with \"/\" and hold no \";\"");
    }
    let secure = secure(&section);
    let same_site = section.choice(
        "same_site",
        &[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)],
        SameSite::Lax,
    );
    if same_site == SameSite::None && secure != SecureCookie::Always {
        let place = section.place_of("same_site");
        section.problem(&place, "same_site", "\"none\" needs secure = true: browsers drop the cookie otherwise");
    }
    // Browsers compare these prefixes without regard to letter case (RFC 6265bis section 5.4).
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("__host-") && (!domain.is_empty() || path != "/" || secure != SecureCookie::Always) {
        let place = section.place_of("name");
        section.problem(
            &place,
            "name",
            "__Host- needs secure = true, path = \"/\" and no domain: browsers drop the cookie otherwise",
        );
    }
    if lower.starts_with("__secure-") && secure != SecureCookie::Always {
        section.problem(&section.place_of("name"), "name", "__Secure- needs secure = true");
    }
    section.close();
    Cookie { name, domain, path, secure, same_site }
}

/// `true`, `false` or `"auto"`.
fn secure(section: &Section<'_>) -> SecureCookie {
    if section.is_text("secure") {
        return section.choice("secure", &[("auto", SecureCookie::Auto)], SecureCookie::Auto);
    }
    if !section.has("secure") {
        return SecureCookie::Auto;
    }
    if section.boolean("secure", true) { SecureCookie::Always } else { SecureCookie::Never }
}

fn login(section: Section<'_>) -> Login {
    let bcrypt_cost = u32::try_from(section.integer("bcrypt_cost", 12, 4..=16)).unwrap_or(12);
    if bcrypt_cost < 10 {
        let place = section.place_of("bcrypt_cost");
        let key = section.full("bcrypt_cost");
        section.report().warning(&place, &key, "under 10 is for tests: a stolen store is soon read");
    }
    let mut redirect_hosts = Vec::new();
    for text in section.texts("redirect_hosts") {
        match text.text.parse::<RedirectHost>() {
            Ok(host) => redirect_hosts.push(host.0),
            Err(error) => section.problem(&text.place, "redirect_hosts", error.to_string()),
        }
    }
    let title = section.text_or("title", "Sign in");
    if title.is_empty() || title.chars().count() > 100 {
        section.problem(&section.place_of("title"), "title", "must be 1 to 100 characters");
    }
    let help = section.text_or("help", "");
    if help.chars().count() > 500 || help.chars().any(char::is_control) {
        section.problem(&section.place_of("help"), "help", "must be one line of at most 500 characters");
    }
    let max_attempts = section.integer("max_attempts", 5, 1..=1_000_000_000);
    // Where one account may be tried more often than a network by default, so may a network.
    let per_network = section.integer("max_attempts_per_network", max_attempts.max(50), 0..=1_000_000_000);
    let login = Login {
        bcrypt_cost,
        max_attempts: u32::try_from(max_attempts).unwrap_or(5),
        max_attempts_per_network: u32::try_from(per_network).unwrap_or(50),
        window: span(&section, "window", "5m", "1s", "30d"),
        min_password_length: usize::try_from(section.integer("min_password_length", 8, 1..=256)).unwrap_or(8),
        redirect_hosts,
        title,
        help,
    };
    section.close();
    login
}

fn portal(section: Section<'_>) -> String {
    let prefix = match section.text("prefix") {
        Some(prefix) if !prefix.text.is_empty() => match prefix.text.parse::<PathPrefix>() {
            Ok(path) if path.0 == "/" => String::new(),
            Ok(path) if path.0.bytes().all(|byte| byte.is_ascii_graphic()) => path.0,
            Ok(_) => {
                section.problem(&prefix.place, "prefix", "must be ASCII without blanks, for example \"/_auth\"");
                String::new()
            }
            Err(error) => {
                section.problem(&prefix.place, "prefix", error.to_string());
                String::new()
            }
        },
        _ => String::new(),
    };
    section.close();
    prefix
}
