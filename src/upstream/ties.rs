//! Connections on which a backend has logged somebody in.
//!
//! NTLM, Negotiate and Kerberos may log the *connection* in: every request on it is that person from then on, whatever it
//! says itself. So where either side names one of them, the connection belongs to one person on one client connection
//! and never goes to the common pool. It is closed when the client's connection ends, and when a request of somebody
//! else comes on it.
//!
//! Where a trusted proxy brings the requests of many people on one connection, who is not logged in here can't be told
//! from the next one who is not. Such a connection is closed after its exchange.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, header};

use super::Outgoing;
use super::http1::Connection;
use super::pool::Pool;
use crate::policy::Principal;

/// Upstream connections that one client connection may have tied to it; the oldest goes first.
const MOST: usize = 4;

/// The upstream connections that are tied to one client connection.
#[derive(Default)]
pub struct Ties(RefCell<Vec<Tied>>);

struct Tied {
    owner: Owner,
    pool: Rc<Pool>,
    connection: Box<Connection>,
}

/// Whose request it is.
pub(super) struct Owner {
    /// `None`: nobody is logged in here.
    person: Option<Arc<Principal>>,
    client: IpAddr,
}

impl Owner {
    pub(super) fn of(outgoing: &Outgoing<'_>) -> Self {
        Self { person: outgoing.pass.person().cloned(), client: outgoing.admitted.client }
    }

    fn is(&self, other: &Self) -> bool {
        let same_person = match (&self.person, &other.person) {
            (Some(one), Some(other)) => one.id == other.id,
            (None, None) => true,
            _ => false,
        };
        same_person && self.client == other.client
    }
}

/// Where a connection goes that is to be tied.
pub(super) struct Knot {
    pub(super) ties: Rc<Ties>,
    pub(super) owner: Owner,
    pub(super) pool: Rc<Pool>,
}

impl Ties {
    /// Whether there is none, as with nearly every client.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Closes what is tied to anybody else.
    pub(super) fn keep_only(&self, owner: &Owner) {
        self.0.borrow_mut().retain(|tied| tied.owner.is(owner));
    }

    /// Whether one leads to the URL of this pool.
    pub(super) fn has(&self, pool: &Rc<Pool>) -> bool {
        self.0.borrow().iter().any(|tied| Rc::ptr_eq(&tied.pool, pool))
    }

    /// The one that leads to the URL of this pool, if it is still open. After a reload pools are others.
    pub(super) fn take(&self, pool: &Rc<Pool>) -> Option<Box<Connection>> {
        let mut all = self.0.borrow_mut();
        let at = all.iter().position(|tied| Rc::ptr_eq(&tied.pool, pool))?;
        let mut connection = all.remove(at).connection;
        connection.is_open().then_some(connection)
    }
}

impl Knot {
    pub(super) fn tie(self, connection: Box<Connection>) {
        let mut all = self.ties.0.borrow_mut();
        if all.len() >= MOST {
            all.remove(0);
        }
        all.push(Tied { owner: self.owner, pool: self.pool, connection });
    }
}

/// Whether a request's `Authorization` may log the connection in.
pub(super) fn authorizes(headers: &HeaderMap) -> bool {
    headers.get_all(header::AUTHORIZATION).iter().any(|line| names_one(line.as_bytes()))
}

/// Whether a line of `Authorization` or `WWW-Authenticate` names such a scheme, wherever it stands in it: alone, in a
/// list, behind a parameter. A realm of that name is taken for one as well, which costs a connection.
pub(super) fn names_one(line: &[u8]) -> bool {
    const SCHEMES: [&[u8]; 4] = [b"ntlm", b"negotiate", b"kerberos", b"nego2"];
    line.split(|byte| matches!(byte, b',' | b' ' | b'\t' | b'"' | b'=' | b';'))
        .any(|word| SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_found_in_every_spelling_and_place() {
        for line in [
            "NTLM",
            "ntlm TlRMTVNTUAABAAAA",
            "Negotiate",
            "NEGOTIATE YIIJvwYGKwYBBQUC",
            "Kerberos x",
            "Nego2",
            "Basic realm=\"a\", NTLM",
            "Basic realm=\"a\",Negotiate,NTLM",
            "Digest realm=\"a\", nonce=\"b\" ,\tnegotiate",
            "NTLM, Basic realm=\"a\"",
        ] {
            assert!(names_one(line.as_bytes()), "{line}");
        }
        for line in ["", "Basic bnRsbTpudGxt", "Bearer ntlmx", "Digest realm=\"negotiated\"", "Bearer x.ntlm.y"] {
            assert!(!names_one(line.as_bytes()), "{line}");
        }
    }
}
