//! What a new password must be.

use super::password::MAX_BYTES;
use crate::config;

/// The most common passwords of eight characters and more, in lower case, sorted, one a line. The facts come from the
/// list that Django ships for the same purpose, which goes back to Royce Williams' public counts.
const COMMON: &str = include_str!("common_passwords.txt");

/// Checks a password that is to be set. The error is a sentence without its full stop, for the person who chose it.
pub(crate) fn check_new_password(login: &config::Login, username: &str, password: &str) -> Result<(), String> {
    if password.chars().count() < login.min_password_length {
        return Err(format!("the password is shorter than {} characters", login.min_password_length));
    }
    if password.len() > MAX_BYTES {
        return Err(format!("the password is longer than {MAX_BYTES} bytes"));
    }
    if password.contains('\0') {
        return Err(String::from("the password has a NUL character in it"));
    }
    let folded = password.to_lowercase();
    if folded == username.to_lowercase() {
        return Err(String::from("the password is the user name"));
    }
    if is_common(&folded) {
        return Err(String::from("the password is one of the most common ones; choose another"));
    }
    Ok(())
}

/// Lines differ in length, so the search goes by bytes and then to the line that it hit.
fn is_common(folded: &str) -> bool {
    let (mut low, mut high) = (0, COMMON.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        let start = COMMON.as_bytes().get(..middle).and_then(|before| before.iter().rposition(|byte| *byte == b'\n'));
        let start = start.map_or(0, |newline| newline + 1);
        let Some(line) = COMMON.get(start..).and_then(|rest| rest.split('\n').next()) else { return false };
        match line.as_bytes().cmp(folded.as_bytes()) {
            std::cmp::Ordering::Equal => return true,
            std::cmp::Ordering::Less => low = start + line.len() + 1,
            std::cmp::Ordering::Greater => high = start,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_every_line_of_it_is_found() {
        let lines: Vec<&str> = COMMON.lines().collect();
        assert!(lines.len() > 7_000, "{}", lines.len());
        assert!(lines.is_sorted());
        assert!(lines.iter().all(|line| is_common(line)));
        for other in ["", "correct horse battery staple", "zzzzzzzzzzzzzz!", "!"] {
            assert!(!is_common(other), "{other}");
        }
    }

    #[test]
    fn each_rule_has_its_words() {
        let login = config::Login {
            bcrypt_cost: 4,
            max_attempts: 5,
            max_attempts_per_network: 50,
            window: std::time::Duration::from_mins(5),
            min_password_length: 8,
            redirect_hosts: Vec::new(),
            title: String::new(),
            help: String::new(),
        };
        for (password, word) in [
            ("short", "shorter"),
            ("Password1", "common"),
            ("kim.miller", "user name"),
            ("with\0nul-in-it", "NUL"),
            (&*"x".repeat(1025), "longer"),
        ] {
            let error = check_new_password(&login, "Kim.Miller", password).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(check_new_password(&login, "kim", "plough-7-violets"), Ok(()));
        assert_eq!(check_new_password(&login, "kim", "비밀번호가길어요"), Ok(()));
    }
}
