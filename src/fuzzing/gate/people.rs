//! Who there is, what tokens they hold, and what each is worth now: kept apart from the product, by plain books.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::script::Event;
use crate::accounts::Accounts;
use crate::auth::session::{Issued, Sessions};
use crate::clock::Clock;
use crate::fuzzing::token::with_signature;
use crate::gate::Shared;
use crate::secret::Secret;
use crate::store::{Account, AccountId, Store, Username, Write};

pub(super) const BEGIN: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3600;
const GROUPS: [&str; 3] = ["staff", "ops", "extra"];
/// Seconds that an event lets pass.
const WAITS: [u64; 10] = [1, 60, 1800, 6 * 3600, DAY, 3 * DAY, 3 * DAY + DAY / 2, 6 * DAY, 8 * DAY, 31 * DAY];

pub(super) struct Person {
    pub(super) name: &'static str,
    pub(super) groups: Vec<String>,
    id: AccountId,
    is_there: bool,
    is_disabled: bool,
}

/// A token that was given out, or made up.
pub(super) struct Token {
    pub(super) text: String,
    /// One of our keys has signed it.
    pub(super) is_signed: bool,
    owner: usize,
    /// `None`: a foreign issuer's.
    session: Option<String>,
    expires: u64,
    is_over: bool,
}

pub(super) struct People {
    clock: Clock,
    accounts: Accounts,
    sessions: Arc<Sessions>,
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
    all: Vec<Person>,
    pub(super) tokens: Vec<Token>,
}

impl People {
    /// Four people and ten tokens, good and bad.
    pub(super) async fn new(
        clock: Clock,
        store: Arc<dyn Store>,
        accounts: Accounts,
        sessions: Arc<Sessions>,
        shared: Arc<Shared>,
    ) -> Self {
        let mut people = Self { clock, accounts, sessions, store, shared, all: Vec::new(), tokens: Vec::new() };
        for (name, groups) in [("kim", &["staff"][..]), ("lee", &["ops"]), ("park", &[]), ("han", &["staff", "ops"])] {
            people.add(name, groups).await;
        }
        people.log_in(0).await; // $0: kim's, long expired
        people.log_in(3).await; // $1: han's, expired and disabled
        people.wait(8 * DAY);
        people.log_in(3).await; // $2: han's
        people.happen(&Event::Disable(3)).await;
        people.log_in(0).await; // $3
        people.log_in(1).await; // $4
        people.log_in(2).await; // $5
        people.foreign(0); // $6
        people.foreign(1); // $7
        people.forged(0); // $8
        people.log_in(1).await; // $9
        people
    }

    async fn add(&mut self, name: &'static str, groups: &[&str]) {
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let account = Account {
            id: format!("id-{name}").parse().unwrap(),
            username: Username::canonical(name).unwrap(),
            password_hash: Secret::new(String::from("$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW")),
            groups: groups.clone(),
            email: format!("{name}@example.com"),
            display_name: String::new(),
            disabled: false,
            version: 0,
            created: BEGIN,
            changed: BEGIN,
            revision: 0,
        };
        let id = account.id.clone();
        self.store.apply(vec![Write::InsertAccount(account)]).await.unwrap();
        self.all.push(Person { name, groups, id, is_there: true, is_disabled: false });
    }

    async fn log_in(&mut self, owner: usize) {
        let person = &self.all[owner];
        if !person.is_there || person.is_disabled {
            return;
        }
        let log_head = self.store.log_head().await.unwrap();
        let Some(account) = self.store.account(&person.id).await.unwrap() else { return };
        let live = self.shared.live();
        let client = "192.0.2.7".parse().unwrap();
        let started =
            self.sessions.start(&live.ring, &live.config.token, &account, log_head, client, "fuzz", &[]).await;
        let Issued { token, expires, session, .. } = started.unwrap();
        let session = Some(session.to_string());
        let text = token.expose().clone();
        self.tokens.push(Token { text, is_signed: true, owner, session, expires, is_over: false });
    }

    /// As a backend with the same secret issues it.
    fn foreign(&mut self, owner: usize) {
        let (person, now) = (&self.all[owner], self.clock.unix_seconds());
        let expires = now + 7 * DAY;
        let claims = format!(
            r#"{{"_id":"{}","username":"{}","groups":["ops","staff"],"iat":{now},"exp":{expires}}}"#,
            person.id, person.name
        );
        let text = with_signature(r#"{"alg":"HS256","typ":"JWT"}"#, &claims);
        self.tokens.push(Token { text, is_signed: true, owner, session: None, expires, is_over: false });
    }

    /// Another person's claims under the signature of a good token.
    fn forged(&mut self, owner: usize) {
        let good: Vec<&str> = self.tokens.last().map(|token| token.text.split('.').collect()).unwrap_or_default();
        let now = self.clock.unix_seconds();
        let (id, name) = (&self.all[owner].id, self.all[owner].name);
        let claims = format!(r#"{{"_id":"{id}","username":"{name}","iat":{now},"exp":{}}}"#, now + DAY);
        let text = format!("{}.{}.{}", good[0], URL_SAFE_NO_PAD.encode(claims), good[2]);
        self.tokens.push(Token { text, is_signed: false, owner, session: None, expires: 0, is_over: true });
    }

    fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn end(&mut self, is_it: impl Fn(&Token) -> bool) {
        for token in self.tokens.iter_mut().filter(|token| is_it(token)) {
            token.is_over = true;
        }
    }

    /// Does it to the product, and writes it into the books.
    pub(super) async fn happen(&mut self, event: &Event) {
        let live = self.shared.live();
        let token = &live.config.token;
        let who = |number: &usize| number % self.all.len();
        match event {
            Event::Revoke(number) => {
                let Some(session) = self.tokens[number % self.tokens.len()].session.clone() else { return };
                if self.sessions.revoke(token, &session.parse().unwrap()).await.unwrap() {
                    self.end(|token| token.session.as_ref() == Some(&session));
                }
            }
            Event::RevokeAccount(number) => {
                let owner = who(number);
                self.sessions.revoke_account(token, &self.all[owner].id).await.unwrap();
                self.end(|token| token.owner == owner);
            }
            Event::RevokeAll => {
                self.sessions.revoke_all(token).await.unwrap();
                self.end(|_| true);
            }
            Event::Disable(number) => {
                let owner = who(number);
                if self.accounts.disable(token, self.all[owner].name).await.is_ok() {
                    self.all[owner].is_disabled = true;
                    self.end(|token| token.owner == owner);
                }
            }
            Event::Enable(number) => {
                let owner = who(number);
                if self.accounts.enable(token, self.all[owner].name).await.is_ok() {
                    self.all[owner].is_disabled = false;
                }
            }
            Event::Remove(number) => {
                let owner = who(number);
                if self.accounts.remove(token, self.all[owner].name).await.is_ok() {
                    self.all[owner].is_there = false;
                    self.end(|token| token.owner == owner);
                }
            }
            Event::SignOutEverywhere(number) => {
                let owner = who(number);
                if self.accounts.sign_out_everywhere(token, &self.all[owner].id).await.is_ok() {
                    self.end(|token| token.owner == owner);
                }
            }
            Event::SetGroups(number, bits) => {
                let owner = who(number);
                let chosen = GROUPS.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
                let groups: Vec<String> = chosen.map(|(_, group)| (*group).to_owned()).collect();
                if self.accounts.set_groups(token, self.all[owner].name, groups.clone()).await.is_ok() {
                    self.all[owner].groups = groups;
                }
            }
            Event::Wait(number) => self.wait(WAITS[number % WAITS.len()]),
            Event::LogIn(number) => {
                let owner = who(number);
                self.log_in(owner).await;
            }
        }
    }

    /// A text with every `$` and digit replaced by that token; the last ones are reached by `$a`, `$b` and so on.
    pub(super) fn expanded(&self, text: &[u8]) -> Vec<u8> {
        let mut result = Vec::with_capacity(text.len());
        let mut rest = text;
        while let [byte, tail @ ..] = rest {
            let number = match rest {
                [b'$', digit @ b'0'..=b'9', ..] => Some(usize::from(digit - b'0')),
                [b'$', letter @ b'a'..=b'z', ..] => Some(10 + usize::from(letter - b'a')),
                _ => None,
            };
            if let Some(token) = number.and_then(|number| self.tokens.get(number)) {
                result.extend_from_slice(token.text.as_bytes());
                rest = &tail[1..];
            } else {
                result.push(*byte);
                rest = tail;
            }
        }
        result
    }

    pub(super) fn named(&self, name: &str) -> Option<&Person> {
        self.all.iter().find(|person| person.name == name)
    }

    /// The numbers of the tokens that stand somewhere in these bytes.
    pub(super) fn tokens_in(&self, bytes: &[u8]) -> Vec<usize> {
        let text = String::from_utf8_lossy(bytes);
        (0..self.tokens.len()).filter(|number| text.contains(&self.tokens[*number].text)).collect()
    }

    /// Somebody has ended it; that it has expired does not count.
    pub(super) fn is_ended(&self, number: usize) -> bool {
        let token = &self.tokens[number];
        token.is_signed && token.is_over
    }

    fn is_good(&self, token: &Token) -> bool {
        let owner = &self.all[token.owner];
        token.is_signed
            && !token.is_over
            && token.expires > self.clock.unix_seconds()
            && owner.is_there
            && !owner.is_disabled
    }

    pub(super) fn has_sent_a_good_token(&self, person: &Person, bytes: &[u8]) -> bool {
        let mut tokens = self.tokens_in(bytes).into_iter().map(|number| &self.tokens[number]);
        tokens.any(|token| self.all[token.owner].name == person.name && self.is_good(token))
    }

    pub(super) fn has_sent_a_foreign_token(&self, person: &Person, bytes: &[u8]) -> bool {
        let mut tokens = self.tokens_in(bytes).into_iter().map(|number| &self.tokens[number]);
        tokens.any(|token| self.all[token.owner].name == person.name && token.session.is_none())
    }

    /// A new token went out: to somebody who had a good one, for the same session, and no longer than allowed.
    pub(super) fn renewed(&mut self, text: &str, sent: &[usize], bytes: &[u8]) {
        if self.tokens.iter().any(|token| token.text == text) {
            return;
        }
        let payload = text.split('.').nth(1).map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&payload).unwrap();
        let shown = || format!("{claims}\nfor\n{}", String::from_utf8_lossy(bytes));
        let owner = self.all.iter().position(|person| claims["_id"] == *person.id.as_str());
        let owner = owner.unwrap_or_else(|| panic!("a token for nobody: {}", shown()));
        let from = sent.iter().map(|number| &self.tokens[*number]).find(|token| {
            let same = token.session.as_ref().is_none_or(|session| claims["sid"] == **session);
            token.owner == owner && same && self.is_good(token)
        });
        assert!(from.is_some(), "a token out of nothing: {}", shown());
        let groups = Value::from(self.all[owner].groups.clone());
        assert_eq!(claims["groups"], groups, "other groups: {}", shown());
        let expires = claims["exp"].as_u64().unwrap();
        assert!(expires <= self.clock.unix_seconds() + 7 * DAY, "too long: {}", shown());
        let auth_time = claims["auth_time"].as_u64().unwrap();
        assert!(expires <= auth_time + 30 * DAY, "past its longest life: {}", shown());
        let session = claims["sid"].as_str().map(str::to_owned);
        self.tokens.push(Token { text: text.to_owned(), is_signed: true, owner, session, expires, is_over: false });
    }

    /// The one good token of a request that sent it in the plainest way, and no other.
    pub(super) fn plainly_sent(&self, sent: &[usize], bytes: &[u8]) -> Option<usize> {
        let [only] = sent else { return None };
        let token = &self.tokens[*only];
        let text = String::from_utf8_lossy(bytes);
        let plain = text.contains(&format!("\r\nCookie: access_token={}\r\n", token.text));
        let alone = text.matches("access_token").count() == 1 && !text.to_ascii_lowercase().contains("authorization");
        (self.is_good(token) && plain && alone).then_some(*only)
    }

    /// The session of a token that came in the plainest way is over.
    pub(super) fn logged_out(&mut self, sent: &[usize], bytes: &[u8]) {
        let Some(only) = self.plainly_sent(sent, bytes) else { return };
        let token = &self.tokens[only];
        let (owner, session) = (token.owner, token.session.clone());
        self.end(|token| token.owner == owner && token.session == session);
    }
}
