//! The admin listener: `GET /ping`, `/ready`, `/metrics`. Plain HTTP, on loopback unless the operator says otherwise.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;

use crate::message::replies;

/// Why the process can't serve right now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reason {
    /// A stable word: `starting`, `draining`, `store_unreachable`, `stale`, `upstream_unreachable`.
    pub code: &'static str,
    /// For a person.
    pub detail: String,
}

/// What the listener tells.
pub trait Report {
    /// Nothing: able to serve.
    fn reasons(&self) -> Vec<Reason>;
    /// The metrics' text.
    fn metrics(&self) -> String;
}

/// Asks a listener of another process. Returns the status and the body. Blocking, for a few seconds at most; for the
/// command line.
pub fn ask(address: SocketAddr, target: &str) -> io::Result<(u16, String)> {
    use std::io::{Read as _, Write as _};
    const LIMIT: Duration = Duration::from_secs(3);
    const LONGEST: u64 = 64 * 1024;
    let mut stream = std::net::TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what answers speaks no HTTP"))?;
    Ok((status, body.to_owned()))
}

/// Opens the port. Not shared: a second server must notice.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Goes on with a port that another process has opened.
pub fn inherit(listener: OwnedFd) -> io::Result<TcpListener> {
    TcpListener::from_std(listener.into())
}

/// Serves for as long as the control thread runs.
pub async fn serve(listener: TcpListener, report: Rc<dyn Report>) {
    const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin listener can't accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let report = Rc::clone(&report);
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &*report);
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection to the admin listener ended in an error");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, report: &dyn Report) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response =
            replies::problem(StatusCode::METHOD_NOT_ALLOWED, "method", "Only GET and HEAD are served here.", None);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/ping" => text("pong\n", "text/plain; charset=utf-8"),
        "/ready" => {
            let reasons = report.reasons();
            let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            replies::json(status, &json!({ "ready": reasons.is_empty(), "reasons": reasons }))
        }
        "/metrics" => text(&report.metrics(), "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        _ => replies::problem(StatusCode::NOT_FOUND, "no_route", "Here are /ping, /ready and /metrics.", None),
    }
}

fn text(body: &str, content_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
