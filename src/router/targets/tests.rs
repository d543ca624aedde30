//! Whatever else a request names or takes along is open to the person, or nothing is forwarded.

use http::Request;

use super::*;
use crate::config::parse;
use crate::message::admit::{Edge, Scheme, admit};
use crate::policy::{Principal, Unidentified};

const ROUTES: &str = "
[upstream.app]
urls = ['http://127.0.0.1:9000']
[upstream.other]
urls = ['http://127.0.0.1:9001']
[[route]]
upstream = 'app'
[[route]]
path = '/team/private'
groups = ['staff']
upstream = 'app'
[[route]]
path = '/read-only'
methods = ['PUT', 'DELETE']
groups = ['staff']
upstream = 'app'
[[route]]
path = '/elsewhere'
upstream = 'other'
[[route]]
path = '/dav'
strip_prefix = '/dav'
upstream = 'app'
";

fn decided(method: &str, path: &str, headers: &[(&str, &str)], groups: &[&str]) -> Result<Allowed, Refusal> {
    let config = parse(ROUTES, std::path::Path::new("config.toml"), &|_| None).unwrap();
    let router = Router::new(&config);
    let mut request = Request::builder().method(method).uri(path).header("host", "dav.test:8080");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let parts = request.body(()).unwrap().into_parts().0;
    let edge = Edge { trusted_proxies: Vec::new(), scheme: Scheme::Http };
    let admitted = admit(&parts, "192.0.2.1".parse().ok(), &edge).unwrap();
    let route = router.resolve(&admitted.host, &admitted.readings, &parts.method).unwrap();
    let caller = Caller::Person(std::sync::Arc::new(Principal {
        id: String::from("1"),
        username: String::from("lee"),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        email: String::new(),
        display_name: String::new(),
    }));
    decide(&router, route, &admitted, (&parts.method, &parts.headers), &caller)
}

fn code(method: &str, path: &str, headers: &[(&str, &str)]) -> &'static str {
    // With the group everything that is well-formed passes.
    let member = decided(method, path, headers, &["staff"]);
    match decided(method, path, headers, &[]) {
        Ok(_) => "allowed",
        Err(refusal) => {
            assert_eq!(member.is_ok(), refusal.why == Why::Target, "{method} {path} {headers:?}: {member:?}");
            refusal.code()
        }
    }
}

#[test]
fn a_destination_is_decided_by_every_reading() {
    for (destination, expected) in [
        ("http://dav.test:8080/team/x", "allowed"),
        ("https://dav.test:8080/team/x", "allowed"),
        ("/team/x", "allowed"),
        ("http://dav.test:8080/team/private/x", "target_denied"),
        ("http://DAV.test:8080/team/private", "target_denied"),
        ("/team/private/x", "target_denied"),
        ("team/private/x", "target_denied"),
        ("/team", "target_denied"),
        ("/", "target_denied"),
        ("/read-only/x", "target_denied"),
        ("/team/%70rivate/x", "bad_target_header"),
        ("/x/../team/private/x", "bad_target_header"),
        ("http://dav.test:8080/TEAM/private/x", "bad_target_header"),
        ("http://dav.test:8080//team/private/x", "bad_target_header"),
        ("http://other.test/x", "bad_target_header"),
        ("http://dav.test/x", "bad_target_header"),
        ("http://u@dav.test:8080/x", "bad_target_header"),
        ("ftp://dav.test:8080/x", "bad_target_header"),
        ("http://dav.test:8080/elsewhere/x", "bad_target_header"),
        ("/a%00", "bad_target_header"),
        ("", "bad_target_header"),
    ] {
        for method in ["COPY", "MOVE", "move"] {
            assert_eq!(
                code(method, "/mine/m.txt", &[("destination", destination)]),
                expected,
                "{method} {destination}"
            );
        }
    }
    let twice = [("destination", "/a"), ("destination", "/team/private")];
    assert_eq!(code("COPY", "/mine", &twice), "bad_target_header");
    // A word of a program's own.
    assert_eq!(code("POST", "/api", &[("destination", "ftp://queue")]), "allowed");
    assert_eq!(code("POST", "/api", &[("destination", "/team/private/x")]), "target_denied");
}

#[test]
fn a_copy_source_is_decided_in_every_form() {
    for (name, value, expected) in [
        ("x-amz-copy-source", "/team/x", "allowed"),
        ("x-amz-copy-source", "team/private/x", "target_denied"),
        ("x-amz-copy-source", "/team/private/x?versionId=1", "target_denied"),
        ("x-amz-copy-source", "bucket/team/private/x", "target_denied"),
        ("x-amz-copy-source", "team/%70rivate/x", "bad_target_header"),
        ("x_amz_copy_source", "team/private/x", "target_denied"),
        ("x-oss-copy-source", "team/private/x", "target_denied"),
        ("x-amz-rename-source", "team/private/x", "target_denied"),
        ("x-ms-copy-source", "https://blob.test/c/x", "target_denied"),
        ("x-copy-from", "/team/private/x", "target_denied"),
        ("x-copy-from", "private/x", "allowed"),
        ("x-copy-from-account", "other", "bad_target_header"),
        ("x-amz-copy-source-range", "bytes=0-9", "allowed"),
    ] {
        if name != "x-ms-copy-source" && name != "x-copy-from-account" {
            assert_eq!(code("PUT", "/team/own", &[(name, value)]), expected, "{name}: {value}");
        }
    }
    assert!(decided("PUT", "/v1/team/c/o", &[("x-copy-from-account", "other")], &[]).is_err());
}

#[test]
fn what_lies_below_goes_along() {
    for (method, path, depth, expected) in [
        ("DELETE", "/team", "", "target_denied"),
        ("DELETE", "/team/", "0", "target_denied"),
        ("delete", "/", "", "target_denied"),
        ("DELETE", "/mine", "", "allowed"),
        ("DELETE", "/team/x", "", "allowed"),
        ("COPY", "/team", "", "target_denied"),
        ("COPY", "/team", "0", "allowed"),
        ("COPY", "/team", "1", "target_denied"),
        ("MOVE", "/team", "0", "target_denied"),
        ("LOCK", "/team", "", "target_denied"),
        ("LOCK", "/team", "0", "allowed"),
        ("PROPFIND", "/team", "", "target_denied"),
        ("PROPFIND", "/team", "infinity", "target_denied"),
        ("PROPFIND", "/team", "1", "allowed"),
        ("PROPFIND", "/team", "0", "allowed"),
        ("PROPFIND", "/dav", "", "target_denied"),
        ("DELETE", "/dav/team", "", "target_denied"),
        ("DELETE", "/dav/mine", "", "allowed"),
        ("SEARCH", "/mine", "", "target_denied"),
        ("BIND", "/mine", "", "target_denied"),
        ("UNBIND", "/team", "", "target_denied"),
        ("REPORT", "/team", "", "allowed"),
        ("REPORT", "/team", "infinity", "target_denied"),
        ("PUT", "/team", "", "allowed"),
        ("GET", "/team", "", "allowed"),
    ] {
        let headers = if depth.is_empty() { Vec::new() } else { vec![("depth", depth)] };
        assert_eq!(code(method, path, &headers), expected, "{method} {path} {depth}");
    }
}

#[test]
fn a_url_is_rewritten_and_a_prefix_taken_off() {
    for (path, destination, expected) in [
        ("/a", "https://dav.test:8080/b%20c?x", Some((true, "/b%20c?x"))),
        ("/a", "/b", None),
        ("/dav/a", "http://dav.test:8080/dav/b", Some((true, "/b"))),
        ("/dav/a", "/dav/b", Some((false, "/b"))),
    ] {
        let allowed = decided("MOVE", path, &[("destination", destination)], &["staff"]).unwrap();
        let found = allowed.destination.as_ref().map(|found| (found.is_url, &*found.path));
        assert_eq!(found, expected, "{destination}");
    }
}

#[test]
fn where_nobody_is_logged_in_a_login_is_what_is_missing() {
    let refusal = Refusal::denied(Denied::LoginRequired(Unidentified::NoCredential), String::new());
    assert_eq!(refusal.code(), "no_credential");
}
