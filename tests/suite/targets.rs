//! Request targets as clients send them, and what is refused before there is a request.

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::gateway::free_port;
use crate::support::peer::Peer;
use crate::support::{Builder, Gateway, Upstream, wait};

fn open(upstream: &str) -> Builder {
    Builder::new().upstream("app", &[upstream]).route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
}

fn curl(gateway: &Gateway, target: &str, more: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["--silent", "--globoff", "--path-as-is", "--max-time", "60", "--write-out", "\n%{http_code}"])
        .args(more)
        .arg(format!("http://{}{target}", gateway.address))
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = output.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[test]
fn curl_asks_prometheus_a_query_with_quotes_and_braces() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    fs::write(&config, "scrape_configs: []\n").unwrap();
    let port = free_port();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let prometheus = Peer::start(command, port, &folder.path().join("log"));
    let gateway = open(&prometheus.url()).start();
    for query in [
        r#"query=up{job="x"}"#,
        r#"query=count({__name__=~"a|b"})>bool`0`"#,
        r#"query=up{job="caf%C3%A9"}"#,
        "query=up{job=\"caf\u{e9}\"}",
    ] {
        let target = format!("/api/v1/query?{query}");
        let answer = wait::until_some("Prometheus to be ready", || {
            let (status, body) = curl(&gateway, &target, &[]);
            (status != 503).then_some((status, body))
        });
        let direct = Command::new("curl")
            .args(["--silent", "--globoff", "--output", "/dev/null", "--write-out", "%{http_code}"])
            .arg(format!("{}{target}", prometheus.url()))
            .output()
            .unwrap();
        // It says itself what it makes of the query; the gateway has no opinion on it.
        assert_eq!(answer.0.to_string().as_bytes(), direct.stdout, "{query}: {}", answer.1);
        assert!(answer.1.contains("\"status\":"), "{query}: {}", answer.1);
    }
    let (status, body) = curl(&gateway, r#"/api/v1/query?query=up{job="x"}"#, &[]);
    assert_eq!((status, body.contains("\"status\":\"success\"")), (200, true), "{body}");
}

#[test]
fn a_raw_hash_is_refused_and_never_cut_off() {
    let upstream = Upstream::plain();
    let gateway = open(&upstream.url).start();
    let (status, body) = curl(&gateway, "/ordinary", &["--request", "DELETE", "--request-target", "/C#notes"]);
    assert_eq!(status, 400, "{body}");
    assert!(body.contains("fragment_in_target"), "{body}");
    let before = "GET /one HTTP/1.1\r\nHost: a\r\n\r\n";
    let body_before = "POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let chunks_before = "POST /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for target in ["/C#notes", "/C?a=b#notes", "/#", "#", "http://a/C#notes", "/C\"#notes", "/%23#"] {
        let head = format!("DELETE {target} HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n");
        for earlier in ["", before, body_before, chunks_before] {
            let mut connection = gateway.connect();
            let seen = upstream.count();
            connection.write(format!("{earlier}{head}").as_bytes());
            if !earlier.is_empty() {
                connection.read("GET", "/one").expect(200);
            }
            let answer = connection.read("DELETE", target).expect(400);
            assert_eq!(answer.json()["code"], "fragment_in_target", "{target}");
            assert!(connection.closes_within(Duration::from_secs(30)));
            assert_eq!(upstream.count() - seen, usize::from(!earlier.is_empty()), "{target} behind {earlier:?}");
        }
        // Byte by byte.
        let mut connection = gateway.connect();
        for byte in head.as_bytes() {
            if connection.stream().write_all(&[*byte]).is_err() {
                break;
            }
        }
        connection.read("DELETE", target).expect(400);
    }
    assert!(upstream.recorded().iter().all(|seen| seen.method != "DELETE"));
}

#[test]
fn what_is_no_request_has_an_answer_that_says_so_and_a_line_in_the_log() {
    let upstream = Upstream::plain();
    let gateway = open(&upstream.url).set("server.limits.header_timeout", "\"2s\"").start();
    let many: String = (0..101).map(|number| format!("X-{number}: a\r\n")).collect();
    let large = "a".repeat(33 * 1024);
    let cases: Vec<(Vec<u8>, u16, &str, &str)> = vec![
        (b"DELETE /C#notes HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400, "fragment_in_target", "/C#notes"),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400, "bad_target", "/a b"),
        (b"GET /a\0 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400, "bad_target", "/a%00"),
        (b"GET \xff HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400, "bad_target", "%FF"),
        (b"GET /\r\n\r\n".to_vec(), 400, "bad_request_line", "/"),
        (b"hello\r\n\r\n".to_vec(), 400, "bad_request_line", ""),
        (b"\x00\x01\x02".to_vec(), 400, "bad_request_line", ""),
        (b"GET / HTTP/1.9\r\nHost: a\r\n\r\n".to_vec(), 505, "unsupported_version", "/"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505, "http2_not_spoken", "*"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400, "tls_on_plain_port", ""),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX A: b\r\n\r\n".to_vec(), 400, "bad_header_name", "/"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-A: \x01\r\n\r\n".to_vec(), 400, "bad_header_value", "/"),
        (b"GET /?q=secret HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n".to_vec(), 400, "bad_content_length", "/"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n".to_vec(), 400, "bad_transfer_encoding", "/"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").into_bytes(), 431, "too_many_headers", "/"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {large}\r\n\r\n").into_bytes(), 431, "head_too_large", "/"),
        (format!("GET /{large} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes(), 414, "target_too_long", ""),
        (b"GET /slow HTTP/1.1\r\nHost: a\r\nX-A".to_vec(), 408, "header_timeout", "/slow"),
    ];
    for behind in [false, true] {
        for (bytes, status, code, _) in &cases {
            let mut connection = gateway.connect();
            let good = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
            let all = if behind { [good, &**bytes].concat() } else { bytes.clone() };
            let _ = connection.stream().write_all(&all);
            if behind {
                connection.read("GET", "/good").expect(200);
            }
            let answer = connection.read("GET", code).expect(*status);
            assert_eq!(answer.json()["code"], *code);
            assert!(answer.json()["detail"].as_str().is_some_and(|words| words.len() > 20), "{}", answer.text());
            assert_eq!(answer.field("connection").as_deref(), Some("close"));
            assert!(connection.closes_within(Duration::from_secs(30)), "{code}");
        }
    }
    assert!(upstream.recorded().iter().all(|seen| seen.target == "/good"));
    let refused = || {
        let lines = gateway.log_lines("access");
        lines.into_iter().filter(|line| line["decision"] == "deny").collect::<Vec<Value>>()
    };
    wait::until("the lines in the access log", || refused().len() == 2 * cases.len());
    for (_, status, code, path) in &cases {
        let is_it = |line: &&Value| line["reason"] == *code && (path.is_empty() || line["path"] == *path);
        let lines = refused();
        let line = lines.iter().find(is_it).unwrap_or_else(|| panic!("no line for {code} {path:?}"));
        assert_eq!((line["status"].as_u64(), &line["client"]), (Some(u64::from(*status)), &Value::from("127.0.0.1")));
        assert!(!line["id"].as_str().unwrap().is_empty() && !line["path"].as_str().unwrap().contains("secret"));
    }
    // A HEAD that is refused has no body.
    let mut connection = gateway.connect();
    connection.write(b"HEAD /C#notes HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.read("HEAD", "/C#notes").expect(400);
    assert!(connection.closes_within(Duration::from_secs(30)));
    assert!(connection.reader.buffered.is_empty());
}
