//! The heads of messages on their way: what the backend sees of a request, what the client sees of an answer.

use http::header::{self, HeaderName};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, response};

use super::{Outgoing, body};
use crate::message::{cookies, forwarded, hop_by_hop, identity};

/// Rewrites a request's head in place. Returns the trailers that may follow its body.
///
/// The order is the point: the client's identity headers go first, then what belongs to its connection (by all
/// `Connection` lines, which may name ours), then ours are set.
pub(super) fn request(
    head: &mut Parts,
    outgoing: &Outgoing<'_>,
    host: &HeaderValue,
    forward_token: bool,
) -> Option<Vec<HeaderName>> {
    let headers = &mut head.headers;
    let trailers = if headers.contains_key(header::TRAILER) {
        body::announced(headers, |name| outgoing.guarded.covers(name))
    } else {
        Vec::new()
    };
    let wants_trailers = headers.get_all(header::TE).iter().any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    outgoing.guarded.strip(headers);
    hop_by_hop::strip(headers);
    headers.remove(header::EXPECT);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::TRAILER);
    if !forward_token {
        cookies::remove(headers, outgoing.cookie_name);
        if outgoing.own_bearer {
            headers.remove(header::AUTHORIZATION);
        }
    }
    forwarded::set(headers, outgoing.admitted, outgoing.peer, outgoing.request_id);
    if let Some(person) = outgoing.pass.person() {
        identity::set(headers, outgoing.identity, person);
    }
    headers.insert(header::HOST, host.clone());
    if outgoing.admitted.websocket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    } else if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    if !trailers.is_empty() {
        announce(headers, &trailers);
    }
    head.version = Version::HTTP_11;
    head.uri = origin_form(&head.uri, outgoing.strip_prefix)?;
    Some(trailers)
}

/// Path and query exactly as they came, less the prefix. `None`: nothing that could be sent is left, which the router
/// has ruled out.
fn origin_form(uri: &Uri, strip_prefix: &str) -> Option<Uri> {
    if strip_prefix.is_empty() && uri.authority().is_none() {
        return Some(uri.clone());
    }
    let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = whole.strip_prefix(strip_prefix)?;
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    let path_and_query: PathAndQuery = rest.parse().ok()?;
    Some(Uri::from(path_and_query))
}

/// Rewrites an answer's head in place. Returns the trailers that may follow its body, or why the answer can't be
/// passed on.
pub(super) fn response(
    head: &mut response::Parts,
    outgoing: &Outgoing<'_>,
    tunnel: bool,
) -> Result<Vec<HeaderName>, &'static str> {
    let headers = &mut head.headers;
    // The codec has decoded the chunks; a length that stood beside them would now be believed (RFC 9112 section 6.3).
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if !is_chunked_alone(headers) {
            return Err("its Transfer-Encoding is not chunked alone");
        }
        headers.remove(header::CONTENT_LENGTH);
    }
    // RFC 9110 section 8.6: neither has a place there.
    if tunnel || head.status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
    }
    one_length(headers)?;
    let trailers = if headers.contains_key(header::TRAILER) {
        body::announced(headers, |name| outgoing.guarded.covers(name))
    } else {
        Vec::new()
    };
    hop_by_hop::strip(headers);
    headers.remove(header::TRAILER);
    headers.remove(header::TRANSFER_ENCODING);
    if !trailers.is_empty() {
        announce(headers, &trailers);
    }
    if tunnel {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    drop_own_cookie(headers, outgoing.cookie_name);
    head.version = Version::HTTP_11;
    Ok(trailers)
}

/// Any other coding would be passed on as if it belonged to the content.
fn is_chunked_alone(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = lines.next();
    first.is_some_and(|line| line.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")) && lines.next().is_none()
}

/// Several equal lengths become one (RFC 9110 section 8.6), several different ones are refused: the codec does so only
/// where a body follows, and not for `HEAD` or 304.
fn one_length(headers: &mut HeaderMap) -> Result<(), &'static str> {
    let mut found = None;
    let mut count = 0;
    for length in
        headers.get_all(header::CONTENT_LENGTH).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
    {
        let length = length.trim_ascii();
        let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(length).ok().filter(|_| digits).and_then(|digits| digits.parse::<u64>().ok());
        if length.is_none() || (count > 0 && found != length) {
            return Err("its Content-Length is contradictory or no number");
        }
        found = length;
        count += 1;
    }
    if let (Some(length), 2..) = (found, count) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

/// Nobody but us sets our cookie.
fn drop_own_cookie(headers: &mut HeaderMap, cookie_name: &str) {
    if !headers.get_all(header::SET_COOKIE).iter().any(|line| cookies::sets(line.as_bytes(), cookie_name)) {
        return;
    }
    tracing::warn!("an upstream tried to set our cookie; its Set-Cookie was dropped");
    let kept: Vec<HeaderValue> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .filter(|line| !cookies::sets(line.as_bytes(), cookie_name))
        .cloned()
        .collect();
    headers.remove(header::SET_COOKIE);
    for line in kept {
        headers.append(header::SET_COOKIE, line);
    }
}

fn announce(headers: &mut HeaderMap, trailers: &[HeaderName]) {
    let names: Vec<&str> = trailers.iter().map(HeaderName::as_str).collect();
    if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
        headers.insert(header::TRAILER, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Access;
    use crate::message::admit::{Edge, Scheme, admit};
    use crate::message::identity::Guarded;
    use crate::policy::{Caller, Policy, Unidentified, decide};

    /// Rewrites an answer to an anonymous request.
    fn answered(head: &mut response::Parts) -> Result<Vec<HeaderName>, &'static str> {
        let request = http::Request::builder().uri("/").header("host", "gw.test").body(()).unwrap().into_parts().0;
        let edge = Edge { trusted_proxies: Vec::new(), scheme: Scheme::Http };
        let policy = Policy { access: Access::Public, groups: Vec::new(), users: Vec::new() };
        let outgoing = Outgoing {
            pass: &decide(&policy, &Caller::Anonymous(Unidentified::NoCredential)).unwrap(),
            admitted: &admit(&request, None, &edge).unwrap(),
            peer: None,
            request_id: &HeaderValue::from_static("id"),
            strip_prefix: "",
            guarded: &Guarded::new(&[], false),
            identity: &[],
            cookie_name: "access_token",
            own_bearer: false,
            body_timeout: std::time::Duration::ZERO,
        };
        response(head, &outgoing, false)
    }

    #[test]
    fn the_path_is_sent_as_it_came_less_the_prefix() {
        for (uri, prefix, expected) in [
            ("/a%2Fb/../c?d=%00", "", "/a%2Fb/../c?d=%00"),
            ("http://h/a?b", "", "/a?b"),
            ("http://h", "", "/"),
            ("/api/x?y", "/api", "/x?y"),
            ("/api", "/api", "/"),
            ("/api?y", "/api", "/?y"),
            ("/api/", "/api", "/"),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(origin_form(&uri, prefix).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn an_answer_has_one_framing_or_is_refused() {
        type Fields<'a> = &'a [(&'static str, &'static str)];
        let cases: [(Fields<'_>, Result<&[&str], ()>); 10] = [
            (&[("content-length", "5")], Ok(&["content-length=5"])),
            (&[("content-length", "5"), ("content-length", "5")], Ok(&["content-length=5"])),
            (&[("content-length", "5, 5")], Ok(&["content-length=5"])),
            (&[("content-length", "5"), ("content-length", "6")], Err(())),
            (&[("content-length", "5,")], Err(())),
            (&[("content-length", "+5")], Err(())),
            (&[("content-length", "18446744073709551616")], Err(())),
            (&[("transfer-encoding", "Chunked"), ("content-length", "x")], Ok(&[])),
            (&[("transfer-encoding", "gzip")], Err(())),
            (&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], Err(())),
        ];
        for (fields, expected) in cases {
            let mut head = http::Response::new(()).into_parts().0;
            for (name, value) in fields {
                head.headers.append(*name, HeaderValue::from_static(value));
            }
            let outcome = answered(&mut head);
            let left: Vec<String> =
                head.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
            match expected {
                Ok(expected) => assert!(outcome.is_ok() && left == expected, "{fields:?}: {left:?}"),
                Err(()) => assert!(outcome.is_err(), "{fields:?}"),
            }
        }
    }

    #[test]
    fn a_length_beside_chunks_goes_and_so_does_our_cookie() {
        let mut head = http::Response::new(()).into_parts().0;
        for (name, value) in [
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "a=b"),
            ("set-cookie", "access_token=evil"),
            ("trailer", "x-sum, content-length, set-cookie, X_Forwarded_User"),
        ] {
            head.headers.append(name, HeaderValue::from_static(value));
        }
        let trailers = answered(&mut head).unwrap();
        assert_eq!(trailers, ["x-sum"]);
        let mut left: Vec<_> =
            head.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["set-cookie=a=b", "trailer=x-sum"]);
    }

    #[test]
    fn our_cookie_is_nobody_elses_to_set() {
        let mut headers = HeaderMap::new();
        for line in ["a=b; Path=/", "access_token=evil", "c=d"] {
            headers.append(header::SET_COOKIE, HeaderValue::from_static(line));
        }
        drop_own_cookie(&mut headers, "access_token");
        let left: Vec<_> = headers.get_all(header::SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=b; Path=/", "c=d"]);
    }

    #[test]
    fn trailers_that_frame_or_carry_secrets_are_not_announced() {
        let mut headers = HeaderMap::new();
        headers.insert(header::TRAILER, HeaderValue::from_static("X-Sum, content-length, set-cookie, x-sum, b@d"));
        headers.append(header::TRAILER, HeaderValue::from_static("X-Forwarded-For, x-real-ip, forwarded"));
        assert_eq!(body::announced(&headers, |_| false), ["x-sum"]);
        assert!(body::announced(&headers, |name| name == "x-sum").is_empty());
        let many = (0..4_000).map(|number| format!("x-{number}")).collect::<Vec<_>>().join(",");
        headers.append(header::TRAILER, HeaderValue::from_str(&many).unwrap());
        assert_eq!(body::announced(&headers, |_| false).len(), 64);
    }
}
