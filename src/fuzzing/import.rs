//! Files of accounts: whole or not at all, and no secret in a message.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use crate::accounts::hashing::HashPool;
use crate::accounts::import::{Imported, authelia, htpasswd, json, to_json};
use crate::accounts::{Accounts, password};
use crate::clock::Clock;
use crate::store::{Memory, Store as _};
use crate::telemetry::audit::Audit;

/// The first byte is the format (`h`, `j` or `a`), the rest is the file.
pub fn import(data: &[u8]) {
    let Some((format, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let read = match format {
        b'h' => htpasswd(text),
        b'j' => json(text),
        b'a' => authelia(text),
        _ => return,
    };
    match read {
        Ok(accounts) => accepted(*format, text, &accounts),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            for problem in &problems {
                assert!(!problem.chars().any(char::is_control), "{problem:?}");
                for hash in words(text).filter(|word| is_of_a_known_scheme(word)) {
                    // The end of it, for a name may look like the beginning; and that stands nowhere else.
                    let end: String = hash.chars().skip(hash.chars().count().saturating_sub(24)).collect();
                    let shows = problem.contains(&end) && text.matches(&end).count() == 1;
                    assert!(!shows, "a hash shows: {problem}");
                }
            }
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|sign: char| sign.is_whitespace() || matches!(sign, ':' | '"' | '\''))
}

fn accepted(format: u8, text: &str, accounts: &[Imported]) {
    let (mut names, mut ids) = (HashSet::new(), HashSet::new());
    for account in accounts {
        let name = account.username.as_str();
        assert!(names.insert(name.to_owned()), "{name:?} is there twice");
        assert!(!name.is_empty() && name.chars().count() <= 64, "{name:?}");
        assert!(
            !name.chars().any(|sign| sign.is_control() || sign.is_whitespace() || sign.is_ascii_uppercase()),
            "{name:?}"
        );
        assert!(
            account.id.as_ref().is_none_or(|id| ids.insert(id.as_str().to_owned())),
            "{:?} is there twice",
            account.id
        );
        let hash = account.password_hash.expose();
        assert!(is_of_a_known_scheme(hash), "{hash:?} is no hash");
        assert!(password::validate(hash).is_ok());
        for group in &account.groups {
            assert!(!group.is_empty() && !group.contains(|sign: char| sign == ',' || sign.is_control()), "{group:?}");
        }
        assert!(!account.email.chars().any(|sign| sign.is_control() || sign.is_whitespace()));
        assert!(!account.display_name.chars().any(char::is_control));
    }
    if format == b'h' {
        let lines = text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').map(str::trim_ascii);
        assert_eq!(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).count(), accounts.len());
    }
    if accounts.len() <= 64 {
        taken_in(accounts);
    }
}

/// The kinds that the specification names, by their outer form.
fn is_of_a_known_scheme(hash: &str) -> bool {
    let cost = |text: &str| text.parse::<u32>().is_ok_and(|cost| (4..=16).contains(&cost));
    let parts: Vec<&str> = hash.split('$').collect();
    match parts.as_slice() {
        ["", "2a" | "2b" | "2y", number, rest] => cost(number) && number.len() == 2 && rest.len() == 53,
        ["", "argon2id", "v=19", _, salt, digest] => !salt.is_empty() && !digest.is_empty(),
        ["", "bcrypt-sha256", head, salt, digest] => {
            let number =
                head.strip_prefix("v=2,t=2b,r=").or_else(|| head.strip_prefix("2a,").or(head.strip_prefix("2b,")));
            number.is_some_and(cost) && salt.len() == 22 && digest.len() == 31
        }
        _ => false,
    }
}

/// Into a store with one account in it: all of them come in, or nothing changes. What was taken in can be written out
/// and read again.
fn taken_in(accounts: &[Imported]) {
    static HASHERS: OnceLock<HashPool> = OnceLock::new();
    let clock = Clock::manual(1_800_000_000);
    let store = Arc::new(Memory::new(clock.clone()));
    let hashers = HASHERS.get_or_init(|| HashPool::start(1, 1).unwrap()).clone();
    let room = Accounts::new(Arc::clone(&store) as _, clock.clone(), hashers, Audit::silent(clock));
    let first = htpasswd("kim:$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW").unwrap();
    now(room.import(first)).unwrap();
    let outcome = now(room.import(accounts.to_vec()));
    let after = now(store.accounts()).unwrap();
    match outcome {
        Ok(count) => {
            assert_eq!((count, after.len()), (accounts.len(), accounts.len() + 1));
            let again = json(&to_json(&after, true)).unwrap_or_else(|problems| panic!("{problems:?}"));
            assert_eq!(again.len(), after.len());
            for (account, again) in after.iter().zip(&again) {
                assert_eq!(
                    (&account.id, &account.username, &account.groups, account.password_hash.expose()),
                    (again.id.as_ref().unwrap(), &again.username, &again.groups, again.password_hash.expose())
                );
            }
        }
        Err(_) => assert_eq!(after.len(), 1, "half of a file was taken in"),
    }
}

/// The store in memory never makes anybody wait.
fn now<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("the store made us wait"),
    }
}
