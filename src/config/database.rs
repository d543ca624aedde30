//! `store.url_file`: where a PostgreSQL database is, and how the way to it is guarded.
//!
//! The URL is libpq's. Two of its parameters are ours: `sslmode` and `sslrootcert`. There is no `allow` and no `prefer`:
//! both fall back to plain text whenever somebody on the way wants them to.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use crate::secret::Secret;

/// Where PostgreSQL listens when nobody says otherwise.
const DEFAULT_PORT: u16 = 5432;

/// A database, and how to reach it.
#[derive(Clone, Debug)]
pub struct Database {
    /// The URL without the parameters that are ours.
    url: Secret<String>,
    pub tls: DatabaseTls,
    /// `sslrootcert`: the certificates to trust; `None`: the system's.
    pub roots: Option<PathBuf>,
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseTls {
    /// Plain text.
    Disable,
    /// Encrypted, with whoever answers. With `sslrootcert` it is `verify-ca`, as in libpq.
    Require,
    /// The certificate must come from a trusted authority.
    VerifyCa,
    /// It must be the host's as well.
    VerifyFull,
}

impl PartialEq for Database {
    fn eq(&self, other: &Self) -> bool {
        let same_url = self.url.matches(other.url.expose().as_bytes());
        same_url && self.tls == other.tls && self.roots == other.roots
    }
}

impl Eq for Database {}

impl Database {
    /// Reads a URL. Relative paths in it start at `folder`. What is wrong is said without quoting any of it.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        const FORM: &str = "write postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full";
        if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
            let why = super::sense::wrapped(text.as_bytes()).map(|what| format!("; it {what}")).unwrap_or_default();
            return Err(format!("holds no URL of a PostgreSQL database{why}; {FORM}"));
        }
        // What another reader of such a URL would see otherwise, or a second line that is not for this file.
        if text.chars().any(|sign| sign.is_whitespace() || sign.is_control()) {
            return Err(String::from(
                "holds white space within the URL; write it as %20, and nothing else into the file",
            ));
        }
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        let after_host = place.rsplit_once('@').map_or(place, |(_, after)| after);
        if after_host.contains('#') || query.contains('#') {
            return Err(String::from("holds a \"#\", which ends a URL; write it as %23"));
        }
        let (mut kept, mut mode, mut roots) = (form_urlencoded::Serializer::new(String::new()), None, None);
        let mut seen = std::collections::BTreeSet::new();
        for (name, value) in form_urlencoded::parse(query.replace('+', "%2B").as_bytes()) {
            check_parameter(&name, &value)?;
            if name != "host" && name != "hostaddr" && name != "port" && !seen.insert(name.clone()) {
                return Err(format!("holds the parameter {name} twice"));
            }
            match &*name {
                "sslmode" => mode = Some(sslmode(&value)?),
                "sslrootcert" if value == "system" => roots = None,
                "sslrootcert" => roots = Some(folder.join(&*value)),
                // Changes are needed, so there is one answer; whoever asks for another has mixed something up.
                "target_session_attrs" if ["read-write", "primary", "any"].contains(&&*value) => {}
                "target_session_attrs" => {
                    return Err(String::from(
                        "holds a target_session_attrs that does not fit: Doorward writes; leave it out, or say read-write",
                    ));
                }
                "sslcert" | "sslkey" | "channel_binding" | "sslnegotiation" => {
                    return Err(format!("holds the parameter {name}, which is not built; leave it out"));
                }
                _ => {
                    kept.append_pair(&name, &value);
                }
            }
        }
        // libpq knows no `+` for a space.
        let kept = kept.finish().replace('+', "%20");
        let url = if kept.is_empty() { place.to_owned() } else { format!("{place}?{kept}") };
        // The parser's own words may quote what it did not understand.
        let config = tokio_postgres::Config::from_str(&url)
            .map_err(|_| format!("holds a URL that can't be read, or a parameter of it that is not known; {FORM}"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(format!("holds a URL without a host; {FORM}"));
        }
        let (names, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
        let hosts = names.len().max(addresses.len());
        if ports.len() > 1 && ports.len() != hosts {
            return Err(format!("names {hosts} hosts and {} ports", ports.len()));
        }
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(format!("names {} hosts and {} times hostaddr", names.len(), addresses.len()));
        }
        let tls = match mode {
            Some(DatabaseTls::Require) if roots.is_some() => DatabaseTls::VerifyCa,
            Some(mode) => mode,
            None if stays_here(&config) => DatabaseTls::Disable,
            None => DatabaseTls::VerifyFull,
        };
        if let Some(path) = roots.as_ref().filter(|path| tls != DatabaseTls::Disable && !path.is_file()) {
            return Err(format!("names {} as sslrootcert, which is no file", path.display()));
        }
        Ok(Self { url: Secret::new(url), tls, roots })
    }

    /// Whether both name the same tables, whoever asks for them and however the way there is guarded. Another name of the
    /// same host is not seen through.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let place = |database: &Self| {
            database.driver().map(|driver| {
                let ports = driver.get_ports().iter().copied().filter(|port| *port != DEFAULT_PORT).collect::<Vec<_>>();
                let name = driver.get_dbname().or(driver.get_user()).map(str::to_owned);
                let options = driver.get_options().map(str::to_owned);
                (driver.get_hosts().to_vec(), driver.get_hostaddrs().to_vec(), ports, name, options)
            })
        };
        place(self).is_some_and(|one| place(other).is_some_and(|other| one == other))
    }

    /// A URL that a test has made.
    #[cfg(test)]
    #[must_use]
    pub fn for_tests(url: &str) -> Self {
        Self::parse(url, Path::new("/")).expect("a test's own URL")
    }

    /// What the driver needs for each host alone, in the URL's order. Empty can't be: the URL was read before.
    #[must_use]
    pub fn drivers(&self) -> Vec<tokio_postgres::Config> {
        let Some(whole) = self.driver() else { return Vec::new() };
        let count = whole.get_hosts().len().max(whole.get_hostaddrs().len());
        if count < 2 {
            return vec![whole];
        }
        // A driver's settings lose no host again, so these are made anew.
        let each = |index| {
            let mut alone = tokio_postgres::Config::new();
            match whole.get_hosts().get(index) {
                Some(Host::Tcp(name)) => alone.host(name),
                Some(Host::Unix(path)) => alone.host_path(path),
                None => &mut alone,
            };
            whole.get_hostaddrs().get(index).map(|address| alone.hostaddr(*address));
            let port = whole.get_ports().get(index).or(whole.get_ports().first());
            alone.port(port.copied().unwrap_or(DEFAULT_PORT));
            whole.get_user().map(|user| alone.user(user));
            whole.get_password().map(|password| alone.password(password));
            whole.get_dbname().map(|name| alone.dbname(name));
            whole.get_options().map(|options| alone.options(options));
            whole.get_application_name().map(|name| alone.application_name(name));
            whole.get_connect_timeout().map(|limit| alone.connect_timeout(*limit));
            alone.ssl_mode(whole.get_ssl_mode()).load_balance_hosts(whole.get_load_balance_hosts());
            alone.target_session_attrs(whole.get_target_session_attrs());
            alone
        };
        (0..count).map(each).collect()
    }

    /// The whole URL for the driver. `None` can't be: the URL was read before.
    #[must_use]
    fn driver(&self) -> Option<tokio_postgres::Config> {
        let mut config = tokio_postgres::Config::from_str(self.url.expose()).ok()?;
        config.ssl_mode(if self.tls == DatabaseTls::Disable { SslMode::Disable } else { SslMode::Require });
        if config.get_application_name().is_none() {
            config.application_name("doorward");
        }
        // Of several hosts the one that takes changes: after a failover the old one may still answer.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        Some(config)
    }
}

/// The parameters of libpq that the driver knows, and values that mean something: of a number it ignores what is none of its
/// own, and of `connect_timeout` whatever is below 1.
fn check_parameter(name: &str, value: &str) -> Result<(), String> {
    let number =
        |least: u32| value.bytes().all(|byte| byte.is_ascii_digit()) && value.parse().is_ok_and(|n: u32| n >= least);
    let (is_good, form) = match name {
        "connect_timeout" | "tcp_user_timeout" | "keepalives_idle" | "keepalives_interval" | "keepalives_retries" => {
            (number(1), "a whole number of seconds from 1 on")
        }
        "keepalives" => (value == "0" || value == "1", "0 or 1"),
        "load_balance_hosts" => (value == "disable" || value == "random", "disable or random"),
        "port" => (value.split(',').all(|port| super::urls::port(port).is_some_and(|port| port != 0)), "a port"),
        "sslrootcert" => (!value.is_empty() && super::sense::unexpanded(value).is_none(), "a whole path, or system"),
        "host" | "hostaddr" | "user" | "password" | "dbname" | "application_name" => (!value.is_empty(), "something"),
        _ => (true, ""),
    };
    if is_good { Ok(()) } else { Err(format!("holds a {name} that is not {form}")) }
}

fn sslmode(value: &str) -> Result<DatabaseTls, String> {
    match value {
        "disable" => Ok(DatabaseTls::Disable),
        "require" => Ok(DatabaseTls::Require),
        "verify-ca" => Ok(DatabaseTls::VerifyCa),
        "verify-full" => Ok(DatabaseTls::VerifyFull),
        _ => Err(String::from("holds an sslmode that is not one of disable, require, verify-ca, verify-full")),
    }
}

/// Whether nothing leaves this machine on the way.
fn stays_here(config: &tokio_postgres::Config) -> bool {
    let here = |host: &Host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        Host::Unix(_) => true,
    };
    config.get_hosts().iter().all(here) && config.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Database, String> {
        Database::parse(text, Path::new("/etc/doorward"))
    }

    #[test]
    fn the_way_is_guarded_unless_it_stays_on_this_machine_or_somebody_says_otherwise() {
        let own = tempfile::NamedTempFile::new().unwrap();
        let roots = own.path().display();
        for (url, tls) in [
            (String::from("postgres://u:p@db.example.com/d"), DatabaseTls::VerifyFull),
            (String::from("postgres://u:p@127.0.0.1,db.example.com/d"), DatabaseTls::VerifyFull),
            (String::from("postgres://u:p@localhost/d?hostaddr=192.0.2.1"), DatabaseTls::VerifyFull),
            (String::from("postgresql://u:p@localhost:5433/d"), DatabaseTls::Disable),
            (String::from("postgres://u@[::1]/d"), DatabaseTls::Disable),
            (String::from("postgres:///d?host=/run/postgresql"), DatabaseTls::Disable),
            (String::from("postgres://u@db/d?sslmode=disable"), DatabaseTls::Disable),
            (String::from("postgres://u@db/d?sslmode=require"), DatabaseTls::Require),
            (format!("postgres://u@db/d?sslmode=require&sslrootcert={roots}"), DatabaseTls::VerifyCa),
            (format!("postgres://u@localhost/d?sslrootcert={roots}&sslmode=verify-full"), DatabaseTls::VerifyFull),
            (String::from("postgres://u@db/d?sslmode=verify-ca&sslrootcert=system"), DatabaseTls::VerifyCa),
        ] {
            let database = parse(&url).unwrap();
            assert_eq!(database.tls, tls, "{url}");
            let expected = if tls == DatabaseTls::Disable { SslMode::Disable } else { SslMode::Require };
            assert_eq!(database.driver().unwrap().get_ssl_mode(), expected);
        }
        let database = parse("postgres://u:a+b%20c@h:1/d?options=-csearch_path%3Dx%20-cy=z&sslmode=disable").unwrap();
        let driver = database.driver().unwrap();
        assert_eq!(driver.get_password(), Some(b"a+b c".as_slice()));
        assert_eq!(driver.get_options(), Some("-csearch_path=x -cy=z"));
    }

    #[test]
    fn several_hosts_are_tried_one_by_one_and_only_for_changes() {
        let url = "postgresql://u:p%20w@one:1,two/d?target_session_attrs=read-write&options=-cx%3Dy&connect_timeout=3";
        let drivers = parse(url).unwrap().drivers();
        let places: Vec<_> = drivers.iter().map(|one| (one.get_hosts().to_vec(), one.get_ports().to_vec())).collect();
        let host = |name: &str, port| (vec![Host::Tcp(name.to_owned())], vec![port]);
        assert_eq!(places, [host("one", 1), host("two", 5432)]);
        for one in &drivers {
            assert_eq!((one.get_user(), one.get_dbname(), one.get_options()), (Some("u"), Some("d"), Some("-cx=y")));
            assert_eq!(one.get_password(), Some(b"p w".as_slice()));
            assert_eq!((one.get_ssl_mode(), one.get_application_name()), (SslMode::Require, Some("doorward")));
            assert_eq!(one.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
            assert_eq!(one.get_connect_timeout(), Some(&std::time::Duration::from_secs(3)));
        }
        let alone = parse("postgres://u@one/d?target_session_attrs=primary").unwrap().drivers();
        assert_eq!((alone.len(), alone[0].get_target_session_attrs()), (1, TargetSessionAttrs::ReadWrite));
        for wrong in ["target_session_attrs=standby", "target_session_attrs=read-only", "port=1,2,3"] {
            parse(&format!("postgres://one,two/d?{wrong}")).map(|_| ()).expect_err(wrong);
        }
    }

    #[test]
    fn the_same_tables_are_known_whoever_asks_for_them() {
        let one = parse("postgres://u:p@db/d").unwrap();
        for same in
            ["postgres://v:q@db:5432/d", "postgresql://u@db/d?sslmode=disable", "postgres://u@db/d?connect_timeout=3"]
        {
            assert!(one.is_same(&parse(same).unwrap()), "{same}");
        }
        for other in ["postgres://u:p@db/e", "postgres://u:p@db", "postgres://u:p@db2/d", "postgres://u:p@db:5433/d"] {
            assert!(!one.is_same(&parse(other).unwrap()), "{other}");
        }
        // Another schema has other tables.
        assert!(!one.is_same(&parse("postgres://u:p@db/d?options=-csearch_path%3Dx").unwrap()));
    }

    #[test]
    fn what_is_refused_is_not_quoted() {
        for url in [
            "canary",
            "mysql://u:canary@h/d",
            "postgres://u:canary@/d",
            "postgres://u:canary@h/d?sslmode=prefer",
            "postgres://u:canary@h/d?sslmode=canary",
            "postgres://u:canary?rest@h/d",
            "postgres://u:canary@h:port/d",
            "postgres://u:canary@h/d?sslkey=x",
            "postgres://u:canary@h/d?sslrootcert=/nonexistent",
            "postgres://u:canary@h/d?sslrootcert=~/roots.pem",
            "postgres://u:canary@h/d?sslrootcert=",
            "postgres://u:canary@h/d?connect_timeout=0",
            "postgres://u:canary@h/d?connect_timeout=-5",
            "postgres://u:canary@h/d?connect_timeout=+5",
            "postgres://u:canary@h/d?connect_timeout=3s",
            "postgres://u:canary@h/d?keepalives=yes",
            "postgres://u:canary@h/d?port=05432",
            "postgres://u:canary@h/d?dbname=",
            "postgres://u:canary@h/d?user=a&user=canary",
            "postgres://u:canary@h/d?sslmode=require&sslmode=disable",
            "postgres://u:canary@h/d?unknown=canary",
            "postgres://u:canary@h/d#canary",
            "postgres://u:canary@h/d canary",
            "postgres://u:canary@h/d\npostgres://u:canary@h/e",
            "\"postgres://u:canary@h/d\"",
            "DOORWARD_STORE_URL=postgres://u:canary@h/d",
        ] {
            let problem = parse(url).map(|_| ()).expect_err(url);
            assert!(!problem.contains("canary"), "{problem}");
        }
        let database = parse("postgres://u:canary@h/d").unwrap();
        assert!(!format!("{database:?} {:?}", database.driver()).contains("canary"));
        assert!(database != parse("postgres://u:other@h/d").unwrap());
    }
}
