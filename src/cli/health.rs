//! `doorward health`: whether the server is ready, for health checks of containers that have no shell.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::arguments::{Health, Place};
use super::output::{Output, printable};
use super::user::field;
use super::{Done, Failure, configuration};
use crate::admin::command::{Command, Outcome};
use crate::admin::listener;
use crate::admin::socket::ask_within;

/// How long a server may take for an answer.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) fn run(arguments: &Health, place: &Place, output: &mut Output) -> Done {
    let reasons = match &arguments.url {
        Some(url) => ask_url(url)?,
        None => ask_here(&Whereabouts::read(&configuration::find(place)?)?)?,
    };
    match reasons {
        Value::Array(reasons) if reasons.is_empty() => output.line("ready"),
        Value::Array(reasons) => {
            let text = |reason: &Value, name: &str| printable(field(reason, name).as_str().unwrap_or_default());
            let all: Vec<String> =
                reasons.iter().map(|reason| format!("{} ({})", text(reason, "code"), text(reason, "detail"))).collect();
            Err(Failure::failed(format!("not ready: {}", all.join("; "))))
        }
        _ => Err(Failure::failed("not ready, and it does not say why")),
    }
}

/// Where a server of this file is to be asked. Nothing else of it counts: a file that was changed for the worse under a
/// running server does not make that one ill.
struct Whereabouts {
    data_dir: PathBuf,
    admin: Option<SocketAddr>,
}

impl Whereabouts {
    fn read(file: &Path) -> Result<Self, Failure> {
        let wrong =
            |problem: &str| Failure::usage(format!("{}: {problem}; see `doorward check-config`", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| wrong(&error.to_string()))?;
        let table: toml::Table = text.parse().map_err(|_| wrong("it is no TOML"))?;
        let data_dir = table.get("data_dir").and_then(toml::Value::as_str).unwrap_or("/var/lib/doorward");
        let folder = file.parent().unwrap_or(Path::new("."));
        let admin = table.get("admin").and_then(|admin| admin.get("listen")).and_then(toml::Value::as_str);
        let admin = admin.unwrap_or("127.0.0.1:9180").replace("localhost:", "127.0.0.1:");
        Ok(Self { data_dir: folder.join(data_dir), admin: admin.parse().ok() })
    }
}

/// Over the admin socket, or the admin listener where that does not answer.
fn ask_here(whereabouts: &Whereabouts) -> Result<Value, Failure> {
    let Whereabouts { data_dir, admin } = whereabouts;
    let problem = match ask_within(data_dir, &Command::Ready, Some(LIMIT)) {
        Ok(Outcome::Rows { rows }) => return Ok(Value::Array(rows)),
        Ok(_) => String::from("the server does not say"),
        Err(error) => error.to_string(),
    };
    match admin {
        Some(address) => ask_listener(*address, "/ready")
            .map_err(|error| Failure::failed(format!("not ready: {}: {problem}; {error}", data_dir.display()))),
        None => Err(Failure::failed(format!("not ready: {}: {problem}", data_dir.display()))),
    }
}

fn ask_listener(address: SocketAddr, target: &str) -> Result<Value, String> {
    let asked = match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], address.port())),
        IpAddr::V6(_) => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], address.port())),
    };
    let (status, body) = listener::ask(asked, target).map_err(|error| format!("http://{asked}{target}: {error}"))?;
    match (status, serde_json::from_str::<Value>(&body)) {
        (200, Ok(told)) if *field(&told, "ready") == Value::Bool(true) => Ok(Value::Array(Vec::new())),
        (503, Ok(told)) => Ok(field(&told, "reasons").clone()),
        (status, _) => {
            Err(format!("http://{asked}{target} answered {status}, which is no answer of an admin listener"))
        }
    }
}

fn ask_url(url: &str) -> Result<Value, Failure> {
    const EXAMPLE: &str = "write for example http://127.0.0.1:9180";
    let wrong = |problem: &str| Failure::usage(format!("--url: {problem}; {EXAMPLE}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| wrong("the admin listener speaks plain HTTP"))?;
    let (authority, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let target = if matches!(target, "" | "/") { "/ready" } else { target };
    let is_target = target.bytes().all(|byte| byte.is_ascii_graphic());
    let with_port = if authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    if authority.contains('@') || !is_target {
        return Err(wrong("this is no URL of an admin listener"));
    }
    let found = with_port.to_socket_addrs().map_err(|error| error.to_string());
    let address = found.and_then(|mut found| found.next().ok_or_else(|| String::from("it has no address")));
    let address = address.map_err(|error| Failure::failed(format!("not ready: {authority}: {error}")))?;
    ask_listener(address, target).map_err(|error| Failure::failed(format!("not ready: {error}")))
}
