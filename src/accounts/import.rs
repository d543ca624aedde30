//! Reading htpasswd, JSON and Authelia user files; writing JSON.
//!
//! A file is taken whole or not at all: every problem is collected with its line or entry, and one is enough to refuse.

use std::collections::HashSet;

use granit_parser::{Event, Parser};
use serde::{Deserialize, Serialize};

use super::{password, profile};
use crate::clock::rfc3339;
use crate::secret::Secret;
use crate::store::{Account, AccountId, Username};

/// One account of an import file, checked.
#[derive(Clone, Debug)]
pub struct Imported {
    /// `None`: it gets a new one.
    pub id: Option<AccountId>,
    pub username: Username,
    pub password_hash: Secret<String>,
    pub groups: Vec<String>,
    pub email: String,
    pub display_name: String,
    pub disabled: bool,
    /// `__v`.
    pub version: u64,
}

/// Bytes of the largest file that is read.
const MAX_FILE_BYTES: usize = 256 * 1024 * 1024;

/// What a reader has found, before it is checked.
#[derive(Default)]
struct Found {
    /// For messages: `line 7`, `entry 3`.
    place: String,
    id: Option<String>,
    username: String,
    password_hash: Secret<String>,
    groups: Vec<String>,
    email: String,
    display_name: String,
    disabled: bool,
    version: u64,
}

/// Checks entries, and that no two of them are the same account.
#[derive(Default)]
struct Checked {
    accounts: Vec<Imported>,
    problems: Vec<String>,
    names: HashSet<Username>,
    ids: HashSet<AccountId>,
}

impl Checked {
    fn take(&mut self, found: Found) {
        let place = found.place.clone();
        match self.check(found) {
            Ok(imported) => self.accounts.push(imported),
            Err(problem) => self.problems.push(format!("{place}: {problem}")),
        }
    }

    fn check(&mut self, found: Found) -> Result<Imported, String> {
        let username = Username::canonical(&found.username).map_err(|error| format!("the user name {error}"))?;
        let id = match found.id {
            Some(id) => Some(AccountId::try_from(id).map_err(|error| format!("_id {error}"))?),
            None => None,
        };
        password::validate(found.password_hash.expose()).map_err(|error| {
            format!("the password of {username} {error}; hashes of other kinds can't be taken over")
        })?;
        let imported = Imported {
            username: username.clone(),
            password_hash: found.password_hash,
            groups: profile::groups(found.groups)?,
            email: profile::email(&found.email)?,
            display_name: profile::display_name(&found.display_name)?,
            disabled: found.disabled,
            version: found.version,
            id: id.clone(),
        };
        if !self.names.insert(username) {
            return Err(format!("the user name {:?} stands in the file before", imported.username.as_str()));
        }
        if let Some(id) = id
            && !self.ids.insert(id)
        {
            return Err(String::from("the _id stands in the file before"));
        }
        Ok(imported)
    }

    fn finish(self) -> Result<Vec<Imported>, Vec<String>> {
        if self.problems.is_empty() { Ok(self.accounts) } else { Err(self.problems) }
    }
}

fn within_bounds(text: &str) -> Result<(), Vec<String>> {
    if text.len() > MAX_FILE_BYTES {
        return Err(vec![format!("the file is larger than {MAX_FILE_BYTES} bytes; split it")]);
    }
    Ok(())
}

/// Reads `NAME:HASH` lines as Apache's `htpasswd -B` writes them. Blank lines and lines that begin with `#` are passed over.
pub fn htpasswd(text: &str) -> Result<Vec<Imported>, Vec<String>> {
    within_bounds(text)?;
    let mut checked = Checked::default();
    for (index, line) in text.lines().enumerate() {
        let place = format!("line {}", index + 1);
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':') {
            Some((username, hash)) => checked.take(Found {
                place,
                username: username.to_owned(),
                password_hash: Secret::new(hash.trim_end().to_owned()),
                ..Found::default()
            }),
            None => checked.problems.push(format!("{place}: there is no \":\" between a name and a hash")),
        }
    }
    checked.finish()
}

/// One account as `export` writes it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(rename = "_id", default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    username: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password_hash: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    email: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    disabled: bool,
    #[serde(rename = "__v", default)]
    version: u64,
    #[serde(default)]
    created: String,
    #[serde(default)]
    changed: String,
}

/// Reads the array of objects that [`to_json`] writes. `created` and `changed` are not taken over.
pub fn json(text: &str) -> Result<Vec<Imported>, Vec<String>> {
    within_bounds(text)?;
    // One value at a time, so that every wrong entry is told and not only the first.
    let entries: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(text)
        .map_err(|error| vec![format!("line {}: this is no JSON array of accounts", error.line().max(1))])?;
    let mut checked = Checked::default();
    for (index, entry) in entries.iter().enumerate() {
        let place = format!("entry {}", index + 1);
        match serde_json::from_str::<Row>(entry.get()) {
            Ok(row) => {
                let Some(hash) = row.password_hash else {
                    checked.problems.push(format!("{place}: there is no password_hash; `user export` writes one"));
                    continue;
                };
                checked.take(Found {
                    place,
                    id: row.id,
                    username: row.username,
                    password_hash: Secret::new(hash),
                    groups: row.groups,
                    email: row.email,
                    display_name: row.display_name,
                    disabled: row.disabled,
                    version: row.version,
                });
            }
            // The library's words name the field; what they quote of a value is cut off, for it may be a hash.
            Err(error) => {
                let words = error.to_string();
                let words =
                    if error.is_data() { words.split(" at line").next().unwrap_or_default() } else { "malformed" };
                let words = if words.contains("invalid type") { "a field has the wrong type" } else { words };
                checked.problems.push(format!("{place}: {words}"));
            }
        }
    }
    checked.finish()
}

/// Writes accounts as [`json`] reads them; without hashes, as listings show them.
#[must_use]
pub fn to_json(accounts: &[Account], with_hashes: bool) -> String {
    let rows: Vec<Row> = accounts
        .iter()
        .map(|account| Row {
            id: Some(account.id.to_string()),
            username: account.username.to_string(),
            password_hash: with_hashes.then(|| account.password_hash.expose().clone()),
            groups: account.groups.clone(),
            email: account.email.clone(),
            display_name: account.display_name.clone(),
            disabled: account.disabled,
            version: account.version,
            created: rfc3339(account.created),
            changed: rfc3339(account.changed),
        })
        .collect();
    // Strings, numbers and lists of strings: nothing that could fail.
    serde_json::to_string_pretty(&rows).unwrap_or_default()
}

/// Reads Authelia's `users_database.yml`: a map `users` from names to `password`, `displayname`, `email`, `groups`,
/// `disabled`. Other keys of a user are passed over.
pub fn authelia(text: &str) -> Result<Vec<Imported>, Vec<String>> {
    within_bounds(text)?;
    let mut reader = Authelia::default();
    for next in Parser::new_from_str(text) {
        match next {
            Ok((event, span)) => {
                let line = span.start.line();
                if let Err(problem) = reader.event(&event, line) {
                    return Err(vec![format!("line {line}: {problem}")]);
                }
            }
            Err(error) => return Err(vec![format!("line {}: this is no YAML", error.marker().line())]),
        }
    }
    if !reader.seen_users {
        return Err(vec![String::from("line 1: there is no map \"users\"; is this Authelia's user file?")]);
    }
    reader.checked.finish()
}

/// Where in the file the reader is: the keys that lead there.
#[derive(Default)]
struct Authelia {
    checked: Checked,
    /// One for each open map or list; a map's holds the key whose value comes next.
    open: Vec<Level>,
    user: Option<Found>,
    seen_users: bool,
}

enum Level {
    Map(Option<String>),
    List,
}

/// Deeper than any user file; the reader keeps one small thing for each level.
const MAX_DEPTH: usize = 64;

impl Authelia {
    fn event(&mut self, event: &Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::MappingStart(..) => {
                if self.keys() == ["users"] && self.open.len() == 1 {
                    self.seen_users = true;
                }
                if let [users, name] = &*self.keys()
                    && users == "users"
                    && self.open.len() == 2
                {
                    let place = format!("line {line}");
                    self.user = Some(Found { place, username: name.clone(), ..Found::default() });
                }
                self.open(Level::Map(None))
            }
            Event::SequenceStart(..) => self.open(Level::List),
            Event::MappingEnd | Event::SequenceEnd => {
                self.open.pop();
                if self.open.len() == 2
                    && let Some(user) = self.user.take()
                {
                    self.checked.take(user);
                }
                self.value_is_over();
                Ok(())
            }
            Event::Scalar(text, ..) => {
                self.scalar(text);
                Ok(())
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                Err(String::from("aliases are not read; write the value out"))
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, level: Level) -> Result<(), String> {
        if self.open.len() == MAX_DEPTH {
            return Err(String::from("it is nested too deeply"));
        }
        self.open.push(level);
        Ok(())
    }

    /// The keys on the way here.
    fn keys(&self) -> Vec<String> {
        let key = |level: &Level| match level {
            Level::Map(key) => key.clone(),
            Level::List => None,
        };
        self.open.iter().filter_map(key).collect()
    }

    fn value_is_over(&mut self) {
        if let Some(Level::Map(key)) = self.open.last_mut() {
            *key = None;
        }
    }

    fn scalar(&mut self, text: &str) {
        if let Some(Level::Map(key @ None)) = self.open.last_mut() {
            *key = Some(text.to_owned());
            return;
        }
        let keys = self.keys();
        if let (Some(user), [_, _, field]) = (&mut self.user, &*keys) {
            let in_list = matches!(self.open.last(), Some(Level::List));
            // YAML's spellings of nothing.
            let text = if matches!(text, "~" | "null") { "" } else { text };
            match (field.as_str(), in_list) {
                ("password", false) => {
                    // Authelia also accepts `$argon2id` behind its own `{CRYPT}`.
                    let hash = text.strip_prefix("{CRYPT}").unwrap_or(text);
                    user.password_hash = Secret::new(hash.to_owned());
                }
                ("displayname", false) => text.clone_into(&mut user.display_name),
                ("email", false) => text.clone_into(&mut user.email),
                ("disabled", false) => user.disabled = matches!(text, "true" | "True" | "TRUE" | "yes" | "on"),
                ("groups", true) => user.groups.push(text.to_owned()),
                _ => {}
            }
        }
        self.value_is_over();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BCRYPT: &str = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
    const ARGON2ID: &str =
        "$argon2id$v=19$m=65536,t=3,p=4$BpLnfgDsc2WD8F2q$o/vzA4myCqZZ36bUGsDY//8mKUYNZZaR0t4MFFSs+iM";

    fn names(imported: &[Imported]) -> Vec<&str> {
        imported.iter().map(|account| account.username.as_str()).collect()
    }

    #[test]
    fn htpasswd_lines_are_read() {
        let text = format!("# staff\r\nKim:{BCRYPT}\r\n\r\nlee:{BCRYPT}\n");
        assert_eq!(names(&htpasswd(&text).unwrap()), ["kim", "lee"]);
    }

    #[test]
    fn every_wrong_line_is_told() {
        let text = format!("kim:$apr1$x$y\nno colon\n:{BCRYPT}\nlee:{BCRYPT}\nLEE:{BCRYPT}\nk m:{BCRYPT}\n");
        let problems = htpasswd(&text).unwrap_err();
        let places: Vec<&str> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
        assert_eq!(places, ["line 1", "line 2", "line 3", "line 5", "line 6"]);
        assert!(!problems.concat().contains("apr1"), "a hash is never shown");
    }

    #[test]
    fn what_is_exported_can_be_imported() {
        let account = Account {
            id: AccountId::random(),
            username: Username::canonical("kim").unwrap(),
            password_hash: Secret::new(BCRYPT.to_owned()),
            groups: vec![String::from("staff")],
            email: String::from("kim@example.com"),
            display_name: String::from("Kim"),
            disabled: true,
            version: 3,
            created: 1,
            changed: 2,
            revision: 9,
        };
        let text = to_json(std::slice::from_ref(&account), true);
        let imported = json(&text).unwrap();
        let [back] = &*imported else { panic!("{text}") };
        assert_eq!(back.id.as_ref(), Some(&account.id));
        assert_eq!((back.version, back.disabled, &back.groups), (3, true, &account.groups));
        assert!(back.password_hash.matches(BCRYPT.as_bytes()));
        assert!(!to_json(&[account], false).contains("password_hash"));
    }

    #[test]
    fn wrong_json_names_its_entries() {
        let text = format!(
            r#"[{{"username":"a"}}, {{"username":"b","password_hash":"{BCRYPT}","admin":true}},
                {{"username":7,"password_hash":"{BCRYPT}"}}, {{"username":"c","password_hash":"{BCRYPT}"}}]"#
        );
        let problems = json(&text).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[1].contains("admin"), "{problems:?}");
        assert!(json("{}").is_err());
        assert!(json(&"[".repeat(200_000)).is_err());
    }

    #[test]
    fn authelias_users_are_read() {
        let text = format!(
            "---\nusers:\n  john:\n    disabled: false\n    displayname: \"John Wick\"\n    password: \"{ARGON2ID}\"\n    \
             email: john@example.com\n    groups:\n      - admins\n      - dev\n    extra:\n      deep: [1, {{a: b}}]\n  \
             'bob':\n    disabled: true\n    password: '{BCRYPT}'\n    email: ''\n    groups: []\n..."
        );
        let imported = authelia(&text).unwrap();
        assert_eq!(names(&imported), ["john", "bob"]);
        assert_eq!(imported[0].groups, ["admins", "dev"]);
        assert_eq!(imported[0].display_name, "John Wick");
        assert!(!imported[0].disabled && imported[1].disabled);
    }

    #[test]
    fn wrong_yaml_is_told_with_its_line() {
        for text in [
            "",
            "a: b",
            "users:\n  kim:\n    password: plain\n",
            "users: {kim: &x {password: y}, lee: *x}",
            "users:\n  kim: [\n",
            &"[".repeat(100_000),
        ] {
            let problems = authelia(text).unwrap_err();
            assert!(problems[0].starts_with("line "), "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|\n|\t){0,200}") {
            let _ = htpasswd(&text);
            let _ = json(&text);
            let _ = authelia(&text);
        }

        #[test]
        fn no_yaml_like_text_panics(parts in prop::collection::vec(prop_oneof![
            Just("users:\n"), Just("  kim:\n"), Just("    password: x\n"), Just("- "), Just("{"), Just("}"), Just("&a "),
            Just("*a "), Just("? "), Just(": "), Just("\n"), Just("    groups: [a, b]\n"), Just("!!str "), Just("---\n"),
        ], 0..30)) {
            let _ = authelia(&parts.concat());
        }
    }
}
