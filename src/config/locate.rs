//! Where a key stands in a file, for what turns out to be wrong only outside of it.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::reader::{Problem, Report};

/// A problem of a key such as `server.listen`, at its place in the file; `index` counts in a list. A key that is not
/// written is a problem of its section, or of the file.
#[must_use]
pub fn problem_at(file: &Path, key: &str, index: Option<usize>, message: String) -> Problem {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let place = DeTable::parse(&text).map_or(0..0, |table| {
        let mut place = 0..0;
        let mut table = Some(table.get_ref());
        let mut found: Option<&Spanned<DeValue<'_>>> = None;
        for part in key.split('.') {
            let Some(value) = table.and_then(|table| table.get(part)) else {
                found = None;
                break;
            };
            place = value.span();
            table = value.get_ref().as_table();
            found = Some(value);
        }
        let item = found.zip(index).and_then(|(value, index)| value.get_ref().as_array()?.get(index));
        item.map_or(place, Spanned::span)
    });
    let report = Report::new(file, &text);
    report.problem(&place, key, message);
    let (mut problems, _) = report.finish();
    problems.remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_stands_where_its_key_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        std::fs::write(&file, "data_dir = \"d\"\n[server]\nlisten = [\"a:1\",\n  \"b:2\"]\n").unwrap();
        for (key, index, line, column) in [
            ("data_dir", None, 1, 12),
            ("server.listen", None, 3, 10),
            ("server.listen", Some(1), 4, 3),
            ("server.drain", None, 2, 1),
            ("admin.listen", None, 1, 1),
        ] {
            let problem = problem_at(&file, key, index, String::from("is odd"));
            assert_eq!((problem.line, problem.column), (line, column), "{problem}");
            assert!(problem.to_string().ends_with(&format!("{key}: is odd")), "{problem}");
        }
    }
}
