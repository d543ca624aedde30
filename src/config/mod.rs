//! What the operator meant. `file` mirrors the TOML, `check` turns it into [`Config`] and reports every problem at once.
//!
//! Everything here is already checked: a [`Config`] that exists can be served.

mod central;
mod check;
mod database;
pub mod diff;
mod identity;
mod inside;
mod locate;
mod protect;
mod reader;
mod routes;
mod secrets;
mod sense;
#[cfg(test)]
mod tests;
pub mod units;
mod urls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use self::check::load;
pub use self::check::parse;
pub use self::database::{Database, DatabaseTls};
pub use self::locate::problem_at;
pub use self::protect::{Protection, protect_toml};
#[cfg(any(test, fuzzing))]
pub use self::reader::Problem;
pub use self::secrets::from_process;
use crate::secret::Secret;

/// A whole, checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it came from, where there is one.
    pub source: Option<PathBuf>,
    /// Store, generated keys, admin socket.
    pub data_dir: PathBuf,
    pub server: Server,
    pub admin: Admin,
    pub store: Store,
    pub token: Token,
    /// Who decides in this gateway's place: `Some` exactly where `store.kind` is `none`.
    pub central: Option<Central>,
    pub cookie: Cookie,
    pub login: Login,
    /// Where the portal's endpoints live: `""` or a path such as `/_auth` (no trailing slash).
    pub portal_prefix: String,
    pub identity: Identity,
    /// By name, as `[upstream.NAME]` gives it.
    pub upstreams: BTreeMap<String, Upstream>,
    /// In the order of the file.
    pub routes: Vec<Route>,
    /// `[[test]]`, already run by the check.
    pub tests: Vec<PolicyTest>,
    pub log: Log,
    /// Every file that was read beside the configuration itself: secrets, keys, certificates. A change of one is a change
    /// of the configuration.
    pub files: Vec<PathBuf>,
    /// Things that are allowed but unwise, each a sentence with its place (`FILE:LINE:COLUMN: key: …`).
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub listen: Vec<Listen>,
    /// Number of worker threads; never 0 here.
    pub workers: usize,
    pub trusted_proxies: Vec<IpNet>,
    pub drain: Duration,
    /// How long new connections are still accepted after the signal to end, while `/ready` says no.
    pub drain_delay: Duration,
    /// Whether the next process on this data folder takes the listening sockets over.
    pub handover: bool,
    pub limits: Limits,
}

/// One place to accept connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `HOST:PORT`; port 0 takes any free one.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(PathBuf),
    /// `fd:NAME`, handed over by the service manager.
    Descriptor(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_headers: usize,
    /// Bytes, request line included.
    pub max_header_bytes: usize,
    pub body_timeout: Duration,
    /// How long a client may leave an answer untaken.
    pub stall_timeout: Duration,
    pub max_connections: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `None`: no admin listener.
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    pub kind: StoreKind,
    pub max_staleness: Duration,
    pub on_stale: OnStale,
    /// How long one call to the store may take.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Sled,
    Postgres {
        database: Database,
        /// Connections, the one that listens not counted; at least 1.
        pool_size: usize,
    },
    /// A verify-only gateway: accounts, sessions and keys are its centre's.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStale {
    Serve,
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Hs256,
    EdDsa,
    Es256,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub algorithm: Algorithm,
    /// What signs: read from its file or the environment when the configuration was checked.
    /// `None`: the newest key of that algorithm in `data_dir/keys`.
    pub signing_key: Option<KeyMaterial>,
    /// Still accepted, no longer used to sign.
    pub previous_keys: Vec<KeyMaterial>,
    pub issuer: String,
    pub lifetime: Duration,
    pub refresh_below: Duration,
    /// From the login on; zero: no limit.
    pub max_lifetime: Duration,
    /// What a verify-only gateway shows to its centre: here the one that is asked for, there the one that is sent.
    /// `None`: this gateway is nobody's centre.
    pub gateway_secret: Option<Secret<String>>,
}

/// The centre of a verify-only gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Central {
    pub jwks: CentralUrl,
    /// The revocation feed; renewals and logouts are asked for beside it.
    pub revocations: CentralUrl,
    /// The only algorithm whose keys count; `None`: both that have public keys.
    pub algorithm: Option<Algorithm>,
    /// Where people log in, as their browsers reach it: a whole URL that ends with `/login`.
    pub login_url: String,
    /// `https`: an own CA.
    pub ca_file: Option<PathBuf>,
}

/// One URL at the centre.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CentralUrl {
    pub server: UpstreamUrl,
    /// For `Host`.
    pub authority: String,
    /// Begins with `/`.
    pub path: String,
}

/// One key as it was read.
#[derive(Clone, Debug)]
pub struct KeyMaterial {
    /// The file, or `$JWT_SECRET`; for messages.
    pub origin: String,
    pub algorithm: Algorithm,
    /// HS256: the secret's bytes less one final newline. EdDSA and ES256: a PKCS #8 PEM.
    pub bytes: Secret<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    pub name: String,
    /// `""`: this host only.
    pub domain: String,
    pub path: String,
    pub secure: SecureCookie,
    pub same_site: SameSite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecureCookie {
    Always,
    Never,
    /// Unless the browser came over plain HTTP.
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    Lax,
    Strict,
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub bcrypt_cost: u32,
    pub max_attempts: u32,
    /// Under any names; 0: no limit.
    pub max_attempts_per_network: u32,
    pub window: Duration,
    /// Characters, not bytes.
    pub min_password_length: usize,
    /// Lower-case host names, with a port where one was given, to which `rd` may lead.
    pub redirect_hosts: Vec<String>,
    pub title: String,
    /// Whom to ask, in the operator's words; empty: nothing is said. Plain text.
    pub help: String,
}

#[derive(Clone, Debug)]
pub struct Identity {
    /// Every header that is sent, preset and configured ones together, in order.
    pub headers: Vec<IdentityHeader>,
    /// The subset that the file configured under `[identity.headers]`; `/check` sends these too.
    pub configured: Vec<IdentityHeader>,
    /// Headers of guarded families that pass all the same; none of those that are sent.
    pub pass: Vec<http::HeaderName>,
    /// Handed over with the person's name to the upstreams that ask for it (`basic = true`).
    pub basic_password: Option<Secret<String>>,
}

/// One identity header and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityHeader {
    pub name: http::HeaderName,
    pub template: Vec<TemplatePart>,
}

/// A piece of a header template such as `"{username}"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    Text(String),
    Id,
    Username,
    Email,
    /// Comma-separated.
    Groups,
    DisplayName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    /// At least one.
    pub urls: Vec<UpstreamUrl>,
    pub host: UpstreamHost,
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    /// `None`: passive health checks only.
    pub health_path: Option<String>,
    pub ca_file: Option<PathBuf>,
    /// Named in the TLS handshake, and to be proved by the certificate, in place of the URL's host.
    pub server_name: Option<String>,
    pub reuse: Reuse,
    /// This backend gets the access token too, because it verifies it itself.
    pub forward_token: bool,
    /// A token that this backend sets as our cookie becomes a session, and its deletion of the cookie is a logout.
    pub adopt_login: bool,
    /// This backend gets `Authorization: Basic` with the person's name and `identity.basic_password`, and nobody else's.
    pub basic: bool,
}

/// When a connection to a backend may serve another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Also after a request that had a body: for a backend that is known to read what it is sent.
    Always,
    WithoutBody,
    /// Each request has a connection of its own.
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamUrl {
    /// `http://host:port`; the host is a name or an address without brackets.
    Http { host: String, port: u16 },
    /// `https://host:port`.
    Https { host: String, port: u16 },
    /// `unix:/path`.
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamHost {
    Preserve,
    Upstream,
    Fixed(String),
}

/// One `[[route]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// For logs and `explain`: `HOST/PATH` as the file wrote it, with the methods where it names some.
    pub name: String,
    pub host: HostPattern,
    /// Starts with `/`; no trailing slash unless it is `/` itself.
    pub path: String,
    pub exact: bool,
    /// Empty: all. `GET` covers `HEAD`.
    pub methods: Vec<http::Method>,
    pub access: Access,
    pub groups: Vec<String>,
    /// Canonical user names.
    pub users: Vec<String>,
    pub api: bool,
    /// `""`, or a prefix of `path`.
    pub strip_prefix: String,
    /// Name of an upstream; `None` only where `access` is [`Access::Deny`].
    pub upstream: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    Any,
    /// Lower case, no port, no trailing dot.
    Exact(String),
    /// `*.example.com` holds `example.com`: exactly one label before it.
    Wildcard(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Required,
    Optional,
    Public,
    Deny,
}

/// One `[[test]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTest {
    pub method: http::Method,
    /// As in the file.
    pub url: String,
    pub user: Option<String>,
    pub groups: Vec<String>,
    pub expect: Expectation,
    /// Where it stands, as `FILE:LINE:COLUMN`.
    pub place: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    Allow,
    Deny,
    Login,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    pub access: bool,
    /// `None`: with the log.
    pub audit_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

impl Central {
    /// The centre's own page, such as `account`.
    #[must_use]
    pub fn page(&self, name: &str) -> String {
        format!("{}/{name}", self.login_url.strip_suffix("/login").unwrap_or(&self.login_url))
    }
}

impl CentralUrl {
    /// The URL beside this one: `name` in place of the last segment.
    #[must_use]
    pub fn beside(&self, name: &str) -> Self {
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Self { path: format!("{folder}/{name}"), ..self.clone() }
    }
}

impl std::fmt::Display for CentralUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if matches!(self.server, UpstreamUrl::Https { .. }) { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl Token {
    /// The longest time after its `iat` for which a token can be accepted. Verification caps `exp` with it, and an
    /// entry of the revocation log that covers tokens of unknown end is kept that long.
    #[must_use]
    pub fn horizon(&self) -> Duration {
        const YEAR: Duration = Duration::from_hours(366 * 24);
        if self.max_lifetime.is_zero() { self.lifetime.max(YEAR) } else { self.lifetime.max(self.max_lifetime) }
    }
}
