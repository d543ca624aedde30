//! Reading TOML with every value's place, and going on after each problem so that all are reported at once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong, and where. Shown as `FILE:LINE:COLUMN: key: what is wrong, what to write instead`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// With the sections it stands in, for example `server.limits.header_timeout`.
    pub key: String,
    /// Never shows a secret.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, key, message } = self;
        write!(formatter, "{}:{line}:{column}: ", file.display())?;
        if !key.is_empty() {
            write!(formatter, "{key}: ")?;
        }
        formatter.write_str(message)
    }
}

/// Bytes of the file.
pub(super) type Place = Range<usize>;

/// Collects problems and warnings of one file.
pub(super) struct Report<'t> {
    file: &'t Path,
    text: &'t str,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t Path, text: &'t str) -> Self {
        Self { file, text, problems: RefCell::default(), warnings: RefCell::default() }
    }

    pub(super) fn problem(&self, place: &Place, key: &str, message: impl Into<String>) {
        self.problems.borrow_mut().push(self.at(place, key, message.into()));
    }

    pub(super) fn warning(&self, place: &Place, key: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(self.at(place, key, message.into()));
    }

    /// The line of a place, from 1.
    pub(super) fn line(&self, place: &Place) -> usize {
        self.position(place).0
    }

    /// `FILE:LINE:COLUMN` of a place.
    pub(super) fn shown(&self, place: &Place) -> String {
        let (line, column) = self.position(place);
        format!("{}:{line}:{column}", self.file.display())
    }

    fn at(&self, place: &Place, key: &str, message: String) -> Problem {
        let (line, column) = self.position(place);
        Problem { file: self.file.to_owned(), line, column, key: key.to_owned(), message }
    }

    fn position(&self, place: &Place) -> (usize, usize) {
        let before = self.text.get(..place.start.min(self.text.len())).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        (line, before.get(line_start..).unwrap_or_default().chars().count() + 1)
    }

    /// In the order of the file: the problems, and the warnings as text.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<String>) {
        let sorted = |problems: RefCell<Vec<Problem>>| {
            let mut problems = problems.into_inner();
            problems.sort_by_key(|problem| (problem.line, problem.column));
            problems
        };
        let warnings = sorted(self.warnings).iter().map(ToString::to_string).collect();
        (sorted(self.problems), warnings)
    }
}

/// A text together with its place.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) place: Place,
}

/// One table of the file. Dropped, it reports every key that nobody has asked for.
pub(super) struct Section<'t> {
    report: &'t Report<'t>,
    name: String,
    table: Option<&'t DeTable<'t>>,
    pub(super) place: Place,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'t> Section<'t> {
    pub(super) const fn new(
        report: &'t Report<'t>,
        name: String,
        table: Option<&'t DeTable<'t>>,
        place: Place,
    ) -> Self {
        Self { report, name, table, place, asked: RefCell::new(BTreeSet::new()) }
    }

    pub(super) const fn report(&self) -> &'t Report<'t> {
        self.report
    }

    /// The key with its sections.
    pub(super) fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(super) fn problem(&self, place: &Place, key: &str, message: impl Into<String>) {
        self.report.problem(place, &self.full(key), message);
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Where a key stands; the section itself where it does not.
    pub(super) fn place_of(&self, key: &'static str) -> Place {
        self.value(key).map_or_else(|| self.place.clone(), Spanned::span)
    }

    fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.asked.borrow_mut().insert(key);
        self.table?.get(key)
    }

    fn wrong_type(&self, value: &Spanned<DeValue<'_>>, key: &str, wanted: &str) {
        let found = value.get_ref().type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        self.problem(&value.span(), key, format!("is {article} {found}; write {wanted}"));
    }

    pub(super) fn is_text(&self, key: &'static str) -> bool {
        self.value(key).is_some_and(|value| value.get_ref().is_str())
    }

    pub(super) fn text(&self, key: &'static str) -> Option<Text> {
        let value = self.value(key)?;
        if let Some(text) = value.get_ref().as_str() {
            Some(Text { text: text.to_owned(), place: value.span() })
        } else {
            self.wrong_type(value, key, "a text in quotes");
            None
        }
    }

    pub(super) fn text_or(&self, key: &'static str, default: &str) -> String {
        self.text(key).map_or_else(|| default.to_owned(), |text| text.text)
    }

    /// A text that its type parses; the default where it is missing or wrong.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &'static str, default: T) -> T {
        let Some(text) = self.text(key) else { return default };
        match text.text.parse() {
            Ok(value) => value,
            Err(error) => {
                self.problem(&text.place, key, error.to_string());
                default
            }
        }
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(key) else { return default };
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text.text) {
            return *value;
        }
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.problem(&text.place, key, format!("{:?} is not known; write one of {}", text.text, words.join(", ")));
        default
    }

    pub(super) fn boolean(&self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(value, key, "true or false");
            default
        })
    }

    pub(super) fn integer(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.value(key) else { return default };
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(value, key, &wanted);
            return default;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                self.problem(&value.span(), key, format!("{integer} is out of range; write {wanted}"));
                default
            }
        }
    }

    pub(super) fn texts(&self, key: &'static str) -> Vec<Text> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(value, key, "a list of texts, for example [\"a\", \"b\"]");
            return Vec::new();
        };
        array
            .iter()
            .filter_map(|item| {
                if let Some(text) = item.get_ref().as_str() {
                    Some(Text { text: text.to_owned(), place: item.span() })
                } else {
                    self.wrong_type(item, key, "texts in the list");
                    None
                }
            })
            .collect()
    }

    /// A table below this one; an empty one where it is missing.
    pub(super) fn section(&self, key: &'static str) -> Section<'t> {
        let name = self.full(key);
        let Some(value) = self.value(key) else { return Section::new(self.report, name, None, self.place.clone()) };
        if value.get_ref().is_table() {
            return Section::new(self.report, name, value.get_ref().as_table(), value.span());
        }
        self.wrong_type(value, key, &format!("a table: [{name}]"));
        Section::new(self.report, name, None, value.span())
    }

    /// The tables of an array such as `[[route]]`.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'t>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(value, key, &format!("it in double brackets: [[{key}]]"));
            return Vec::new();
        };
        array
            .iter()
            .filter_map(|item| {
                if item.get_ref().is_table() {
                    Some(Section::new(self.report, self.full(key), item.get_ref().as_table(), item.span()))
                } else {
                    self.wrong_type(item, key, "a table");
                    None
                }
            })
            .collect()
    }

    /// Every key with its value's section, for tables whose keys are names.
    pub(super) fn named(&self) -> Vec<(Text, Section<'t>)> {
        let Some(table) = self.table else { return Vec::new() };
        table
            .iter()
            .filter_map(|(name, value)| {
                let full = self.full(name.get_ref());
                if value.get_ref().is_table() {
                    let text = Text { text: name.get_ref().to_string(), place: name.span() };
                    Some((text, Section::new(self.report, full, value.get_ref().as_table(), value.span())))
                } else {
                    self.wrong_type(value, name.get_ref(), &format!("a table: [{full}]"));
                    None
                }
            })
            .collect()
    }

    /// Every key with its text, for tables whose keys are names.
    pub(super) fn pairs(&self) -> Vec<(Text, Text)> {
        let Some(table) = self.table else { return Vec::new() };
        table
            .iter()
            .filter_map(|(name, value)| {
                if let Some(text) = value.get_ref().as_str() {
                    Some((
                        Text { text: name.get_ref().to_string(), place: name.span() },
                        Text { text: text.to_owned(), place: value.span() },
                    ))
                } else {
                    self.wrong_type(value, name.get_ref(), "a text in quotes");
                    None
                }
            })
            .collect()
    }

    /// Reports the keys that nobody has asked for.
    pub(super) fn close(self) {
        let Some(table) = self.table else { return };
        let asked = self.asked.borrow();
        for name in table.keys() {
            if asked.contains(&**name.get_ref()) {
                continue;
            }
            let near = asked
                .iter()
                .filter(|known| distance(known, name.get_ref()) <= 2)
                .min_by_key(|known| distance(known, name.get_ref()));
            let message = if let Some(known) = near {
                format!("is not known; did you mean {known:?}?")
            } else {
                let known: Vec<&str> = asked.iter().copied().collect();
                format!("is not known; known here: {}", known.join(", "))
            };
            self.problem(&name.span(), name.get_ref(), message);
        }
    }
}

/// How many letters have to change to make one word of another (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().take(64).enumerate() {
        let mut diagonal = index;
        let mut left = index + 1;
        for (cell, candidate) in row.iter_mut().skip(1).zip(&other) {
            let replaced = diagonal + usize::from(letter != *candidate);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_near() {
        assert_eq!(distance("listen", "listen"), 0);
        assert_eq!(distance("listen", "lisen"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
