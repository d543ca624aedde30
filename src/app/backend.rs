//! A look at a backend before it is protected: whether anything answers there, and whether it has pages of its own where
//! ours would stand.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::config::UpstreamUrl;
use crate::upstream::connect::connect;
use crate::upstream::tls::tls;

/// How long a backend may take to answer before it counts as one that has the page.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether any of `paths` is answered with anything but 404. The error says why nothing could be reached.
pub fn has_pages(url: &UpstreamUrl, paths: &[&str]) -> io::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut taken = false;
        for path in paths {
            // One after the other: simple servers know one connection at a time.
            match tokio::time::timeout(LIMIT, status(url, path)).await {
                Ok(Ok(status)) => taken |= status != Some(404),
                Ok(Err(error)) => return Err(error),
                // It answers to connections and thinks.
                Err(_) => return Ok(true),
            }
            if taken {
                break;
            }
        }
        Ok(taken)
    })
}

/// The status of a `GET`. `None`: what came is no HTTP, or nothing came.
async fn status(url: &UpstreamUrl, path: &str) -> io::Result<Option<u16>> {
    let connector = match url {
        UpstreamUrl::Https { .. } => Some(tls(None, None)?),
        UpstreamUrl::Http { .. } | UpstreamUrl::Unix(_) => None,
    };
    let mut stream = connect(url, connector.as_ref(), LIMIT).await?;
    let host = match url {
        UpstreamUrl::Http { host, port } | UpstreamUrl::Https { host, port } if host.contains(':') => {
            format!("[{host}]:{port}")
        }
        UpstreamUrl::Http { host, port } | UpstreamUrl::Https { host, port } => format!("{host}:{port}"),
        UpstreamUrl::Unix(_) => String::from("localhost"),
    };
    let asked = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: doorward\r\nAccept: text/html, */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(asked.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // "HTTP/1.1 404" is enough.
    stream.take(12).read_to_end(&mut answer).await?;
    let text = std::str::from_utf8(&answer).unwrap_or_default();
    Ok(text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|status| status.parse().ok()))
}
