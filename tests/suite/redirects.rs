//! Where `rd` may lead: this host, the listed ones, and nowhere else.

use crate::support::{Builder, Gateway, PASSWORD, Request, Upstream};

const HOSTILE: &[&str] = &[
    "https://evil.example",
    "//evil.example",
    "///evil.example",
    "////evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\\/evil.example",
    "\\/evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "/\r\\evil.example",
    "\t//evil.example",
    " //evil.example",
    "/%09/evil.example/..//evil.example\t",
    "https:evil.example",
    "https:/evil.example",
    "http:///evil.example",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "ftp://evil.example/",
    "file:///etc/passwd",
    "https://good.example@evil.example/",
    "https://good.example.evil.example/",
    "https://badgood.example/",
    "https://evil.example\\@good.example/",
    "https://evil.example#@good.example/",
    "https://evil.example?@good.example/",
    "https://good.example:444@evil.example",
    "//good.example@evil.example",
    "https://evil.example\0good.example",
    "\u{0}//evil.example",
    "/\u{0}",
    "/a\r\nSet-Cookie: access_token=evil",
    "/。evil.example",
    "//evil。example",
    "https://gооd.example/",
    "evil.example",
    "",
    "?x",
    "#x",
    ".",
    "../x",
    "/login",
    "/logout",
    "/check",
    "/login?rd=//evil.example",
];

/// What a browser makes of a `Location`: the host that it would go to next.
fn leads_to(gateway: &Gateway, location: &str) -> Option<String> {
    let base = url::Url::parse(&format!("http://{}/login", gateway.address)).unwrap();
    let target = base.join(location).unwrap_or_else(|error| panic!("{location:?}: {error}"));
    assert!(matches!(target.scheme(), "http" | "https"), "{location:?}");
    assert!(!location.contains(['\r', '\n']), "{location:?}");
    target.host_str().map(str::to_owned)
}

#[test]
fn no_hostile_target_leads_away_after_a_login_or_a_logout() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.redirect_hosts", "[\"good.example\"]").start();
    let mut connection = gateway.connect();
    for rd in HOSTILE {
        let token = {
            let form = [("username", "kim"), ("password", PASSWORD), ("rd", rd)];
            let answer = connection.send(&Request::post("/login").form(&form)).expect(303);
            let location = answer.field("location").unwrap();
            assert_eq!(leads_to(&gateway, &location).as_deref(), Some("127.0.0.1"), "{rd:?} became {location:?}");
            if rd.starts_with("/lo") || *rd == "/check" {
                assert_eq!(location, "/", "{rd:?} goes round in a circle");
            }
            answer.token().unwrap()
        };
        let answer = connection.send(&Request::post("/logout").form(&[("rd", rd)]).cookie(&token)).expect(303);
        let location = answer.field("location").unwrap();
        assert_eq!(leads_to(&gateway, &location).as_deref(), Some("127.0.0.1"), "{rd:?} became {location:?}");
    }
}

#[test]
fn a_path_here_and_a_listed_host_are_followed() {
    let upstream = Upstream::plain();
    let gateway = Builder::guarding(&upstream).set("login.redirect_hosts", "[\"good.example\"]").start();
    let own = format!("http://{}/own?x=1", gateway.address);
    for rd in ["/", "/a/b?c=d#e", "/a%2fb", "/caf%C3%A9", "https://good.example/x?y", "http://good.example/", &own] {
        let form = [("username", "kim"), ("password", PASSWORD), ("rd", rd)];
        let location = gateway.send(&Request::post("/login").form(&form)).expect(303).field("location").unwrap();
        let base = url::Url::parse(&format!("http://{}/login", gateway.address)).unwrap();
        assert_eq!(base.join(&location).unwrap(), base.join(rd).unwrap(), "{rd:?} became {location:?}");
    }
    let page = gateway.send(&Request::get("/login").navigation()).expect(200);
    assert!(
        page.field("content-security-policy").unwrap().ends_with("form-action 'self' http: https:"),
        "the browser would refuse the redirect"
    );
}

#[test]
fn no_forwarding_header_of_a_stranger_changes_where_a_redirect_leads() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let request = Request::get("/page")
        .navigation()
        .field("X-Forwarded-Host", "evil.example")
        .field("X-Forwarded-Proto", "https")
        .field("Forwarded", "host=evil.example");
    let location = gateway.send(&request).expect(303).field("location").unwrap();
    assert!(!location.contains("evil"), "{location}");
    assert_eq!(leads_to(&gateway, &location).as_deref(), Some("127.0.0.1"));
}
