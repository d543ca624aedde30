//! Which exchange may be followed by another one on its connection.
//!
//! "Our side is done" does not mean "theirs is". A backend that leaves a body unread takes it for the next request, and
//! what it says to that would be somebody else's answer; one that sends a body behind an answer that has none does the
//! same. So a connection serves another exchange only where nothing that was sent on it can still be read as a request,
//! and nothing that came can still be read as an answer.
//!
//! Three things are known before the request goes, and then the backend is told to `close`, so that it serves nothing
//! that hides behind: [`is_alone`]. The others show in the answer: see `Head::keeps` in `http1::response`, and
//! `Connection::is_clean`.
//!
//! A `Content-Length: 0` is no body: it hides nothing. A chunked one is, even where nothing is in it, since its last
//! chunk are bytes that somebody who does not read it takes for something else.

use http::Method;

use crate::config::Reuse;

/// Whether the connection of such a request serves no other.
///
/// After `HEAD` it never does, whatever the file says: a backend that answers as it would to `GET` sends a body that
/// nobody waits for. Letter case does not count, as it does not for backends that fold it.
pub(super) fn is_alone(reuse: Reuse, method: &Method, has_body: bool) -> bool {
    match reuse {
        Reuse::Never => true,
        Reuse::WithoutBody if has_body => true,
        Reuse::WithoutBody | Reuse::Always => method.as_str().eq_ignore_ascii_case("HEAD"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_a_body_a_head_or_where_the_file_says_never() {
        for (reuse, method, has_body, alone) in [
            (Reuse::WithoutBody, "GET", false, false),
            (Reuse::WithoutBody, "POST", false, false),
            (Reuse::WithoutBody, "GET", true, true),
            (Reuse::WithoutBody, "POST", true, true),
            (Reuse::WithoutBody, "LIST", true, true),
            (Reuse::WithoutBody, "HEAD", false, true),
            (Reuse::WithoutBody, "head", false, true),
            (Reuse::Always, "POST", true, false),
            (Reuse::Always, "HEAD", false, true),
            (Reuse::Never, "GET", false, true),
            (Reuse::Never, "POST", true, true),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(is_alone(reuse, &method, has_body), alone, "{reuse:?} {method} {has_body}");
        }
    }
}
