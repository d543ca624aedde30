//! An upgraded connection: bytes both ways until one side, or the session, ends.

use std::future::Future;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::health::InFlight;

/// A backend's side of a tunnel.
pub struct Tunnel {
    pub(super) upstream: OnUpgrade,
    pub(super) in_flight: InFlight,
}

/// What is held for one direction while the other side does not read.
const BUFFER_BYTES: usize = 16 * 1024;

impl Tunnel {
    /// Copies both ways until both sides have ended, one breaks, or `over` says that the session is over.
    pub async fn join(self, client: OnUpgrade, over: impl Future<Output = ()>) {
        let copying = async {
            let (client, upstream) = match tokio::try_join!(client, self.upstream) {
                Ok(both) => both,
                Err(error) => {
                    tracing::debug!(%error, "a tunnel did not come about");
                    return;
                }
            };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            let copied =
                tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER_BYTES, BUFFER_BYTES).await;
            if let Err(error) = copied {
                tracing::debug!(%error, "a tunnel broke off");
            }
        };
        tokio::select! {
            () = copying => {}
            () = over => tracing::debug!("a tunnel was closed: its session is over"),
        }
        drop(self.in_flight);
    }
}
