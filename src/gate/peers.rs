//! Warnings about what stands in front of this gateway, each said once for a peer.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;

/// So many peers are remembered in all. A gateway that is open to everybody hears forwarding headers from strangers.
const MAX_PEERS: usize = 64;

/// What there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Matter {
    /// Forwarding headers came from a peer that is not in `trusted_proxies`.
    Disbelieved,
    /// A trusted proxy's header can't be understood.
    NotUnderstood(&'static str),
}

/// Which peers have been told of.
#[derive(Default)]
pub(super) struct Peers(Mutex<HashSet<(Matter, IpAddr)>>, Mutex<HashSet<String>>);

impl Peers {
    /// Warns, if this peer has not been told of for this matter, and fewer than 64 have been in all.
    pub(super) fn warn(&self, matter: Matter, peer: Option<IpAddr>) {
        if !self.is_new(matter, peer) {
            return;
        }
        let peer = peer.map_or_else(|| String::from("a unix socket"), |peer| peer.to_canonical().to_string());
        match matter {
            Matter::Disbelieved => tracing::warn!(
                peer,
                "forwarding headers (X-Forwarded-*, Forwarded, X-Real-IP) of {peer} are not believed, because it is not in \
                 server.trusted_proxies; if it is your own proxy, add it there"
            ),
            Matter::NotUnderstood(header) => tracing::warn!(
                peer,
                "{header} of the trusted proxy {peer} can't be understood; what it says of the scheme counts as https"
            ),
        }
    }

    /// Whether this upstream has not been told of; one more than 64 is not.
    pub(super) fn is_new_upstream(&self, name: &str) -> bool {
        let mut told = self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        !told.contains(name) && told.len() < MAX_PEERS && told.insert(name.to_owned())
    }

    fn is_new(&self, matter: Matter, peer: Option<IpAddr>) -> bool {
        let network = match peer.map(|peer| peer.to_canonical()) {
            // Whoever has one address there has all of them.
            Some(IpAddr::V6(address)) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            Some(address) => address,
            None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let mut told = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        told.len() < MAX_PEERS && told.insert((matter, network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_is_told_of_once_and_not_too_many() {
        let peers = Peers::default();
        let peer = |text: &str| Some(text.parse().unwrap());
        assert!(peers.is_new(Matter::Disbelieved, peer("10.0.0.1")));
        assert!(!peers.is_new(Matter::Disbelieved, peer("::ffff:10.0.0.1")));
        assert!(peers.is_new(Matter::NotUnderstood("X"), peer("10.0.0.1")));
        assert!(peers.is_new(Matter::Disbelieved, peer("2001:db8::1")));
        assert!(!peers.is_new(Matter::Disbelieved, peer("2001:db8::2")));
        let told = (0..200).filter(|last| peers.is_new(Matter::Disbelieved, peer(&format!("10.0.1.{last}")))).count();
        assert_eq!(told, MAX_PEERS - 3);
    }
}
