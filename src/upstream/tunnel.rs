//! An upgraded connection: bytes both ways until one side, or the session, ends.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::connect::Stream;
use super::health::InFlight;

/// A backend's side of a tunnel.
pub struct Tunnel {
    pub(super) stream: Stream,
    /// Came right behind the head.
    pub(super) early: Bytes,
    pub(super) in_flight: InFlight,
}

/// How long one side may go on after the other has ended: enough for what is on its way, and no more, for nobody would
/// notice a side that never ends.
const LAST_WORDS: Duration = Duration::from_secs(30);

impl Tunnel {
    /// Copies both ways until both sides have ended, one breaks, one goes on too long after the other, or `over` says
    /// that the session is over. A side that does not read holds the other back; little is held between them.
    pub async fn join(self, client: OnUpgrade, over: impl Future<Output = ()>) {
        let copying = async {
            let client = client.await.map_err(io::Error::other)?;
            copy_both(TokioIo::new(client), self.stream, &self.early, LAST_WORDS).await
        };
        tokio::select! {
            outcome = copying => if let Err(error) = outcome {
                tracing::debug!(%error, "a tunnel broke off");
            },
            () = over => tracing::debug!("a tunnel was closed: its session is over"),
        }
        drop(self.in_flight);
    }
}

async fn copy_both(
    client: impl AsyncRead + AsyncWrite,
    upstream: impl AsyncRead + AsyncWrite,
    early: &[u8],
    last_words: Duration,
) -> io::Result<()> {
    let (client_reads, client_writes) = tokio::io::split(client);
    let (upstream_reads, upstream_writes) = tokio::io::split(upstream);
    let mut up = pin!(copy(client_reads, upstream_writes));
    let mut down = pin!(copy(early.chain(upstream_reads), client_writes));
    // The first outcome of either; then the other, for a while.
    tokio::select! {
        outcome = &mut up => {
            outcome?;
            tokio::time::timeout(last_words, down).await.map_err(io::Error::from)?
        }
        outcome = &mut down => {
            outcome?;
            tokio::time::timeout(last_words, up).await.map_err(io::Error::from)?
        }
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_side_may_finish_its_sentence_but_not_go_on_for_ever() {
        let (mut browser, client) = tokio::io::duplex(64);
        let (mut backend, upstream) = tokio::io::duplex(64);
        let joined = tokio::spawn(copy_both(client, upstream, b"", LAST_WORDS));
        browser.write_all(b"bye").await.unwrap();
        browser.shutdown().await.unwrap();
        let mut heard = Vec::new();
        backend.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
        backend.write_all(b"so long").await.unwrap();
        let mut answer = [0; 7];
        browser.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"so long");
        // The backend keeps its side open. With the clock paused, only a limit can end this.
        assert_eq!(joined.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_side_that_does_not_read_holds_the_other_back() {
        let (mut browser, client) = tokio::io::duplex(64);
        let (backend, upstream) = tokio::io::duplex(64);
        let _joined = tokio::spawn(copy_both(client, upstream, b"", LAST_WORDS));
        let mut taken = 0;
        // Ends when nothing more is taken though every task has had its turn many times.
        let mut quiet = 0;
        while quiet < 100 {
            match tokio::time::timeout(Duration::ZERO, browser.write(&[0; 64])).await {
                Ok(count) => {
                    taken += count.unwrap();
                    quiet = 0;
                }
                Err(_) => quiet += 1,
            }
            tokio::task::yield_now().await;
        }
        assert!(taken < 32 * 1024, "{taken}");
        drop(backend);
    }
}
