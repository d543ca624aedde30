//! `doorward session …`.

use serde_json::Value;

use super::arguments::{Place, SessionVerb};
use super::output::{Output, cut, printable};
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
            // Everything is in the JSON; here is what fits a terminal, and the whole id, which `session revoke` wants.
            let row = |session: &Value| {
                let text = |field: &str| printable(&plain(of(session, field)));
                let renewed: String = text("renewed").chars().take("2026-12-01T00:00".len()).collect();
                vec![
                    text("sid"),
                    cut(&text("username"), 14),
                    renewed.replace('T', " "),
                    cut(&text("address"), 15),
                    cut(&text("user_agent"), 16),
                ]
            };
            let rows: Vec<Vec<String>> = sessions.iter().map(row).collect();
            output.table(&["SID", "USERNAME", "RENEWED (UTC)", "ADDRESS", "USER AGENT"], &rows)
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
