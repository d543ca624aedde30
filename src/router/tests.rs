//! Which request takes which route.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::explain::{explain, outcome, run_tests};
use super::*;
use crate::config::{self, Expectation, PolicyTest, Route as Rule};

fn rule(name: &str, path: &str, access: Access) -> Rule {
    Rule {
        name: name.into(),
        host: HostPattern::Any,
        path: path.into(),
        exact: false,
        methods: Vec::new(),
        access,
        groups: Vec::new(),
        users: Vec::new(),
        api: false,
        strip_prefix: String::new(),
        upstream: None,
    }
}

fn config(routes: Vec<Rule>) -> Config {
    let zero = Duration::ZERO;
    Config {
        source: None,
        data_dir: "d".into(),
        server: config::Server {
            listen: Vec::new(),
            workers: 1,
            trusted_proxies: Vec::new(),
            drain: zero,
            drain_delay: zero,
            handover: false,
            limits: config::Limits {
                header_timeout: zero,
                idle_timeout: zero,
                max_headers: 100,
                max_header_bytes: 32768,
                body_timeout: zero,
                stall_timeout: zero,
                max_connections: 10,
            },
        },
        admin: config::Admin { listen: None },
        store: config::Store {
            kind: config::StoreKind::Sled,
            max_staleness: zero,
            on_stale: config::OnStale::Serve,
            timeout: zero,
        },
        token: config::Token {
            algorithm: config::Algorithm::Hs256,
            signing_key: None,
            previous_keys: Vec::new(),
            issuer: "doorward".into(),
            lifetime: zero,
            refresh_below: zero,
            max_lifetime: zero,
            gateway_secret: None,
        },
        central: None,
        cookie: config::Cookie {
            name: "access_token".into(),
            domain: String::new(),
            path: "/".into(),
            secure: config::SecureCookie::Auto,
            same_site: config::SameSite::Lax,
        },
        login: config::Login {
            bcrypt_cost: 12,
            max_attempts: 5,
            max_attempts_per_network: 50,
            window: zero,
            min_password_length: 8,
            redirect_hosts: Vec::new(),
            title: "Sign in".into(),
            help: String::new(),
        },
        portal_prefix: String::new(),
        identity: config::Identity {
            headers: Vec::new(),
            configured: Vec::new(),
            pass: Vec::new(),
            basic_password: None,
        },
        upstreams: BTreeMap::new(),
        routes,
        tests: Vec::new(),
        log: config::Log { format: config::LogFormat::Json, level: "info".into(), access: true, audit_file: None },
        files: Vec::new(),
        warnings: Vec::new(),
    }
}

fn three() -> Router {
    Router::new(&config(vec![
        rule("public", "/public", Access::Public),
        rule("admin", "/admin", Access::Required),
        rule("root", "/", Access::Required),
    ]))
}

fn at(router: &Router, host: &str, path: &str, method: &str) -> Result<String, NoRoute> {
    let method = method.parse().unwrap();
    let readings = Readings::of(path).unwrap();
    router.resolve(&Host::parse(host).unwrap(), &readings, &method).map(|route| route.name.clone())
}

#[test]
fn the_most_specific_wins_in_any_order() {
    let mut rules = vec![
        rule("any", "/", Access::Required),
        Rule { host: HostPattern::Wildcard("b.test".into()), ..rule("wild", "/", Access::Required) },
        Rule { host: HostPattern::Exact("a.b.test".into()), ..rule("host", "/x", Access::Required) },
        rule("deep", "/x/y", Access::Required),
        Rule { exact: true, ..rule("exact", "/x", Access::Required) },
        rule("x", "/x", Access::Required),
        Rule { methods: vec![Method::GET], ..rule("get", "/x", Access::Public) },
        Rule { methods: vec![Method::PUT], ..rule("put", "/only", Access::Public) },
    ];
    for _ in 0..2 {
        let router = Router::new(&config(rules.clone()));
        for (host, path, method, name) in [
            ("a.b.test", "/x", "GET", "host"),
            ("a.b.test", "/y", "GET", "wild"),
            ("c.b.test", "/x/y", "GET", "wild"),
            ("c.c.b.test", "/", "GET", "any"),
            ("b.test", "/", "GET", "any"),
            ("h", "/x", "GET", "exact"),
            ("h", "/x/z", "HEAD", "get"),
            ("h", "/x/z", "POST", "x"),
            ("h", "/x/y/z", "GET", "deep"),
            ("h", "/xy", "GET", "any"),
            ("h", "/only", "PUT", "put"),
            ("h", "/only", "GET", "any"),
        ] {
            assert_eq!(at(&router, host, path, method), Ok(name.to_owned()), "{host} {path} {method}");
        }
        // Not strict: a slash behind an exact path may mean that path.
        assert_eq!(at(&router, "h", "/x/", "GET"), Err(NoRoute::Ambiguous));
        rules.reverse();
    }
}

#[test]
fn no_reading_leads_around_a_route() {
    let router = three();
    for path in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2fadmin",
        "/public/%252e%252e/admin",
        "/public/..;/admin",
        "/public/..\\admin",
        "//admin",
        "/ADMIN",
        "/Public/x",
        "/admin%20",
        "/admin.",
        "/admin%3f/public/",
        "/%61dmin",
        "/public/%c0%ae%c0%ae/admin",
        "/public/%u002e%u002e/admin",
        "/./public/x",
        "/adm%C4%B0n",
        "/adm%C4%B1n/x",
        "/ADM\u{130}N",
        "/admI%CC%87n",
        "/%C5%BF/../adm%C4%B0n",
        "/adm%E2%80%8Cin",
        "/%ef%bd%81dm%c4%b0n",
        "/adm%25C4%25B0n;x",
        "/admin%23x",
        "/admin::$DATA",
        "/admin:x",
        "/admin+",
        "/admin%0a",
        "/public/%f8%80%80%80%ae./admin",
    ] {
        assert_eq!(at(&router, "h", path, "GET"), Err(NoRoute::Ambiguous), "{path}");
    }
    for (path, name) in [
        ("/admin/%2e", "admin"),
        ("/admin//x", "admin"),
        ("/admin/X", "admin"),
        ("/administrator", "root"),
        ("/public/a%20b", "public"),
        ("/%zz", "root"),
        ("/public/x%23/y", "public"),
        ("/publicity", "root"),
        ("/public/tab%09name", "public"),
        ("/public/C%23", "public"),
        ("/public/a+b:c", "public"),
        ("/caf%C3%A9", "root"),
        ("/cafe%CC%81", "root"),
    ] {
        assert_eq!(at(&router, "h", path, "GET"), Ok(name.to_owned()), "{path}");
    }
}

#[test]
fn one_route_refuses_nothing() {
    let router = Router::new(&config(vec![rule("root", "/", Access::Required)]));
    let hostile = "/%25%32%65%2e;a\\..;//%20.%2f%5c%3f".repeat(300);
    for path in ["/a/../b", "//x", "/%2e%2e/%252f", "/A;b=c/..", "/%ff", hostile.as_str()] {
        assert_eq!(at(&router, "h", path, "GET"), Ok("root".into()), "{path}");
    }
    assert_eq!(at(&three(), "h", &hostile, "GET"), Err(NoRoute::Ambiguous));
}

#[test]
fn the_portal_matches_its_raw_path_only() {
    let router = three();
    assert_eq!(at(&router, "any.host", "/login", "GET"), Ok("portal:/login".into()));
    assert_eq!(at(&router, "h", "/account/sessions", "POST"), Ok("portal:/account/sessions".into()));
    for path in ["/LOGIN", "/login/", "//login", "/%6cogin", "/login;x", "/check/../admin/.."] {
        assert_ne!(at(&router, "h", path, "GET"), Ok("portal:/login".into()), "{path}");
    }
    assert_eq!(at(&router, "h", "/LOGIN", "GET"), Ok("root".into()));
}

#[test]
fn a_prefix_is_stripped_only_where_it_stands_as_sent() {
    let router = Router::new(&config(vec![
        Rule { strip_prefix: "/api".into(), ..rule("api", "/api/v1", Access::Public) },
        Rule { strip_prefix: "/all".into(), ..rule("all", "/all", Access::Public) },
    ]));
    assert_eq!(at(&router, "h", "/api/v1/x", "GET"), Ok("api".into()));
    assert_eq!(at(&router, "h", "/all", "GET"), Ok("all".into()));
    assert_eq!(at(&router, "h", "/all/a%20b", "GET"), Ok("all".into()));
    assert_eq!(at(&router, "h", "/api../v1", "GET"), Err(NoRoute::Ambiguous));
    for path in ["/%61pi/v1", "//api/v1", "/API/v1", "/api/x/../../api/v1", "/api/v1/../../api/v1"] {
        assert_eq!(at(&router, "h", path, "GET"), Err(NoRoute::Ambiguous), "{path}");
    }
}

#[test]
fn routes_that_differ_in_case_only_are_both_refused() {
    let router = Router::new(&config(vec![rule("a", "/Wiki", Access::Public), rule("b", "/wiki", Access::Required)]));
    assert_eq!(at(&router, "h", "/Wiki", "GET"), Err(NoRoute::Ambiguous));
    assert_eq!(at(&router, "h", "/x", "GET"), Err(NoRoute::NotFound));
}

#[test]
fn policy_tests_tell_what_came() {
    let mut config = config(vec![
        rule("public", "/public", Access::Public),
        Rule { groups: vec!["boss".into()], ..rule("admin", "/admin", Access::Required) },
    ]);
    let test = |url: &str, user: Option<&str>, expect| PolicyTest {
        method: Method::GET,
        url: url.into(),
        user: user.map(str::to_owned),
        groups: vec!["staff".into()],
        expect,
        place: String::from("x.toml:1:1"),
    };
    config.tests = vec![
        test("https://h/public", None, Expectation::Allow),
        test("https://h/admin", None, Expectation::Login),
        test("https://h/admin", Some("kim"), Expectation::Deny),
        test("https://h/none", Some("kim"), Expectation::Deny),
    ];
    assert_eq!(run_tests(&config), Vec::<String>::new());
    config.tests =
        vec![test("https://h/admin?x", Some("kim"), Expectation::Allow), test("h/admin", None, Expectation::Deny)];
    let failures = run_tests(&config);
    assert_eq!(
        failures[0],
        "x.toml:1:1: test: GET https://h/admin?x as kim: expected allow, but it is deny (not_on_list, route admin)"
    );
    assert!(failures[1].contains("https://HOST/PATH"));
    let router = Router::new(&config);
    let told = explain(&config, &router, &Method::GET, "https://h/admin").unwrap();
    assert_eq!(told.matched, Ok("admin".into()));
    assert_eq!(told.routes[0].1, "the path is not under /public");
    assert_eq!(outcome(&router, &Method::GET, "https://h/a%00", None).unwrap().reason, "bad_path");
}

proptest! {
    #[test]
    fn what_decodes_to_the_closed_path_is_never_public(path in "/(public|admin|x)?(/|%2f|\\.\\.|%2e|\\.|admin|ADMIN|;x|\\\\|%5c){0,8}") {
        let Some(readings) = Readings::of(&path) else { return Ok(()) };
        let mut closed = false;
        readings.all(&mut |reading| { closed |= reading == b"/admin" || reading.starts_with(b"/admin/"); true });
        if closed {
            let found = at(&three(), "h", &path, "GET");
            prop_assert!(found == Ok("admin".into()) || found == Err(NoRoute::Ambiguous), "{path}: {found:?}");
        }
    }
}

#[test]
fn a_slash_behind_an_exact_path_is_a_reading() {
    let router = Router::new(&config(vec![
        Rule { exact: true, ..rule("report", "/report", Access::Required) },
        Rule { exact: true, ..rule("start", "/", Access::Public) },
        rule("files", "/files", Access::Public),
    ]));
    assert_eq!(at(&router, "h", "/report", "GET"), Ok("report".into()));
    for path in ["/report/", "/report//", "/REPORT/", "/report%2f", "/x/../report/", "/report/;x"] {
        assert_eq!(at(&router, "h", path, "GET"), Err(NoRoute::Ambiguous), "{path}");
    }
    assert_eq!(at(&router, "h", "/", "GET"), Ok("start".into()));
    assert_eq!(at(&router, "h", "/files/", "GET"), Ok("files".into()));
}

#[test]
fn a_route_is_written_as_a_person_reads_it() {
    let router = Router::new(&config(vec![
        rule("cafe", "/caf\u{e9}", Access::Required),
        rule("blank", "/my files", Access::Public),
        rule("colon", "/v1/x:run", Access::Public),
        rule("plus", "/c++", Access::Public),
        rule("root", "/", Access::Public),
    ]));
    for (path, name) in [
        ("/caf%C3%A9", "cafe"),
        ("/caf%c3%a9/x", "cafe"),
        ("/caf\u{e9}", "cafe"),
        ("/cafe%CC%81/x", "cafe"),
        ("/my%20files/a", "blank"),
        ("/v1/x:run/1", "colon"),
        ("/c++/x", "plus"),
        ("/cafe", "root"),
        ("/c", "root"),
    ] {
        assert_eq!(at(&router, "h", path, "GET"), Ok(name.to_owned()), "{path}");
    }
    for path in ["/CAF%C3%89", "/caf%E9", "/caf%25C3%25A9", "/my+files", "/c%2b%2b", "/v1/x%3arun", "/v1/x:run/../x"] {
        assert_eq!(at(&router, "h", path, "GET"), Err(NoRoute::Ambiguous), "{path}");
    }
}

#[test]
fn methods_are_routed_without_regard_to_case() {
    let purge = "PURGE".parse().unwrap();
    let router = Router::new(&config(vec![
        Rule { methods: vec![Method::POST, purge], ..rule("write", "/", Access::Required) },
        rule("read", "/", Access::Public),
    ]));
    for (method, name) in
        [("POST", "write"), ("post", "write"), ("Purge", "write"), ("get", "read"), ("LIST", "read"), ("head", "read")]
    {
        assert_eq!(at(&router, "h", "/x", method), Ok(name.to_owned()), "{method}");
    }
}

#[test]
fn one_route_of_a_host_refuses_nothing_there() {
    let router = Router::new(&config(vec![
        Rule { host: HostPattern::Exact("a.test".into()), ..rule("one", "/", Access::Required) },
        Rule { host: HostPattern::Exact("b.test".into()), ..rule("two", "/x", Access::Required) },
    ]));
    let hostile = "/%25%32%65%2e;a\\..;//%20.%2f%5c%3f".repeat(300);
    assert_eq!(at(&router, "a.test", &hostile, "GET"), Ok("one".into()));
    assert_eq!(at(&router, "b.test", &hostile, "GET"), Err(NoRoute::Ambiguous));
}

#[test]
fn a_refusal_can_name_the_routes_that_the_readings_lead_to() {
    let router = three();
    let readings = Readings::of("/public/..%2fadmin").unwrap();
    let host = Host::parse("h").unwrap();
    assert_eq!(router.alternatives(&host, &readings, &Method::GET), ["public", "admin"]);
}
