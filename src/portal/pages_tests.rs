use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::store::AccountId;

fn place(language: Language) -> Place<'static> {
    Place { language, prefix: "/_auth", host: "app.example.com:8443" }
}

fn kim() -> Arc<Principal> {
    Arc::new(Principal {
        id: String::from("1"),
        username: String::from("kim"),
        groups: vec![String::from("staff"), String::from("<b>admin")],
        email: String::from("kim@example.com"),
        display_name: String::from("김 민지"),
    })
}

fn session(id: &str, user_agent: &str, created: u64, renewed: u64) -> Session {
    Session {
        id: id.parse().unwrap(),
        account: AccountId::try_from(String::from("1")).unwrap(),
        created,
        renewed,
        expires: renewed + 604_800,
        address: String::from("192.0.2.7"),
        user_agent: user_agent.to_owned(),
    }
}

fn account_page(language: Language, notice: Option<Message>, problem: Option<Message>, detail: &str) -> String {
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let hostile = "\"><script>alert(1)</script>\u{1b}[2J";
    let sessions =
        [session("one", hostile, 1_795_000_000, 1_795_000_000), session("two", firefox, 1_795_400_000, 1_795_512_600)];
    let current = "two".parse().unwrap();
    let view = AccountView {
        person: &kim(),
        sessions: &sessions,
        current: Some(&current),
        min_password_length: 8,
        notice,
        problem,
        detail,
    };
    account(place(language), &view)
}

/// Every page there is, by name.
fn all_pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for language in [Language::English, Language::Korean] {
        let tag = language.tag();
        let here = place(language);
        let mut add = |name: &str, html: String| pages.push((format!("{name}_{tag}"), html));
        add("login", login(here, &LoginView { title: "Sign in", rd: "/a?b=1&c=\"", ..LoginView::default() }));
        let wrong = LoginView {
            title: "Sign in",
            help: "Ask <ops>.",
            rd: "/",
            username: "kim\"",
            problem: Some(Message::WrongLogin),
        };
        add("login_wrong", login(here, &wrong));
        add("signed_in", signed_in(here, "kim", "/"));
        add("logout", logout(here, Some("kim"), "/"));
        add("logout_nobody", logout(here, None, ""));
        add("signed_out", signed_out(here, "/a?b"));
        add("form_without_login", form_without_login(language, "/_auth/login", "0199-abc"));
        add("account", account_page(language, Some(Message::PasswordChanged), None, ""));
        add(
            "account_problem",
            account_page(
                language,
                None,
                Some(Message::NewPasswordRefused),
                "the password is shorter than 8 characters",
            ),
        );
        add("cross_site", cross_site(language, "Origin null, Sec-Fetch-Site absent, this host http://app.test"));
        for status in [400, 403, 404, 429, 502, 503, 504] {
            let status = StatusCode::from_u16(status).unwrap();
            let help = "Ask <ops>.";
            let failed = Failed {
                language,
                status,
                prefix: "/_auth",
                is_form: false,
                back: "/a?b",
                help,
                request_id: "0199-abc",
                detail: "",
            };
            add(&format!("error_{}", status.as_u16()), error_page(&failed));
            add(&format!("error_{}_form", status.as_u16()), error_page(&Failed { is_form: true, back: "", ..failed }));
        }
    }
    pages
}

/// The style is the same everywhere and would drown the rest of a snapshot.
fn without_style(html: &str) -> String {
    let (before, rest) = html.split_once("<style>").unwrap();
    let (_, after) = rest.split_once("</style>").unwrap();
    format!("{before}<style>…</style>{after}")
}

#[test]
fn the_pages_are_as_they_were_approved() {
    for (name, html) in all_pages() {
        insta::assert_snapshot!(name, without_style(&html));
    }
}

#[test]
fn every_page_is_fit_for_our_content_security_policy() {
    for (name, html) in all_pages() {
        assert!(html.starts_with("<!doctype html>"), "{name}");
        assert!(html.contains("<html lang=\"en\">") || html.contains("<html lang=\"ko\">"), "{name}");
        assert_eq!(html.matches("<style").count(), 1, "{name}");
        assert!(html.contains("prefers-color-scheme: dark"), "{name}");
        for forbidden in
            ["<script", "style=", "onclick", "onload", "javascript:", "src=", "@import", "url(", "https://"]
        {
            assert!(!html.contains(forbidden), "{name}: {forbidden}");
        }
        // Nothing is linked but the icon, which is written into the page.
        assert_eq!(
            (html.matches("<link").count(), html.matches("<link rel=icon href=data:").count()),
            (1, 1),
            "{name}"
        );
        // Every input that a person fills in has its label.
        for (place, _) in html.match_indices("<input id=\"") {
            let id = html[place + 11..].split('"').next().unwrap();
            assert!(html.contains(&format!("<label for=\"{id}\">")), "{name}: {id}");
        }
    }
}

#[test]
fn the_style_is_the_same_on_every_page() {
    let styles: std::collections::BTreeSet<String> = all_pages()
        .into_iter()
        .map(|(_, html)| html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0.to_owned())
        .collect();
    assert_eq!(styles.len(), 1);
    let style = styles.first().unwrap();
    assert!(style.contains("font: 1rem/1.5 system-ui"), "the style is written as it stands, not escaped");
}

#[test]
fn the_operators_title_is_kept_and_the_default_is_translated() {
    let titled = |title| login(place(Language::Korean), &LoginView { title, ..LoginView::default() });
    assert!(titled("Sign in").contains("<h1>로그인</h1>"));
    assert!(titled("Acme <Corp>").contains("<h1>Acme &lt;Corp&gt;</h1>"));
}

#[test]
fn programs_are_named_as_people_know_them() {
    for (user_agent, expected) in [
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
            Some("Chrome, Windows"),
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0",
            Some("Edge, Windows"),
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1",
            Some("Safari, iPhone"),
        ),
        (
            "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/141.0 Mobile Safari/537.36",
            Some("Chrome, Android"),
        ),
        ("curl/8.5.0", Some("curl/8.5.0")),
        ("", None),
        ("  ", None),
    ] {
        assert_eq!(program(user_agent).as_deref(), expected, "{user_agent}");
    }
}

#[test]
fn times_are_shown_to_the_minute() {
    assert_eq!(minute(1_795_512_600), "2026-11-24 09:30 UTC");
}

/// Writes the pages to the folder that `PORTAL_PAGES` names, to look at them in a browser.
#[test]
#[ignore = "only to look at the pages"]
fn write_the_pages() {
    let folder = std::path::PathBuf::from(std::env::var("PORTAL_PAGES").expect("PORTAL_PAGES names a folder"));
    for (name, html) in all_pages() {
        std::fs::write(folder.join(format!("{name}.html")), html).unwrap();
    }
}

proptest! {
    #[test]
    fn no_value_breaks_out_of_a_page(text in "[<>\"'&a-z/ {}%=\u{1}-\u{1f}]{0,40}") {
        let view = |text| LoginView { title: text, help: text, rd: text, username: text, problem: None };
        let plain = login(place(Language::English), &view("t"));
        prop_assume!(!text.is_empty());
        let html = login(Place { language: Language::English, prefix: "/_auth", host: &text }, &view(&text));
        for sign in ["<form", "<input", "<script", "<h1", "<p", "<svg"] {
            prop_assert_eq!(html.matches(sign).count(), plain.matches(sign).count(), "{}", sign);
        }
        prop_assert_eq!(html.matches('"').count(), plain.matches('"').count());
        let view = AccountView { person: &kim(), sessions: &[session("one", &text, 1, 1)], current: None, min_password_length: 8,
            notice: None, problem: Some(Message::RepeatDiffers), detail: &text };
        let html = account(place(Language::English), &view);
        prop_assert_eq!(html.matches("<script").count(), 0);
        prop_assert_eq!(html.matches("<form").count(), 4);
    }
}
