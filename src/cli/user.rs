//! `doorward user …`.

use std::path::Path;

use serde_json::Value;

use super::arguments::{Place, UserVerb};
use super::output::{Output, new_password};
use super::{Done, Failure, configuration, operate};
use crate::admin::command::{Command, ImportFormat, Password};
use crate::secret::Secret;

pub(super) fn run(verb: UserVerb, place: &Place, output: &mut Output) -> Done {
    let config = configuration::load(place)?;
    match verb {
        UserVerb::Add { name, password, groups, email, display_name } => {
            let generated = password.generate;
            let password = new_password(&password, output)?;
            let shown = generated.then(|| password.clone());
            let command =
                Command::UserAdd { username: name, groups, email, display_name, password: Password(password) };
            let added = operate::rows(operate::operate(config, command)?);
            output.line(&format!("added {}", name_of(&added)))?;
            show(shown, output)
        }
        UserVerb::List { json } => {
            let accounts = operate::rows(operate::operate(config, Command::UserList)?);
            if json {
                return output.json(&Value::Array(accounts));
            }
            let rows: Vec<Vec<String>> = accounts.iter().map(row).collect();
            output.table(&["USERNAME", "GROUPS", "E-MAIL", "DISPLAY NAME", "STATE", "CHANGED"], &rows)
        }
        UserVerb::Show { name, json } => {
            let accounts = operate::rows(operate::operate(config, Command::UserShow { username: name })?);
            let Some(Value::Object(account)) = accounts.into_iter().next() else { return Ok(()) };
            if json {
                return output.json(&Value::Array(vec![Value::Object(account)]));
            }
            let rows: Vec<Vec<String>> = account.iter().map(|(key, value)| vec![key.clone(), plain(value)]).collect();
            output.table(&["FIELD", "VALUE"], &rows)
        }
        UserVerb::SetPassword { name, password } => {
            let generated = password.generate;
            let password = new_password(&password, output)?;
            let shown = generated.then(|| password.clone());
            let command = Command::UserSetPassword { username: name, password: Password(password) };
            let changed = operate::rows(operate::operate(config, command)?);
            output.line(&format!("changed the password of {}; every session of it has ended", name_of(&changed)))?;
            show(shown, output)
        }
        UserVerb::SetGroups { name, groups } => {
            let changed = operate::rows(operate::operate(config, Command::UserSetGroups { username: name, groups })?);
            let groups = changed.first().map(|account| plain(field(account, "groups"))).unwrap_or_default();
            let groups = if groups.is_empty() { String::from("none") } else { groups };
            output.line(&format!("groups of {}: {groups}", name_of(&changed)))
        }
        UserVerb::Disable { name } => {
            let changed = operate::rows(operate::operate(config, Command::UserDisable { username: name })?);
            output.line(&format!("disabled {}; every session of it has ended", name_of(&changed)))
        }
        UserVerb::Enable { name } => {
            let changed = operate::rows(operate::operate(config, Command::UserEnable { username: name })?);
            output.line(&format!("enabled {}", name_of(&changed)))
        }
        UserVerb::Remove { name } => {
            let said = format!("removed {name}; every session of it has ended");
            operate::operate(config, Command::UserRemove { username: name })?;
            output.line(&super::output::printable(&said))
        }
        UserVerb::Import { file, format, accept_weak } => import(config, &file, (format, accept_weak), output),
        UserVerb::Export => {
            let text = operate::text(operate::operate(config, Command::UserExport)?);
            output.line(text.trim_end())
        }
    }
}

fn import(
    config: crate::config::Config,
    file: &Path,
    (format, accept_weak): (ImportFormat, bool),
    output: &mut Output,
) -> Done {
    let failed = |error: String| Failure::failed(format!("{}: {error}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let text = crate::accounts::import::decode(&bytes).map_err(failed)?;
    let spinner = operate::spinner(format!("importing {}", file.display()));
    let outcome =
        operate::operate(config, Command::UserImport { format, text: Password(Secret::new(text)), accept_weak });
    spinner.finish_and_clear();
    let count = operate::text(outcome?);
    output.line(&format!("imported {count} accounts"))
}

fn show(generated: Option<Secret<String>>, output: &mut Output) -> Done {
    match generated {
        Some(password) => output.line(&format!("password: {}", password.expose())),
        None => Ok(()),
    }
}

fn name_of(rows: &[Value]) -> String {
    super::output::printable(rows.first().and_then(|row| field(row, "username").as_str()).unwrap_or_default())
}

fn row(account: &Value) -> Vec<String> {
    let state = if *field(account, "disabled") == Value::Bool(true) { "disabled" } else { "enabled" };
    vec![
        plain(field(account, "username")),
        plain(field(account, "groups")),
        plain(field(account, "email")),
        plain(field(account, "display_name")),
        String::from(state),
        plain(field(account, "changed")),
    ]
}

/// A field of an object; null where there is none.
pub(super) fn field<'v>(object: &'v Value, name: &str) -> &'v Value {
    object.get(name).unwrap_or(&Value::Null)
}

/// A value for a table's cell.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        value => value.to_string(),
    }
}
