//! The one place that prints.

use std::io::{self, IsTerminal as _, Write as _};

use super::{Done, Failure};
use crate::secret::Secret;

/// Standard output and standard error. Only `run` makes one, so that a look at the signatures tells who prints.
pub(super) struct Output {
    output: io::Stdout,
    error: io::Stderr,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { output: io::stdout(), error: io::stderr() }
    }

    /// One line on standard output.
    pub(super) fn line(&mut self, text: &str) -> Done {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Bytes on standard output, as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Done {
        let mut output = self.output.lock();
        match output.write_all(bytes).and_then(|()| output.flush()) {
            // `doorward user list | head` is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|error| Failure::failed(format!("can't write to standard output: {error}"))),
        }
    }

    /// A message on standard error.
    pub(super) fn error(&mut self, text: &str) {
        let mut output = self.error.lock();
        // With no standard error left there is nobody to tell.
        let _ = writeln!(output, "doorward: {text}");
    }

    /// A hint on standard error, without the program's name.
    pub(super) fn note(&mut self, text: &str) {
        // With no standard error left there is nobody to tell.
        let _ = writeln!(self.error.lock(), "{text}");
    }

    /// Rows of text in columns, with a heading. What an account is called can't move the cursor.
    pub(super) fn table(&mut self, heading: &[&str], rows: &[Vec<String>]) -> Done {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&heading).chain(&rows) {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        self.bytes(text.as_bytes())
    }

    /// A JSON value on standard output.
    pub(super) fn json(&mut self, value: &serde_json::Value) -> Done {
        let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
        self.line(&text)
    }
}

/// Escapes control characters and those that change the direction of writing.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if character.is_control() || hidden {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
        out
    })
}

/// The beginning of a text that has more than `most` characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A new password: from standard input, random, or typed twice on a terminal.
pub(super) fn new_password(
    from: &super::arguments::NewPassword,
    output: &mut Output,
) -> Result<Secret<String>, Failure> {
    if from.generate {
        return random_password();
    }
    if from.password_stdin {
        let mut text = Secret::new(read_standard_input()?);
        // One line end belongs to the pipe, anything else to the password.
        if let Some(rest) = text.expose().strip_suffix("\r\n").or_else(|| text.expose().strip_suffix('\n')) {
            text = Secret::new(rest.to_owned());
        }
        return Ok(text);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask for a password; use --password-stdin or --generate"));
    }
    let ask = |prompt| rpassword::prompt_password(prompt).map(Secret::new).map_err(Failure::failed);
    let first = ask("Password: ")?;
    let second = ask("Again: ")?;
    if first.matches(second.expose().as_bytes()) {
        Ok(first)
    } else {
        output.note("The two passwords differ.");
        Err(Failure::failed("nothing was changed; try again"))
    }
}

/// 120 bits in letters and digits that are not mistaken for each other.
pub(super) fn random_password() -> Result<Secret<String>, Failure> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0_u8; 24];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::failed(format!("the system gives no random bytes: {error}")))?;
    let mut password = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 && index.is_multiple_of(6) {
            password.push('-');
        }
        password.extend(LETTERS.get(usize::from(byte % 32)).map(|letter| char::from(*letter)));
    }
    Ok(Secret::new(password))
}

/// All of standard input as text.
pub(super) fn read_standard_input() -> Result<String, Failure> {
    io::read_to_string(io::stdin()).map_err(|error| Failure::failed(format!("standard input can't be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_not_paint_on_the_terminal() {
        assert_eq!(printable("kim"), "kim");
        assert_eq!(printable("a\u{1b}[2J\u{202e}b"), "a\\u{1b}[2J\\u{202e}b");
    }

    #[test]
    fn random_passwords_differ_and_are_long() {
        let (one, two) = (random_password().unwrap(), random_password().unwrap());
        assert!(!one.matches(two.expose().as_bytes()));
        assert_eq!(one.expose().len(), 27);
    }
}
