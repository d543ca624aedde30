//! Reading Authelia's file of users (YAML).
//!
//! The parser's events are read as they come and no tree is built. Aliases are refused, so that nothing is ever
//! expanded; the parser's limits bound the nesting. Messages of the parser show no more of the file than one character.

use granit_parser::{Event, Parser, ScalarStyle, StrInput};

use super::{Candidate, Place, Reading, shown};
use crate::secret::Secret;

/// How deep collections may nest; the format needs four levels, or five with an `address`.
const MAX_NESTING: usize = 32;
/// More can't fit into the length that groups may have together.
const MAX_GROUPS: usize = 1001;

/// Attributes of Authelia's users that have no place here.
const PASSED_OVER: [&str; 15] = [
    "given_name",
    "middle_name",
    "family_name",
    "nickname",
    "gender",
    "birthdate",
    "website",
    "profile",
    "picture",
    "zoneinfo",
    "locale",
    "phone_number",
    "phone_extension",
    "address",
    "extra",
];

/// The file can't be read on from here; the problem has been noted.
struct Broken;

type Step<T> = Result<T, Broken>;

pub(super) fn read(text: &str, reading: &mut Reading) {
    let options = granit_parser::options! {
        // A password that begins with a star must not become part of an error.
        emit_unresolved_aliases: true,
        emit_comments: false,
        flow_nesting_limit: MAX_NESTING,
        block_nesting_limit: MAX_NESTING,
    };
    let parser = Parser::new_from_str_with_options(text, options);
    // Whether it was read to its end or not, the problems are in the reading.
    let _ = File { parser, reading }.document();
}

struct File<'text, 'reading> {
    parser: Parser<'text, StrInput<'text>>,
    reading: &'reading mut Reading,
}

impl<'text> File<'text, '_> {
    /// The next event and its line.
    fn next(&mut self) -> Step<(Event<'text>, Place)> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, Place::Line(span.start.line()))),
            Some(Err(error)) => {
                let marker = error.marker();
                let place = Place::Line(marker.line());
                let column = marker.col() + 1;
                self.reading.problem(place, format_args!("is no YAML at column {column}: {}", error.info()));
                Err(Broken)
            }
            None => {
                self.reading.note("the file ends too early");
                Err(Broken)
            }
        }
    }

    fn document(&mut self) -> Step<()> {
        let (mut root, mut place) = self.next()?;
        while matches!(root, Event::StreamStart | Event::DocumentStart(..)) {
            (root, place) = self.next()?;
        }
        if !matches!(root, Event::MappingStart(..)) {
            self.reading.problem(place, "the file must begin with `users:`");
            return Err(Broken);
        }
        let mut found = false;
        while let Some((key, place)) = self.key()? {
            let (value, value_place) = self.next()?;
            if key == "users" && !found && matches!(value, Event::MappingStart(..)) {
                found = true;
                self.users()?;
                continue;
            }
            if key != "users" {
                self.reading.problem(place, format_args!("there is no key {} beside `users`", shown(&key)));
            } else if found {
                self.reading.problem(place, "`users` is given twice");
            } else {
                found = true;
                self.reading.problem(value_place, "`users` must be a map of names");
            }
            self.pass_over(&value)?;
        }
        if !found {
            self.reading.problem(place, "the file has no `users`");
        }
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(..), place) => {
                    self.reading.problem(place, "begins a second document; only one is read");
                    return Err(Broken);
                }
                _ => {}
            }
        }
    }

    fn users(&mut self) -> Step<()> {
        while let Some((username, place)) = self.key()? {
            let (value, _) = self.next()?;
            if matches!(value, Event::MappingStart(..)) {
                self.user(username, place)?;
            } else {
                self.reading.problem(place, format_args!("the user {} must be a map", shown(&username)));
                self.pass_over(&value)?;
            }
        }
        Ok(())
    }

    fn user(&mut self, username: String, user_place: Place) -> Step<()> {
        let mut candidate = Candidate { username, ..Candidate::default() };
        let mut seen = Vec::new();
        while let Some((key, place)) = self.key()? {
            let known =
                ["password", "displayname", "email", "disabled", "groups"].into_iter().find(|known| *known == key);
            let Some(known) = known else {
                if !PASSED_OVER.contains(&key.as_str()) {
                    self.reading.problem(place, format_args!("there is no attribute {} of a user", shown(&key)));
                }
                let (value, _) = self.next()?;
                self.pass_over(&value)?;
                continue;
            };
            if seen.contains(&known) {
                self.reading.problem(place, format_args!("`{known}` is given twice"));
            }
            seen.push(known);
            match known {
                "groups" => candidate.groups = self.groups()?,
                "disabled" => candidate.disabled = self.truth()?,
                "email" => candidate.email = self.text(known)?,
                "displayname" => candidate.display_name = self.text(known)?,
                _ => {
                    let hash = self.text(known)?;
                    // Files that older versions wrote name the kind twice.
                    let bare = hash.strip_prefix("{CRYPT}").map(str::to_owned);
                    candidate.password_hash = Secret::new(bare.unwrap_or(hash));
                }
            }
        }
        self.reading.account(user_place, candidate);
        Ok(())
    }

    /// The next key of a map; `None` at its end. A key that is no text is noted, and passed over with its value.
    fn key(&mut self) -> Step<Option<(String, Place)>> {
        loop {
            match self.next()? {
                (Event::MappingEnd, _) => return Ok(None),
                (Event::Scalar(text, ..), place) => return Ok(Some((text.into_owned(), place))),
                (other, place) => {
                    self.wrong_value(&other, place, "a key must be a text");
                    self.pass_over(&other)?;
                    let (value, _) = self.next()?;
                    self.pass_over(&value)?;
                }
            }
        }
    }

    /// `null` reads as nothing.
    fn text(&mut self, key: &str) -> Step<String> {
        match self.next()? {
            (Event::Scalar(text, style, ..), _) if is_null(&text, style) => Ok(String::new()),
            (Event::Scalar(text, ..), _) => Ok(text.into_owned()),
            (other, place) => {
                self.wrong_value(&other, place, format_args!("`{key}` must be a text"));
                self.pass_over(&other)?;
                Ok(String::new())
            }
        }
    }

    /// The words for true and false of YAML 1.1, as Authelia reads them.
    fn truth(&mut self) -> Step<bool> {
        let (event, place) = self.next()?;
        if let Event::Scalar(text, ScalarStyle::Plain, ..) = &event {
            match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "y" => return Ok(true),
                "false" | "no" | "off" | "n" | "null" | "~" | "" => return Ok(false),
                _ => {}
            }
        }
        self.wrong_value(&event, place, "`disabled` must be true or false");
        self.pass_over(&event)?;
        Ok(false)
    }

    fn groups(&mut self) -> Step<Vec<String>> {
        let mut groups = Vec::new();
        match self.next()? {
            (Event::SequenceStart(..), _) => {}
            (Event::Scalar(text, style, ..), _) if is_null(&text, style) => return Ok(groups),
            (other, place) => {
                self.wrong_value(&other, place, "`groups` must be a list of texts");
                self.pass_over(&other)?;
                return Ok(groups);
            }
        }
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(groups),
                (Event::Scalar(text, ..), _) if groups.len() < MAX_GROUPS => groups.push(text.into_owned()),
                (Event::Scalar(..), _) => {}
                (other, place) => {
                    self.wrong_value(&other, place, "`groups` must be a list of texts");
                    self.pass_over(&other)?;
                }
            }
        }
    }

    fn wrong_value(&mut self, value: &Event<'_>, place: Place, otherwise: impl std::fmt::Display) {
        if matches!(value, Event::Alias(..) | Event::UnresolvedAlias(..)) {
            self.reading.problem(place, "an alias (*name) is not read here; write out what it stands for");
        } else {
            self.reading.problem(place, otherwise);
        }
    }

    /// Reads to the end of a value that has begun with `first`.
    fn pass_over(&mut self, first: &Event<'_>) -> Step<()> {
        let mut open = depth_change(first);
        while open > 0 {
            let (event, _) = self.next()?;
            open += depth_change(&event);
        }
        Ok(())
    }
}

fn depth_change(event: &Event<'_>) -> i32 {
    match event {
        Event::SequenceStart(..) | Event::MappingStart(..) => 1,
        Event::SequenceEnd | Event::MappingEnd => -1,
        _ => 0,
    }
}

fn is_null(text: &str, style: ScalarStyle) -> bool {
    style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL")
}
