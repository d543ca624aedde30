//! Opening a connection to one URL: TCP, unix socket, TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::tls::Tls;
use crate::config::UpstreamUrl;
use crate::tcp::Tcp;

/// A connection to a backend.
pub struct Stream(Wire);

enum Wire {
    Tcp(Tcp),
    Unix(UnixStream),
    Tls(Box<TlsStream<Tcp>>),
}

impl Stream {
    /// Whether what was written goes out only when it is flushed.
    pub(super) const fn holds_back(&self) -> bool {
        matches!(self.0, Wire::Tls(_))
    }
}

/// Opens a connection within `limit`, the TLS handshake included.
pub async fn connect(url: &UpstreamUrl, tls: Option<&Tls>, limit: Duration) -> io::Result<Stream> {
    let wire = tokio::time::timeout(limit, open(url, tls)).await.unwrap_or_else(|_| {
        let told = format!("it took no connection within {limit:?} (connect_timeout)");
        Err(io::Error::new(io::ErrorKind::TimedOut, told))
    })?;
    Ok(Stream(wire))
}

async fn open(url: &UpstreamUrl, tls: Option<&Tls>) -> io::Result<Wire> {
    match url {
        UpstreamUrl::Unix(path) => UnixStream::connect(path).await.map(Wire::Unix),
        UpstreamUrl::Http { host, port } => tcp(host, *port).await.map(Wire::Tcp),
        UpstreamUrl::Https { host, port } => {
            // Never without TLS, whatever went wrong with it.
            let tls = tls.ok_or_else(|| io::Error::other("TLS is not set up for this upstream"))?;
            let name = match &tls.server_name {
                Some(name) => name.clone(),
                None => ServerName::try_from(host.clone()).map_err(io::Error::other)?,
            };
            let stream = tls.connector.connect(name, tcp(host, *port).await?).await?;
            Ok(Wire::Tls(Box::new(stream)))
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<Tcp> {
    Tcp::new(TcpStream::connect((host, port)).await?)
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Wire::Tcp(stream) => Pin::new(stream).poll_read(task, buffer),
            Wire::Unix(stream) => Pin::new(stream).poll_read(task, buffer),
            Wire::Tls(stream) => Pin::new(stream).poll_read(task, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(task, bytes),
            Wire::Unix(stream) => Pin::new(stream).poll_write(task, bytes),
            Wire::Tls(stream) => Pin::new(stream).poll_write(task, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Wire::Tcp(stream) => Pin::new(stream).poll_flush(task),
            Wire::Unix(stream) => Pin::new(stream).poll_flush(task),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(task),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(task),
            Wire::Unix(stream) => Pin::new(stream).poll_shutdown(task),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(task),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Wire::Tcp(stream) => stream.is_write_vectored(),
            Wire::Unix(stream) => stream.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Wire::Tcp(stream) => Pin::new(stream).poll_write_vectored(task, slices),
            Wire::Unix(stream) => Pin::new(stream).poll_write_vectored(task, slices),
            Wire::Tls(stream) => Pin::new(stream).poll_write_vectored(task, slices),
        }
    }
}
