//! The pages that people see: HTML without script, with one `<style>` block and nothing from outside.
//!
//! Every value is escaped by the template engine; nothing that a client sent reaches a page in any other way.

use std::sync::LazyLock;

use http::StatusCode;
use minijinja::{Environment, context};

use super::language::Language;
use super::words::{self, Message, fault, password_rule, word_values, words};
use crate::auth::session::MAX_SESSIONS;
use crate::clock::rfc3339;
use crate::policy::Principal;
use crate::store::{Session, SessionId};

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    // The engine's own escaping writes `/` as `&#x2f;` too, which helps nobody and hides a link from a reader.
    environment.set_formatter(|output, _, value| {
        if value.is_undefined() || value.is_none() {
            return Ok(());
        }
        write_escaped(output, &value.to_string()).map_err(minijinja::Error::from)
    });
    for (name, source) in SOURCES {
        if let Err(error) = environment.add_template(name, source) {
            // A test holds that none is wrong; without one the fallback below still says what happened.
            tracing::error!(template = name, %error, "a page template is wrong");
        }
    }
    environment
});

const SOURCES: [(&str, &str); 9] = [
    ("layout.html", include_str!("pages/layout.html")),
    ("style.css", include_str!("pages/style.css")),
    ("mark.html", include_str!("pages/mark.html")),
    ("login.html", include_str!("pages/login.html")),
    ("signed_in.html", include_str!("pages/signed_in.html")),
    ("signed_out.html", include_str!("pages/signed_out.html")),
    ("logout.html", include_str!("pages/logout.html")),
    ("account.html", include_str!("pages/account.html")),
    ("error.html", include_str!("pages/error.html")),
];

/// Escapes for text and for quoted attributes (HTML section 13.3). There is no way around it in any template.
fn write_escaped(output: &mut dyn std::fmt::Write, text: &str) -> std::fmt::Result {
    text.chars().try_for_each(|character| match character {
        '&' => output.write_str("&amp;"),
        '<' => output.write_str("&lt;"),
        '>' => output.write_str("&gt;"),
        '"' => output.write_str("&quot;"),
        '\'' => output.write_str("&#39;"),
        _ => output.write_char(character),
    })
}

/// What every page of the portal needs to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) language: Language,
    /// `portal.prefix`.
    pub(super) prefix: &'a str,
    /// This host, as the person sees it in the address bar.
    pub(super) host: &'a str,
}

/// What the login page shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LoginView<'a> {
    /// `login.title`
    pub(super) title: &'a str,
    /// `login.help`
    pub(super) help: &'a str,
    /// Already safe. Empty: the page's own address says it.
    pub(super) rd: &'a str,
    /// As it was typed, after a try that failed.
    pub(super) username: &'a str,
    pub(super) problem: Option<Message>,
}

/// The page with the login form. It has no `action`: the form goes to the page's own address, so that a `#fragment`, of
/// which only the browser knows, is still there after the login.
pub(super) fn login(place: Place<'_>, view: &LoginView<'_>) -> String {
    let Place { language, prefix, host } = place;
    let LoginView { title, help, rd, username, problem } = *view;
    // The title that nobody has chosen is said in the person's own language.
    let title = if title == DEFAULT_TITLE { words(language).sign_in } else { title };
    let problem = problem.map(|problem| problem.text(language));
    let words = word_values(language);
    render("login.html", context! { lang => language.tag(), words, prefix, host, title, help, rd, username, problem })
}

const DEFAULT_TITLE: &str = "Sign in";

/// `GET /login` for a person who is logged in already.
pub(super) fn signed_in(place: Place<'_>, username: &str, rd: &str) -> String {
    let Place { language, prefix, host } = place;
    let words = word_values(language);
    render("signed_in.html", context! { lang => language.tag(), words, prefix, host, username, rd })
}

/// What follows a logout that leads nowhere else. `rd`: where to go after signing in again; may be empty.
pub(super) fn signed_out(place: Place<'_>, rd: &str) -> String {
    let Place { language, prefix, host } = place;
    let (words, sign_in) = (word_values(language), with_rd(&format!("{prefix}/login"), rd));
    render("signed_out.html", context! { lang => language.tag(), words, host, sign_in })
}

/// `GET /logout`. `rd`: where the form leads afterwards; empty: to [`signed_out`].
pub(super) fn logout(place: Place<'_>, username: Option<&str>, rd: &str) -> String {
    let Place { language, prefix, host } = place;
    let words = word_values(language);
    render("logout.html", context! { lang => language.tag(), words, prefix, host, username, rd })
}

/// What the account page shows.
pub(super) struct AccountView<'a> {
    pub(super) person: &'a Principal,
    pub(super) sessions: &'a [Session],
    pub(super) current: Option<&'a SessionId>,
    pub(super) min_password_length: usize,
    pub(super) notice: Option<Message>,
    pub(super) problem: Option<Message>,
    /// More about the problem, from the rules for passwords.
    pub(super) detail: &'a str,
}

/// `GET /account`.
pub(super) fn account(place: Place<'_>, view: &AccountView<'_>) -> String {
    let Place { language, prefix, host } = place;
    let words = word_values(language);
    let person = view.person;
    let sessions: Vec<_> = view
        .sessions
        .iter()
        .rev()
        .take(MAX_SESSIONS)
        .map(|session| session_row(language, session, view.current))
        .collect();
    let problem = view.problem.map(|problem| {
        let text = problem.text(language);
        let detail = words::password_detail(language, view.detail);
        if detail.is_empty() { text } else { format!("{text} {detail}") }
    });
    render(
        "account.html",
        context! {
            lang => language.tag(), words, prefix, host,
            username => person.username.as_str(), display_name => person.display_name.as_str(),
            email => person.email.as_str(), groups => person.groups.clone(),
            notice => view.notice.map(|notice| notice.text(language)), problem,
            min_password_length => view.min_password_length,
            password_rule => password_rule(language, view.min_password_length),
            sessions,
        },
    )
}

fn session_row(language: Language, session: &Session, current: Option<&SessionId>) -> minijinja::Value {
    context! {
        id => session.id.as_str(),
        program => program(&session.user_agent).unwrap_or_else(|| words(language).unknown_program.to_owned()),
        address => session.address.as_str(),
        created => minute(session.created),
        created_rfc3339 => rfc3339(session.created),
        renewed => minute(session.renewed),
        renewed_rfc3339 => rfc3339(session.renewed),
        current => current == Some(&session.id),
    }
}

/// `2026-11-24 09:30 UTC`: the page does not know the person's time zone.
fn minute(unix_seconds: u64) -> String {
    let text = rfc3339(unix_seconds).replacen('T', " ", 1);
    format!("{} UTC", text.get(..16).unwrap_or(&text))
}

/// What a browser is commonly called, from what it calls itself; other programs by the start of theirs.
fn program(user_agent: &str) -> Option<String> {
    const BROWSERS: [(&str, &str); 7] = [
        ("Edg", "Edge"),
        ("OPR/", "Opera"),
        ("SamsungBrowser/", "Samsung Internet"),
        ("Whale/", "Whale"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
    ];
    const SYSTEMS: [(&str, &str); 7] = [
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Windows", "Windows"),
        ("Macintosh", "macOS"),
        ("CrOS", "ChromeOS"),
        ("Linux", "Linux"),
    ];
    let named = |table: &[(&str, &'static str)]| {
        table.iter().find(|(sign, _)| user_agent.contains(sign)).map(|(_, name)| *name)
    };
    match (named(&BROWSERS), named(&SYSTEMS)) {
        (Some(browser), Some(system)) => Some(format!("{browser}, {system}")),
        (Some(browser), None) => Some(browser.to_owned()),
        (None, _) => {
            let start: String = user_agent.chars().filter(|character| !character.is_control()).take(60).collect();
            (!start.trim().is_empty()).then_some(start)
        }
    }
}

/// What a page needs to know that says why there is no answer.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// The reader's.
    pub language: Language,
    /// What the answer's status is.
    pub status: StatusCode,
    /// `portal.prefix`.
    pub prefix: &'a str,
    /// A person's form came, which their browser can send once more.
    pub is_form: bool,
    /// The path to come back to after another login; empty: none.
    pub back: &'a str,
    /// `login.help`.
    pub help: &'a str,
    /// Shown so that a person can name it to the administrator; may be empty.
    pub request_id: &'a str,
    /// A sentence about this very request; may be empty.
    pub detail: &'a str,
}

/// A small page that says in plain words why there is no answer. For people; programs get a problem report.
#[must_use]
pub fn error_page(failed: &Failed<'_>) -> String {
    let Failed { language, status, prefix, is_form, back, help, request_id, detail } = *failed;
    let is_refused = status == StatusCode::FORBIDDEN;
    // Only where a person is refused would another login help.
    let other_login = is_refused.then(|| with_rd(&format!("{prefix}/logout"), back));
    let may_pass = matches!(status.as_u16(), 502..=504);
    render(
        "error.html",
        context! {
            lang => language.tag(), words => word_values(language), status => status.as_u16(), request_id, other_login,
            detail, heading => fault(language, status).0, explanation => fault(language, status).1,
            help => if is_refused { help } else { "" },
            try_again => may_pass && !is_form, send_again => may_pass && is_form,
        },
    )
}

/// The page for a person whose form came without a login: nothing was done with it, and the browser still has it.
/// `login_url`: opened in another tab.
#[must_use]
pub fn form_without_login(language: Language, login_url: &str, request_id: &str) -> String {
    let (heading, explanation) = words::form_without_login(language);
    render(
        "error.html",
        context! {
            lang => language.tag(), words => word_values(language), status => 401, request_id, heading, explanation,
            sign_in => login_url,
        },
    )
}

/// A path with `rd` behind it, where there is one.
fn with_rd(path: &str, rd: &str) -> String {
    if rd.is_empty() {
        return path.to_owned();
    }
    format!("{path}?{}", form_urlencoded::Serializer::new(String::new()).append_pair("rd", rd).finish())
}

/// The page for somebody whose form was sent by another site's page. `met`: the evidence, for whoever has to mend it.
pub(super) fn cross_site(language: Language, met: &str) -> String {
    let (heading, explanation) = words::cross_site(language);
    let (lang, words) = (language.tag(), word_values(language));
    render("error.html", context! { lang, words, status => 403, heading, explanation, detail => met })
}

fn render(name: &str, values: minijinja::Value) -> String {
    TEMPLATES.get_template(name).and_then(|template| template.render(values)).unwrap_or_else(|error| {
        tracing::error!(template = name, %error, "a page can't be made");
        String::from(
            "<!doctype html><html lang=\"en\"><title>Error</title><style></style><p>This page can't be made.</html>",
        )
    })
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
