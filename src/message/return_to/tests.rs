//! Every family of redirect payloads that is known to have worked somewhere.

use proptest::prelude::*;

use super::*;

/// What may stand before another host.
const STARTS: &[&str] = &[
    "//",
    "///",
    "////",
    "/\\",
    "\\\\",
    "\\/",
    "/\\/",
    "\\",
    "/\t/",
    "/\n/",
    "/\r/",
    "/ /",
    " //",
    "\t//",
    "/%09/",
    "/%0a/",
    "/%0d%0a/",
    "/%5c",
    "/%5C%5c",
    "/%2f",
    "/%2f%2f",
    "/%252f",
    "/.//",
    "/./\\",
    "/../\\",
    "/..//",
    "/x/..//",
    "/./..//",
    "/%2e//",
    "/.%2e//",
    "/\u{0}/",
    "/\u{85}/",
    "https:",
    "https:/",
    "https:\\\\",
    "http:\\",
    "https:///",
    "ftp://",
    "javascript://",
    "data://",
    "https://good.test@",
    "https://good.test:x@",
    "https://good.test\\@",
    "https://good.test%00.",
    "https://good.test.",
    "https://good.test%2e",
    "https://%67ood.test.",
    "https://xgood.test.",
    "https://",
    "HTTPS://",
    "//;@",
];

/// The other host.
const TAILS: &[&str] = &["evil.test", "evil.test/x", "evil.test%2f@good.test", "good.test@evil.test"];

/// Payloads that stand by themselves.
const WHOLE: &[&str] = &[
    "",
    "evil.test",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "mailto:a@b",
    "..",
    ".",
    "?x",
    "#x",
    "x",
    "http://evil#@good.test",
    "http://evil?@good.test",
    "http://evil\\@good.test",
    "https://good.testevil",
    "https://badgood.test",
    "https://good.test:99999/",
    "https://good.test:8443/",
    "http://[::1]/",
    "https://good。test/",
    "https://ｇood.test/",
    "https://xlisted.test/",
    "https://listed.test.evil/",
    "https://a.listed.test/",
    "https://port.test/",
    "https://a.b.wild.test/",
    "https://wild.test/",
    "https://listed.test:8443/",
    "/a\r\nSet-Cookie: x=y",
    "/a b",
    "/login",
    "/LOGIN",
    "/login?rd=/login?rd=x",
    "/login/",
    "/logout",
    "/check",
    "/check/nginx",
    "/%6cogin",
    "/x/../login",
    "/login;x",
    "https://good.test/login",
    "/a%00",
    "/a%0d%0ab",
    "https://listed.test//evil.test",
];

fn at(rd: &str) -> String {
    let hosts = ["listed.test".to_owned(), "port.test:8443".to_owned(), "*.wild.test".to_owned()];
    safe(rd.as_bytes(), "good.test", Scheme::Https, &hosts, "")
}

#[test]
fn what_leads_elsewhere_leads_home() {
    let mut payloads: Vec<String> =
        STARTS.iter().flat_map(|start| TAILS.iter().map(move |tail| format!("{start}{tail}"))).collect();
    payloads.extend(WHOLE.iter().map(|payload| (*payload).to_owned()));
    payloads.push(format!("/{}", "a".repeat(LONGEST)));
    assert!(payloads.len() > 200);
    for payload in &payloads {
        assert_eq!(at(payload), "/", "{payload:?}");
    }
    assert_eq!(safe(b"/\xff", "good.test", Scheme::Http, &[], ""), "/");
    assert_eq!(safe(b"/x", "a b", Scheme::Http, &[], ""), "/");
}

#[test]
fn what_leads_here_or_to_a_listed_host_is_kept() {
    for (rd, kept) in [
        ("/", "/"),
        ("/a/b?c=//evil.test&d=%0a#e", "/a/b?c=//evil.test&d=%0a#e"),
        ("/a%20b", "/a%20b"),
        ("/가", "/%EA%B0%80"),
        ("https://good.test/x?y", "https://good.test/x?y"),
        ("http://GOOD.test/", "http://good.test/"),
        ("https://good.test:443/x", "https://good.test/x"),
        ("https://listed.test/x", "https://listed.test/x"),
        ("https://port.test:8443/", "https://port.test:8443/"),
        ("https://a.wild.test/", "https://a.wild.test/"),
        ("https://listed.test/login", "https://listed.test/login"),
        ("/loginx", "/loginx"),
        ("/account", "/account"),
        ("/a/../b", "/b"),
    ] {
        assert_eq!(at(rd), kept, "{rd}");
    }
    assert_eq!(safe(b"/login", "a", Scheme::Http, &[], "/_auth"), "/login");
    assert_eq!(safe(b"/_auth/login", "a", Scheme::Http, &[], "/_auth"), "/");
    assert_eq!(safe(b"http://localhost:8080/x", "localhost:8080", Scheme::Http, &[], ""), "http://localhost:8080/x");
}

proptest! {
    #[test]
    fn a_browser_stays_here_or_on_a_listed_host(rd in "(/|//|https://|http:|good\\.test|listed\\.test|evil\\.test|@|\\\\|%2f|%5c|\\.\\.|:|\\?|#|[ a.\t]){0,8}") {
        let result = at(&rd);
        let resolved = Url::parse("https://good.test/login").unwrap().join(&result).unwrap();
        prop_assert!(matches!(resolved.host_str(), Some("good.test" | "listed.test")), "{rd:?} {result:?}");
        prop_assert!(matches!(resolved.scheme(), "http" | "https"));
    }
}
