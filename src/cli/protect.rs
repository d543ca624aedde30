//! `doorward protect URL`: a login in front of anything, with no configuration file.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::arguments::{Place, Protect};
use super::output::{Output, random_password};
use super::{Done, Failure, configuration, operate, serve};
use crate::admin::command::{Command, Password};
use crate::config;
use crate::secret::Secret;

/// Where `protect` keeps everything unless it is told otherwise.
const DEFAULT_FOLDER: &str = "./doorward-data";

pub(super) fn run(arguments: &Protect, place: &Place, output: &mut Output) -> Done {
    if place.config.is_some() {
        return Err(Failure::usage("`protect` needs no --config; `doorward serve --config FILE` serves a file"));
    }
    let folder = place.data.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FOLDER));
    protect(&folder, &arguments.listen, &arguments.url, &arguments.public, output)
}

/// Prepares the folder, prints how to log in, and serves.
pub(super) fn protect(folder: &Path, listen: &str, url: &str, public: &[String], output: &mut Output) -> Done {
    prepare(folder, listen, url, public)?;
    let place = Place { config: None, data: Some(folder.to_owned()) };
    let password = first_account(&place)?;
    let config = configuration::load(&place)?;
    let url = url.to_owned();
    let folder = folder.to_owned();
    // Standard output carries the log; the words for the person at the terminal go beside it.
    let mut greeting = Output::new();
    serve::serve(config, output, move |addresses| greet(&mut greeting, addresses, &url, &folder, password.as_ref()))
}

fn greet(output: &mut Output, addresses: &[SocketAddr], url: &str, folder: &Path, password: Option<&Secret<String>>) {
    output.note("");
    for address in addresses {
        let shown = if address.ip().is_unspecified() {
            format!("this machine's address, port {}", address.port())
        } else {
            format!("http://{address}/")
        };
        output.note(&format!("  A login now stands in front of {url}"));
        output.note(&format!("  Open       {shown}"));
    }
    match password {
        Some(password) => {
            output.note("  User name  admin");
            output.note(&format!("  Password   {}   (shown only this once)", password.expose()));
        }
        None => output.note("  The accounts are those of before; `doorward user list` shows them."),
    }
    output.note(&format!("  More users: doorward user add NAME --data {}", folder.display()));
    output.note("");
}

/// Makes what is not there yet: the folder, the secret, the configuration.
fn prepare(folder: &Path, listen: &str, url: &str, public: &[String]) -> Done {
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
    let wanted = sealed(&config::protect_toml(listen, url, public));
    match fs::read_to_string(&file) {
        Ok(there) if there == wanted => Ok(()),
        Ok(there) if !is_untouched(&there) => Err(Failure::usage(format!(
            "{} was changed by hand and is left alone; `doorward serve --data {}` serves it, or move it away",
            file.display(),
            folder.display()
        ))),
        Ok(_) => write_private(&file, &wanted).map_err(told(&file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            write_private(&file, &wanted).map_err(told(&file))
        }
        Err(error) => Err(told(&file)(error)),
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

/// On the first run: the user `admin`. Later, or where a server already runs on the folder: nothing.
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
