//! `doorward demo`: `protect` in front of a small built-in backend that shows what it learns of the person.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::arguments::{Demo, Place};
use super::output::Output;
use super::protect::Wanted;
use super::{Done, Failure, protect};
use crate::portal::language::Language;

pub(super) fn run(arguments: &Demo, place: &Place, output: &mut Output) -> Done {
    if place.config.is_some() {
        return Err(Failure::usage("`demo` needs no --config"));
    }
    let url = start_backend().map_err(|error| Failure::failed(format!("the built-in backend can't start: {error}")))?;
    // Its page knows where the login's pages are.
    let wanted = Wanted::read(&url, &arguments.listen, &[], Some(""))?;
    let Some(folder) = &place.data else {
        let folder = Temporary::new()?;
        return protect::protect(&folder.0, &wanted, output);
    };
    protect::protect(folder, &wanted, output)
}

/// A folder that is gone after the demo.
struct Temporary(std::path::PathBuf);

impl Temporary {
    fn new() -> Result<Self, Failure> {
        let name = format!("doorward-demo-{}", uuid::Uuid::now_v7());
        let temporary = std::env::temp_dir();
        // An image from scratch has no temporary folder; memory is as good.
        let places =
            [temporary.as_path(), Path::new("/dev/shm"), Path::new("/var/tmp"), Path::new("/run"), Path::new(".")];
        for place in places {
            let path = place.join(&name);
            if std::fs::DirBuilder::new().mode(0o700).create(&path).is_ok() {
                return Ok(Self(path));
            }
        }
        Err(Failure::failed(format!(
            "there is no place for the demo's files (tried {}); name a folder with --data DIR",
            places.map(|place| place.display().to_string()).join(", ")
        )))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What can't be removed now is cleared with the rest of the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Serves the built-in backend on a free loopback port from a thread of its own, and returns its URL.
fn start_backend() -> std::io::Result<String> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    listener.set_nonblocking(true)?;
    let url = format!("http://{}", listener.local_addr()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(String::from("demo-backend")).spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service_fn(|request| async move { show(&request) }));
                // A connection that breaks off is the gateway's to report.
                tokio::spawn(async move { drop(connection.await) });
            }
        });
    })?;
    Ok(url)
}

#[expect(clippy::unnecessary_wraps, reason = "the signature that hyper wants")]
fn show(request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut rows = String::new();
    let is_marked = |name: &str| name.starts_with("x-forwarded-") || name.starts_with("remote-");
    let mut headers: Vec<_> = request.headers().iter().collect();
    // What the page is about comes first.
    headers.sort_by_key(|(name, _)| !is_marked(name.as_str()));
    for (name, value) in headers {
        let identity = is_marked(name.as_str());
        let class = if identity { " class=\"identity\"" } else { "" };
        let value = escape(&String::from_utf8_lossy(value.as_bytes()));
        // Writing to a String can't fail.
        let _ = write!(rows, "<tr{class}><th scope=\"row\">{}</th><td>{value}</td></tr>", escape(name.as_str()));
    }
    let name =
        |header: &str| request.headers().get(header).map(|value| escape(&String::from_utf8_lossy(value.as_bytes())));
    let language = Language::of(request.headers());
    let words = match language {
        Language::English => &ENGLISH,
        Language::Korean => &KOREAN,
    };
    let person = name("x-forwarded-preferred-username").unwrap_or_else(|| words.nobody.to_owned());
    let Words { hello, explanation, caption, account, sign_out, .. } = words;
    let page = format!(
        "<!doctype html><html lang=\"{lang}\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Doorward</title>\
         <link rel=icon href=data:,><style>{STYLE}</style><main>\
         <h1>{hello} {person}</h1><p>{explanation}</p><table><caption>{caption}</caption>{rows}</table>\
         <p><a href=\"/account\">{account}</a> · <a href=\"/logout\">{sign_out}</a></p></main></html>",
        lang = language.tag(),
    );
    let mut response = Response::new(Full::new(Bytes::from(page)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    Ok(response)
}

struct Words {
    hello: &'static str,
    nobody: &'static str,
    explanation: &'static str,
    caption: &'static str,
    account: &'static str,
    sign_out: &'static str,
}

static ENGLISH: Words = Words {
    hello: "Hello,",
    nobody: "nobody",
    explanation: "This page is the application behind the login. It has no login of its own; this is what it was told with \
                  your request. The marked lines can be trusted: what a browser sends under these names never gets here.",
    caption: "Headers of this request",
    account: "Your account",
    sign_out: "Sign out",
};

static KOREAN: Words = Words {
    hello: "안녕하세요,",
    nobody: "로그인하지 않은 사용자",
    explanation: "이 페이지는 로그인 뒤에 있는 애플리케이션입니다. 자체 로그인은 없으며, 아래는 요청과 함께 전달받은 \
                  내용입니다. 표시된 줄은 믿을 수 있습니다. 브라우저가 같은 이름으로 보낸 값은 여기까지 오지 않습니다.",
    caption: "이 요청의 헤더",
    account: "내 계정",
    sign_out: "로그아웃",
};

const STYLE: &str = ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;margin:0;overflow-wrap:anywhere;background:#fff;color:#17202c}a{color:#0b5f8a}\
    :lang(ko){word-break:keep-all}main{max-width:46rem;margin:0 auto;padding:1.5rem 1rem}\
    table{border-collapse:collapse;width:100%;table-layout:fixed}caption{text-align:left;font-weight:600;padding:.5rem 0}\
    th,td{text-align:left;padding:.35rem .5rem;border-bottom:1px solid #8884;overflow-wrap:anywhere;word-break:normal;\
    vertical-align:top}th{width:38%}.identity{background:#e7f5ec}\
    @media(prefers-color-scheme:dark){body{background:#10151c;color:#e8edf3}a{color:#7cc7f0}.identity{background:#17301f}}";

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, character| {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
        out
    })
}
