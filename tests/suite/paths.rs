//! The every-reading rule and routing: no way around a route, and nothing refused that only one route could mean.

use crate::support::{Builder, Gateway, Request, Upstream};

/// Public below `/public` and closed elsewhere, all on one backend.
fn two_routes() -> (Upstream, Gateway) {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/public\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/\"\nupstream = \"app\"")
        .user("kim", &[])
        .start();
    (upstream, gateway)
}

#[test]
fn no_spelling_of_a_path_leads_around_a_protected_route() {
    let (upstream, gateway) = two_routes();
    for target in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/%2E%2e/admin",
        "/public/.%2e/admin",
        "/public/..%2fadmin",
        "/public/..%2Fadmin",
        "/public%2f..%2fadmin",
        "/public/%252e%252e/admin",
        "/public/%252e%252e%252fadmin",
        "/public/..;/admin",
        "/public/..;x=1/admin",
        "/public/;/../admin",
        "/public/..\\admin",
        "/public\\..\\admin",
        "/public/..%5cadmin",
        "/public/%5c../admin",
        "/public//../../admin",
        "/public/./../admin",
        "/public/x/../../admin",
        "/x/../public/../admin",
        "/public/..%3b/admin",
        "/public/../admin%20",
        "/public/.. /admin",
        "/public/..%20/admin",
        "/publicity",
        "/public%2e",
        "/publi%63ity",
        "//public/../admin",
        "/.//public/../admin",
        "/admin?x=/public",
        "/admin?/../public",
        "/admin%3f/../public",
        "/admin%3f/../../public",
        "/admin#/../public",
        "/public#/../admin",
        "/admin%23/../public/../admin",
    ] {
        let mut connection = gateway.connect();
        let before = upstream.count();
        connection.write(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let status = connection.read("GET", target).status;
        if target == "/public#/../admin" {
            // What stands after `#` never takes part: this is /public.
            assert!(matches!(status, 200 | 400), "{status}");
            continue;
        }
        assert!(matches!(status, 400 | 401), "{target}: {status}");
        assert_eq!(upstream.count(), before, "{target} reached the backend");
    }
}

#[test]
fn a_path_with_one_meaning_is_forwarded_byte_for_byte() {
    let (upstream, gateway) = two_routes();
    for target in [
        "/public",
        "/public/",
        "/public/a%20b",
        "/public/a;b=c",
        "/public/%ff",
        "/public/%EA%B9%80",
        "/public/a//b",
        "/public/x%23",
        "/public/a.b",
        "/public?x=../admin",
        "/public/?",
        "/public/%7euser",
    ] {
        gateway.get(target).expect(200);
        assert_eq!(upstream.last().target, target);
    }
}

#[test]
fn a_single_route_refuses_nothing_that_a_backend_could_serve() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    for target in [
        "/a/../b",
        "/%2e%2e/x",
        "//x",
        "/a;b",
        "/a%2fb",
        "/a%252fb",
        "/a%5cb",
        "/.",
        "/..",
        "/a%3fb",
        "/%zz",
        "/%",
        "/a%20",
        "/%c0%ae",
        "/@evil",
        "/:80/",
        "//evil.test/x",
        "/Admin",
        "/a%25b",
    ] {
        gateway.get(target).expect(200);
        assert_eq!(upstream.last().target, target);
        assert_eq!(upstream.last().field("host").as_deref(), Some(gateway.address.to_string().as_str()));
    }
}

#[test]
fn nul_is_refused_everywhere_and_other_encoded_control_characters_are_bytes() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("host = \"one.test\"\npath = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .route("host = \"two.test\"\npath = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .route("host = \"two.test\"\npath = \"/admin\"\nupstream = \"app\"")
        .start();
    let ask = |host: &str, target: &str| gateway.send(&Request::new("PUT", target).field("Host", host));
    for target in ["/a%00", "/%2500", "/a%25%30%30", "/%c0%80", "/%fc%80%80%80%80%80"] {
        ask("one.test", target).expect(400);
    }
    assert_eq!(upstream.count(), 0);
    for target in ["/tab%09name", "/a%0a", "/a%0d%0aX:y", "/a%1f", "/a%7f", "/a%250a", "/admin%0a"] {
        ask("one.test", target).expect(200);
        assert_eq!(upstream.last().target, target);
    }
    ask("two.test", "/tab%09name").expect(200);
    let before = upstream.count();
    for target in ["/admin%0a", "/admin%09", "/ad%0d%0amin", "/x%0a/../admin", "/admin%0a/x", "/admin%250a"] {
        ask("two.test", target).expect(400);
    }
    assert_eq!(upstream.count(), before);
}

#[test]
fn a_refused_path_names_the_routes_that_it_could_mean() {
    let (_upstream, gateway) = two_routes();
    let program = gateway.get("/public/..%2fadmin").expect(400).json();
    assert_eq!(program["code"], "ambiguous_path");
    let told = program["detail"].as_str().unwrap().to_owned();
    assert!(told.ends_with("Routes: */public, */."), "{told}");
    let page = gateway.send(&Request::get("/public/..%2fadmin").navigation()).expect(400).text();
    assert!(page.contains("Routes: *&#x2f;public, *&#x2f;.") || page.contains("Routes: */public, */."), "{page}");
    let line = gateway.access_line("/public/..%2fadmin");
    assert_eq!(line["detail"], "Routes: */public, */.");
}

#[test]
fn any_token_is_a_method_and_is_forwarded_as_it_was_sent() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/\"\nmethods = [\"purge\", \"POST\"]\nupstream = \"app\"")
        .start();
    for method in ["LIST", "SUBSCRIBE", "M-SEARCH", "get", "Frob!", "QUERY"] {
        gateway.send(&Request::new(method, "/x")).expect(200);
        assert_eq!(upstream.last().method, method);
    }
    let before = upstream.count();
    for (method, status) in [
        ("PURGE", 401),
        ("Purge", 401),
        ("post", 401),
        ("TRACE", 405),
        ("trace", 405),
        ("CONNECT", 405),
        ("Connect", 405),
    ] {
        assert_eq!(gateway.send(&Request::new(method, "/x")).status, status, "{method}");
    }
    assert_eq!(upstream.count(), before);
}

#[test]
fn case_and_slashes_lead_to_the_same_route_or_to_none() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/admin\"\nupstream = \"app\"")
        .start();
    for target in [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin",
        "///admin",
        "/./admin",
        "/admin/.",
        "/admin//",
        "/%61dmin",
        "/ADMIN",
        "/Admin/x",
        "/admin;x=1",
        "/admin/;a",
        "/admin.",
        "/admin%20",
        "/%2561dmin",
        "/x/../admin",
        "/admin%3fx",
        "/admin\\x",
        "\\admin",
    ] {
        let mut connection = gateway.connect();
        connection.write(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let status = connection.read("GET", target).status;
        assert!(matches!(status, 400 | 401), "{target}: {status}");
    }
    assert_eq!(upstream.count(), 0);
    gateway.get("/administrator").expect(200);
}

#[test]
fn our_own_endpoints_answer_to_their_exact_paths_only() {
    let upstream = Upstream::plain();
    let gateway = Gateway::guarding(&upstream);
    let token = gateway.login("kim");
    gateway.get_with("/check?x=1", &token).expect(200);
    for target in ["/login%2f..%2fadmin", "/LOGIN", "/check/", "/x/../logout", "/%63heck"] {
        let answer = gateway.get_with(target, &token);
        // Either the backend's, or refused for its two meanings: never taken for ours.
        assert!(matches!(answer.status, 200 | 400), "{target}: {}", answer.status);
        if answer.status == 200 {
            assert_eq!(answer.text(), "hello from the backend", "{target}");
        }
    }
    gateway.get_with("/check", &token).expect(200);
}

#[test]
fn the_most_specific_route_wins_whatever_its_place() {
    let backends: Vec<Upstream> = (0..7)
        .map(|number| {
            Upstream::start(move |_, wire| crate::support::reply(wire, 200, &[], number.to_string().as_bytes()))
        })
        .collect();
    let mut builder = Builder::new();
    for (number, backend) in backends.iter().enumerate() {
        builder = builder.upstream(&format!("b{number}"), &[&backend.url]);
    }
    let route = |number: usize, lines: &str| format!("access = \"public\"\nupstream = \"b{number}\"\n{lines}");
    let gateway = builder
        .route(&route(0, "path = \"/\""))
        .route(&route(1, "path = \"/a\""))
        .route(&route(2, "path = \"/a/b\""))
        .route(&route(3, "path = \"/a\"\nexact = true"))
        .route(&route(4, "host = \"*.example.com\"\npath = \"/\""))
        .route(&route(5, "host = \"x.example.com\"\npath = \"/\""))
        .route(&route(6, "path = \"/a/b\"\nmethods = [\"PUT\"]"))
        .start();
    for (method, host, target, number) in [
        ("GET", "other", "/", "0"),
        ("GET", "other", "/ab", "0"),
        ("GET", "other", "/a/x", "1"),
        ("GET", "other", "/a/b/c", "2"),
        ("GET", "other", "/a", "3"),
        ("GET", "y.example.com", "/a/b", "4"),
        ("GET", "x.example.com", "/a/b", "5"),
        ("GET", "X.Example.COM:80", "/", "5"),
        ("GET", "x.example.com.", "/", "5"),
        ("GET", "example.com", "/", "0"),
        ("GET", "z.y.example.com", "/", "0"),
        ("PUT", "other", "/a/b", "6"),
    ] {
        let answer = gateway.send(&Request::new(method, target).field("Host", host)).expect(200);
        assert_eq!(answer.text(), number, "{method} {host} {target}");
    }
}

#[test]
fn a_request_without_a_route_is_404_and_a_closed_route_is_403_for_everybody() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("host = \"app.example.com\"\npath = \"/\"\nupstream = \"app\"")
        .route("host = \"app.example.com\"\npath = \"/closed\"\naccess = \"deny\"")
        .user("kim", &[])
        .start();
    gateway.get("/").expect(404);
    gateway.send(&Request::get("/").navigation()).expect(404);
    let login = gateway.login("kim");
    let request = Request::get("/closed").field("Host", "app.example.com");
    gateway.send(&request).expect(403);
    gateway.send(&request.cookie(&login)).expect(403);
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_prefix_can_be_taken_off() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/wiki\"\nstrip_prefix = \"/wiki\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    for (target, seen) in
        [("/wiki", "/"), ("/wiki/", "/"), ("/wiki/a%20b?x=/wiki", "/a%20b?x=/wiki"), ("/wiki?x", "/?x")]
    {
        gateway.get(target).expect(200);
        assert_eq!(upstream.last().target, seen, "{target}");
    }
}

#[test]
fn the_host_that_the_backend_sees_is_the_one_that_the_file_says() {
    for (setting, seen) in [("preserve", Some("app.test:81")), ("upstream", None), ("fixed.test", Some("fixed.test"))] {
        let upstream = Upstream::plain();
        let gateway = Builder::guarding(&upstream)
            .set("upstream.app.host", &format!("\"{setting}\""))
            .route("path = \"/open\"\naccess = \"public\"\nupstream = \"app\"")
            .start();
        gateway.send(&Request::get("/open").field("Host", "app.test:81")).expect(200);
        let expected = seen.map_or_else(|| upstream.address.unwrap().to_string(), str::to_owned);
        assert_eq!(upstream.last().field("host"), Some(expected));
    }
}
