//! `doorward session …`.

use serde_json::Value;

use super::arguments::{Place, SessionVerb};
use super::output::Output;
use super::user::{field as of, plain};
use super::{Done, configuration, operate};
use crate::admin::command::Command;

pub(super) fn run(verb: SessionVerb, place: &Place, output: &mut Output) -> Done {
    let config = configuration::load(place)?;
    match verb {
        SessionVerb::List { name, json } => {
            let sessions = operate::rows(operate::operate(config, Command::SessionList { username: name })?);
            if json {
                return output.json(&Value::Array(sessions));
            }
            let fields = ["sid", "username", "created", "renewed", "address", "user_agent"];
            let rows: Vec<Vec<String>> =
                sessions.iter().map(|session| fields.iter().map(|field| plain(of(session, field))).collect()).collect();
            output.table(&["SID", "USERNAME", "CREATED", "RENEWED", "ADDRESS", "USER AGENT"], &rows)
        }
        SessionVerb::Revoke { sid, user, all } => {
            let (command, said) = match (sid, user, all) {
                (Some(session), _, _) => (Command::SessionRevoke { session }, "ended the session"),
                (None, Some(username), _) => (Command::SessionRevokeUser { username }, "ended the account's sessions"),
                (None, None, _) => (Command::SessionRevokeAll, "ended all sessions"),
            };
            operate::operate(config, command)?;
            output.line(said)
        }
    }
}
