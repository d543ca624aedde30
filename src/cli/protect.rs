//! `doorward protect URL`: a login in front of anything, with no configuration file.
//!
//! Everything that can be refused is refused before anything is made, in words about the arguments; a folder that was made
//! for a call which came to nothing is removed again.

use std::cell::Cell;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::arguments::{Place, Protect};
use super::configuration::quoted;
use super::operate::Attempt;
use super::output::{Output, random_password};
use super::{Done, Failure, configuration, operate, reach, serve, typed};
use crate::admin::command::{Command, Password};
use crate::admin::socket;
use crate::app;
use crate::config::{self, Listen, Protection, UpstreamUrl};
use crate::secret::Secret;
use crate::server::{ListenError, Listeners};

/// Where `protect` keeps everything unless it is told otherwise.
const DEFAULT_FOLDER: &str = "./doorward-data";
/// Where the login's pages go when the application may have pages of the same names.
const ASIDE: &str = "/_auth";

/// What was asked for, understood.
pub(super) struct Wanted {
    url: String,
    listen: (String, Listen),
    public: Vec<String>,
    /// `None`: the folder's, or chosen by what the application answers.
    prefix: Option<String>,
}

impl Wanted {
    pub(super) fn read(url: &str, listen: &str, public: &[String], prefix: Option<&str>) -> Result<Self, Failure> {
        let mut paths: Vec<String> = Vec::new();
        for path in public {
            let path = typed::public(path).map_err(Failure::Usage)?;
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        Ok(Self {
            url: typed::backend(url).map_err(Failure::Usage)?,
            listen: typed::listen(listen).map_err(Failure::Usage)?,
            public: paths,
            prefix: prefix.map(typed::prefix).transpose().map_err(Failure::Usage)?,
        })
    }
}

pub(super) fn run(arguments: &Protect, place: &Place, output: &mut Output) -> Done {
    if place.config.is_some() {
        return Err(Failure::usage("`protect` needs no --config; `doorward serve --config FILE` serves a file"));
    }
    let Protect { url, listen, public, prefix } = arguments;
    let wanted = Wanted::read(url, listen, public, prefix.as_deref())?;
    let folder = place.data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FOLDER));
    protect(&folder, &wanted, output)
}

/// Prepares the folder, prints how to log in, and serves.
pub(super) fn protect(folder: &Path, wanted: &Wanted, output: &mut Output) -> Done {
    let existing = Existing::look(folder)?;
    wait_for_another_server(folder)?;
    wait_for_the_port(wanted)?;
    let answers = ask_the_application(&wanted.url);
    let text = sealed(&existing.text(wanted, matches!(answers, Ok(false)))?);
    check(folder, &text)?;

    let is_new = !folder.exists();
    let served = Cell::new(false);
    let outcome = (|| {
        prepare(folder, &text)?;
        let place = Place { config: None, data: Some(folder.to_owned()) };
        let password = first_account(&place)?;
        let config = configuration::load(&place)?;
        let greeting =
            Greeting { wanted, folder, prefix: config.portal_prefix.clone(), nothing: answers.err(), password };
        serve::serve(config, output, |addresses| {
            served.set(true);
            // Standard output carries the log; the words for the person at the terminal go beside it.
            greeting.say(&mut Output::new(), addresses);
        })
    })();
    if outcome.is_err() && is_new && !served.get() {
        remove(folder);
    }
    outcome
}

/// What an earlier run has left in the folder.
struct Existing {
    /// The portal's prefix and the cookie's name, where there is a configuration.
    kept: Option<(String, Option<String>)>,
}

impl Existing {
    fn look(folder: &Path) -> Result<Self, Failure> {
        if let Some(problem) = app::folder_problem(folder) {
            return Err(Failure::usage(format!("--data: {problem}")));
        }
        let file = folder.join("config.toml");
        let there = match fs::read_to_string(&file) {
            Ok(there) => there,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self { kept: None }),
            Err(error) => return Err(Failure::failed(format!("{}: {error}", file.display()))),
        };
        let table = there.parse::<toml::Table>().unwrap_or_default();
        let text = |section: &str, key: &str| Some(table.get(section)?.get(key)?.as_str()?.to_owned());
        if !is_untouched(&there) {
            return Err(Failure::usage(format!(
                "{} was changed by hand and is left alone; `{} serve --data {}` serves it, or move it away",
                file.display(),
                program(),
                quoted(folder)
            )));
        }
        Ok(Self { kept: Some((text("portal", "prefix").unwrap_or_default(), text("cookie", "name"))) })
    }

    /// The configuration. A folder that is there keeps its cookie, for people are logged in, and its prefix.
    fn text(&self, wanted: &Wanted, is_free: bool) -> Result<String, Failure> {
        let chosen = || String::from(if is_free { "" } else { ASIDE });
        let (prefix, cookie) = match &self.kept {
            Some((prefix, cookie)) => (prefix.clone(), cookie.clone()),
            // Browsers keep cookies by host and not by port: each folder's has a name of its own.
            None => (chosen(), Some(format!("access_token_{}", letters()?))),
        };
        let prefix = wanted.prefix.clone().unwrap_or(prefix);
        Ok(config::protect_toml(&Protection {
            listen: &wanted.listen.0,
            url: &wanted.url,
            public: &wanted.public,
            prefix: &prefix,
            cookie: cookie.as_deref(),
        }))
    }
}

/// Five letters by chance.
fn letters() -> Result<String, Failure> {
    let mut bytes = [0_u8; 5];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::failed(format!("the system gives no random bytes: {error}")))?;
    Ok(bytes.iter().map(|byte| char::from(b'a' + byte % 26)).collect())
}

/// Whether the application has pages where the login's would stand; why nothing answers there.
fn ask_the_application(url: &str) -> Result<bool, String> {
    let url: UpstreamUrl = url.parse().map_err(|error| format!("{error}"))?;
    app::has_pages(&url, &["/login", "/logout", "/account", "/check"]).map_err(|error| error.to_string())
}

fn wait_for_another_server(folder: &Path) -> Done {
    operate::patiently(|| {
        if !socket::is_served(folder) {
            return Ok(Attempt::Done(()));
        }
        Ok(Attempt::Held(Failure::failed(format!(
            "a server runs on {} already; stop it, or give this one a folder of its own with --data DIR",
            folder.display()
        ))))
    })
}

/// The port may still be held by a process that is about to end.
fn wait_for_the_port(wanted: &Wanted) -> Done {
    const ROUNDS: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(100);
    let (text, place) = &wanted.listen;
    let mut round = 0;
    loop {
        let problem = match Listeners::probe(place) {
            Ok(()) => return Ok(()),
            Err(ListenError::InUse { .. }) if round < ROUNDS => {
                round += 1;
                std::thread::sleep(PAUSE);
                continue;
            }
            Err(ListenError::InUse { .. }) => {
                String::from("another process listens there; choose another port, for example --listen 8081")
            }
            Err(ListenError::Failed { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                String::from("this user may not listen there; ports from 1024 on are open to everybody")
            }
            Err(ListenError::Failed { source, .. }) if source.kind() == std::io::ErrorKind::AddrNotAvailable => {
                String::from("this is no address of this machine")
            }
            Err(ListenError::Failed { source, .. }) => source.to_string(),
            Err(error @ ListenError::NotHandedOver { .. }) => error.to_string(),
        };
        return Err(Failure::failed(format!("--listen {text}: {problem}")));
    }
}

/// What is still wrong with the arguments together, in words about them.
fn check(folder: &Path, text: &str) -> Done {
    let Err(problems) = config::parse(text, &folder.join("config.toml"), &config::from_process) else { return Ok(()) };
    let of_arguments = problems.into_iter().filter(|problem| problem.key != "token.secret_file");
    let lines: Vec<String> = of_arguments
        .map(|problem| {
            let argument = match problem.key.split('.').next().unwrap_or_default() {
                "upstream" => "URL",
                "server" => "--listen",
                "route" => "--public",
                "portal" => "--prefix",
                _ => &problem.key,
            };
            format!("{argument}: {}", problem.message)
        })
        .collect();
    if lines.is_empty() { Ok(()) } else { Err(Failure::usage(lines.join("\n"))) }
}

/// How a person goes on from here.
struct Greeting<'a> {
    wanted: &'a Wanted,
    folder: &'a Path,
    prefix: String,
    /// Why nothing answers behind it.
    nothing: Option<String>,
    password: Option<Secret<String>>,
}

impl Greeting<'_> {
    fn say(&self, output: &mut Output, addresses: &[SocketAddr]) {
        let Self { wanted, folder, prefix, nothing, password } = self;
        let (program, folder) = (program(), quoted(folder));
        output.note("");
        output.note(&format!("  A login now stands in front of {}", wanted.url));
        for url in addresses.iter().flat_map(|address| reach::urls(*address)) {
            output.note(&format!("  Open       {url}"));
        }
        if addresses.is_empty() {
            output.note(&format!("  Listens on {}", wanted.listen.0));
        }
        match password {
            Some(password) => {
                output.note("  User name  admin");
                output.note(&format!("  Password   {}   (shown only this once)", password.expose()));
            }
            None => output.note(&format!(
                "  The accounts are those of before; `{program} user list --data {folder}` shows them."
            )),
        }
        if !prefix.is_empty() {
            output.note(&format!("  The login's own pages are below {prefix}, for example {prefix}/account"));
        }
        if let Some(why) = nothing {
            output.note(&format!("  Nothing answers at {} yet ({why}); start the application.", wanted.url));
        }
        if addresses.iter().any(|address| !address.ip().is_loopback()) {
            output.note("  Warning: this is open to the network without TLS, so that others on it can read passwords.");
            output.note("  Put a proxy with TLS in front of it, or listen on this machine only: --listen 8080");
        }
        output.note(&format!("  More users: {program} user add kim --data {folder}"));
        output.note("");
    }
}

/// The program as it was called.
fn program() -> String {
    let typed = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if typed.components().count() > 1 { quoted(&typed) } else { String::from("doorward") }
}

/// Makes what is not there yet: the folder, the secret, the configuration.
fn prepare(folder: &Path, wanted: &str) -> Done {
    let told = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| Failure::failed(format!("{path}: {error}"))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(told(folder))?;
    let secret = folder.join("secret");
    if !secret.exists() {
        let mut bytes = [0_u8; 48];
        getrandom::fill(&mut bytes)
            .map_err(|error| Failure::failed(format!("the system gives no random bytes: {error}")))?;
        let text = BASE64_STANDARD.encode(bytes);
        write_private(&secret, &format!("{text}\n")).map_err(told(&secret))?;
    }
    let file = folder.join("config.toml");
    match fs::read_to_string(&file) {
        Ok(there) if there == wanted => Ok(()),
        // It was looked at before: nobody has changed it.
        _ => write_private(&file, wanted).map_err(told(&file)),
    }
}

/// Removes a folder that was made for nothing. The store's thread may be busy in it for a moment yet.
fn remove(folder: &Path) {
    const ROUNDS: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 0..ROUNDS {
        if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

const SEAL: &str = "# Written by `doorward protect`, which writes it anew only while nobody has changed it. Checksum: ";

/// Puts a checksum on the first line, by which a later run knows that nobody has changed the file.
fn sealed(text: &str) -> String {
    format!("{SEAL}{:08x}\n{text}", crc32fast::hash(text.as_bytes()))
}

fn is_untouched(file: &str) -> bool {
    file.strip_prefix(SEAL)
        .and_then(|rest| rest.split_once('\n'))
        .is_some_and(|(checksum, text)| checksum == format!("{:08x}", crc32fast::hash(text.as_bytes())))
}

/// On the first run: the user `admin`. Later: nothing.
fn first_account(place: &Place) -> Result<Option<Secret<String>>, Failure> {
    let config = configuration::load(place)?;
    let accounts = operate::rows(operate::operate(config.clone(), Command::UserList)?);
    if !accounts.is_empty() {
        return Ok(None);
    }
    let password = random_password()?;
    let command = Command::UserAdd {
        username: String::from("admin"),
        groups: vec![String::from("admin")],
        email: String::new(),
        display_name: String::new(),
        password: Password(password.clone()),
    };
    operate::operate(config, command)?;
    Ok(Some(password))
}

/// Whole or not at all, readable by its owner only.
fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    let partial = file.with_extension(format!("{}.partial", std::process::id()));
    let mut written = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
    written.write_all(text.as_bytes())?;
    written.sync_all()?;
    fs::rename(&partial, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_somebody_changed_is_noticed() {
        let file = sealed("[server]\n");
        assert!(is_untouched(&file));
        assert!(!is_untouched(&file.replace("server", "servers")));
        assert!(!is_untouched("[server]\n"));
    }
}
