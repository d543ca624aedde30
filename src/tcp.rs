//! A TCP connection whose plain writes go to the kernel without a detour.
//!
//! libc makes each call of its `send` a place where a thread may be cancelled, with bookkeeping before and behind it. No
//! thread of ours is ever cancelled, and every request sends twice.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A connection, from either end.
pub struct Tcp(TcpStream);

impl Tcp {
    /// Takes it over. Small writes are not held back to be sent together with later ones (`TCP_NODELAY`): what is written
    /// here is written whole.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }
}

impl AsyncRead for Tcp {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(task, buffer)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(task))?;
            // The standard library has told the kernel that a closed connection is an error here, and no signal.
            let sent = self.0.try_io(Interest::WRITABLE, || Ok(rustix::net::send(&self.0, bytes, SendFlags::empty())?));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(task)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(task, slices)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Tcp, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Tcp::new(accepted.unwrap().0).unwrap(), client.unwrap())
    }

    #[tokio::test]
    async fn what_the_other_end_does_not_take_waits_and_arrives_whole() {
        let (mut ours, mut theirs) = pair().await;
        // Far more than the kernel holds for one connection.
        let sent: Vec<u8> = (0..32 * 1024 * 1024_u32).map(|number| number.to_le_bytes()[1]).collect();
        let mut all = std::pin::pin!(ours.write_all(&sent));
        let waits = std::future::poll_fn(|task| Poll::Ready(all.as_mut().poll(task).is_pending())).await;
        assert!(waits, "the kernel took everything at once");
        let mut came = vec![0; sent.len()];
        let (sent_all, read_all) = tokio::join!(all, theirs.read_exact(&mut came));
        sent_all.unwrap();
        read_all.unwrap();
        assert!(came == sent);
    }

    #[tokio::test]
    async fn writing_to_a_closed_connection_is_an_error() {
        let (mut ours, theirs) = pair().await;
        drop(theirs);
        // The first bytes may still go out; the answer to them is that nobody is there.
        let error = loop {
            if let Err(error) = ours.write_all(b"hello").await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
    }
}
