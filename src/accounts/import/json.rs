//! Reading the JSON that an export writes.
//!
//! Entries are read one after the other, so that a wrong one is told with its number and the rest is still looked at.
//! How deep they may nest is serde_json's limit (128).

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::{Candidate, Place, Reading, shown};
use crate::secret::Secret;

pub(super) fn read(text: &str, reading: &mut Reading) {
    if text.trim_start().starts_with('{') {
        return lines(text, reading);
    }
    let mut source = serde_json::Deserializer::from_str(text);
    match Entries(reading).deserialize(&mut source).and_then(|()| source.end()) {
        Ok(()) => {}
        // This kind of error would quote the value that it found.
        Err(error) if error.classify() == Category::Data => {
            reading.note("the file must hold an array of accounts: [{\"username\": …, \"password_hash\": …}, …]");
        }
        Err(error) => reading.note(format_args!("the file is no JSON: {error}")),
    }
}

/// One object a line, as `mongoexport` writes them.
fn lines(text: &str, reading: &mut Reading) {
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = Place::Line(index + 1);
        match serde_json::from_str(line) {
            Ok(Entry::Object(fields)) => match candidate(fields) {
                Ok(candidate) => reading.account(place, candidate),
                Err(problems) => problems.iter().for_each(|problem| reading.problem(place, problem)),
            },
            Ok(Entry::Other(_)) => reading.problem(place, "is no object"),
            Err(_) => {
                reading.problem(
                    place,
                    "is no JSON object; the file must hold one array of accounts, or one object a line",
                );
            }
        }
    }
}

/// Hands the elements of the array to the reading.
struct Entries<'a>(&'a mut Reading);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of accounts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(entry) = entries.next_element()? {
            number += 1;
            let place = Place::Entry(number);
            match entry {
                Entry::Object(fields) => match candidate(fields) {
                    Ok(candidate) => self.0.account(place, candidate),
                    Err(problems) => problems.iter().for_each(|problem| self.0.problem(place, problem)),
                },
                Entry::Other(_) => self.0.problem(place, "is no object"),
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Object(Fields),
    Other(IgnoredAny),
}

/// The fields as they stand in the file: a map would hide one that is given twice.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        source.deserialize_map(Pairs)
    }
}

const KNOWN: [&str; 10] =
    ["_id", "username", "groups", "email", "display_name", "disabled", "__v", "created", "changed", "password_hash"];

fn candidate(Fields(fields): Fields) -> Result<Candidate, Vec<String>> {
    let mut candidate = Candidate::default();
    let mut problems = Vec::new();
    let mut seen = [false; KNOWN.len()];
    for (key, value) in fields {
        // Mongoose's names for the same.
        let key = match key.as_str() {
            "hashedPassword" => String::from("password_hash"),
            "createdAt" => String::from("created"),
            "updatedAt" => String::from("changed"),
            _ => key,
        };
        let value = plain(value);
        let Some((known, seen)) = KNOWN.iter().zip(&mut seen).find(|(known, _)| **known == key) else {
            problems.push(format!("there is no field {}", shown(&key)));
            continue;
        };
        if std::mem::replace(seen, true) {
            problems.push(format!("`{known}` is given twice"));
        } else if let Err(kind) = set(&mut candidate, known, value) {
            problems.push(format!("`{known}` must be {kind}"));
        }
    }
    for (key, seen) in KNOWN.iter().zip(seen) {
        if !seen && matches!(*key, "username" | "password_hash") {
            problems.push(format!("`{key}` is missing"));
        }
    }
    if problems.is_empty() { Ok(candidate) } else { Err(problems) }
}

/// What MongoDB's extended JSON says in an object of one field.
fn plain(value: Value) -> Value {
    let Value::Object(object) = &value else { return value };
    let mut fields = object.iter();
    match (fields.next(), fields.next()) {
        (Some((key, id @ Value::String(_))), None) if key == "$oid" => id.clone(),
        (Some((key, Value::String(number))), None) if matches!(key.as_str(), "$numberInt" | "$numberLong") => {
            number.parse::<u64>().map_or(Value::Null, Value::from)
        }
        _ => value,
    }
}

/// The error says what the value must be. `null` stands for a field that is not there, where it may be missing.
fn set(candidate: &mut Candidate, key: &str, value: Value) -> Result<(), &'static str> {
    match (key, value) {
        ("created" | "changed", _)
        | ("_id" | "groups" | "email" | "display_name" | "disabled" | "__v", Value::Null) => {}
        ("_id", Value::String(id)) => candidate.id = Some(id),
        ("username", Value::String(name)) => candidate.username = name,
        ("email", Value::String(email)) => candidate.email = email,
        ("display_name", Value::String(name)) => candidate.display_name = name,
        ("password_hash", Value::String(hash)) => candidate.password_hash = Secret::new(hash),
        ("disabled", Value::Bool(disabled)) => candidate.disabled = disabled,
        ("__v", Value::Number(number)) => candidate.version = number.as_u64().ok_or("a whole number from 0")?,
        ("groups", Value::Array(groups)) => {
            for group in groups {
                let Value::String(group) = group else { return Err("an array of texts") };
                candidate.groups.push(group);
            }
        }
        ("groups", _) => return Err("an array of texts"),
        ("disabled", _) => return Err("true or false"),
        ("__v", _) => return Err("a whole number from 0"),
        _ => return Err("a text"),
    }
    Ok(())
}
