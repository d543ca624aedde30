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
            return Err(format!("holds no URL of a PostgreSQL database; {FORM}"));
        }
        let (place, query) = text.split_once('?').unwrap_or((text, ""));
        let (mut kept, mut mode, mut roots) = (form_urlencoded::Serializer::new(String::new()), None, None);
        for (name, value) in form_urlencoded::parse(query.replace('+', "%2B").as_bytes()) {
            match &*name {
                "sslmode" => mode = Some(sslmode(&value)?),
                "sslrootcert" if value == "system" => roots = None,
                "sslrootcert" => roots = Some(folder.join(&*value)),
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

    /// What the driver needs. `None` can't be: the URL was read before.
    #[must_use]
    pub fn driver(&self) -> Option<tokio_postgres::Config> {
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
        ] {
            let problem = parse(url).map(|_| ()).expect_err(url);
            assert!(!problem.contains("canary"), "{problem}");
        }
        let database = parse("postgres://u:canary@h/d").unwrap();
        assert!(!format!("{database:?} {:?}", database.driver()).contains("canary"));
        assert!(database != parse("postgres://u:other@h/d").unwrap());
    }
}
