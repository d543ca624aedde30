//! Which methods are served, and how they are compared.

use std::borrow::Cow;

use http::Method;

/// Whether requests of this method are served: any token (RFC 9110 section 9.1) but CONNECT, which asks for a tunnel,
/// TRACE, which shows everybody's headers to scripts, and PRI, which begins HTTP/2. In any letter case: backends that
/// compare without regard to it would serve `Trace`.
#[must_use]
pub fn is_served(method: &Method) -> bool {
    !["CONNECT", "TRACE", "PRI"].iter().any(|refused| method.as_str().eq_ignore_ascii_case(refused))
}

/// The methods that IANA registers, and what HTTP programs use beside them.
const KNOWN: [&str; 47] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "QUERY",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "PURGE",
    "BAN",
    "REFRESH",
    "LIST",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "NOTIFY",
    "M-SEARCH",
    "SOURCE",
    "STATS",
];

/// The method that is probably meant by an unknown one: two letters have changed places, or one is missing or too many.
#[must_use]
pub fn is_slip_for(method: &Method) -> Option<&'static str> {
    let typed = method.as_str().as_bytes();
    if KNOWN.contains(&method.as_str()) {
        return None;
    }
    KNOWN.into_iter().find(|known| {
        let known = known.as_bytes();
        let same = typed.iter().zip(known).take_while(|(one, other)| one == other).count();
        let (typed, known) = (typed.get(same..).unwrap_or_default(), known.get(same..).unwrap_or_default());
        match (typed, known) {
            ([a, b, rest @ ..], [c, d, others @ ..]) if a == d && b == c => rest == others,
            _ => typed.get(1..) == Some(known) || known.get(1..) == Some(typed),
        }
    })
}

/// The method by which a request is routed: in capitals. The request itself goes on as it was sent.
#[must_use]
pub fn routed(method: &Method) -> Cow<'_, Method> {
    if !method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Cow::Borrowed(method);
    }
    Method::from_bytes(method.as_str().to_ascii_uppercase().as_bytes()).map_or(Cow::Borrowed(method), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_token_is_a_method_but_three_in_any_case() {
        for (method, served) in [
            ("GET", true),
            ("PURGE", true),
            ("LIST", true),
            ("M-SEARCH", true),
            ("get", true),
            ("-bl~`", true),
            ("TRACE", false),
            ("Trace", false),
            ("connect", false),
            ("PRI", false),
        ] {
            assert_eq!(is_served(&method.parse().unwrap()), served, "{method}");
        }
    }

    #[test]
    fn slips_of_the_hand_are_told_from_methods_that_nobody_knows() {
        for (method, meant) in [
            ("GTE", Some("GET")),
            ("PSOT", Some("POST")),
            ("DELET", Some("DELETE")),
            ("POSTT", Some("POST")),
            ("PURGE", None),
            ("LIST", None),
            ("FROBNICATE", None),
            ("X", None),
        ] {
            assert_eq!(is_slip_for(&method.parse().unwrap()), meant, "{method}");
        }
    }

    #[test]
    fn letter_case_takes_no_part_in_routing() {
        assert_eq!(*routed(&"get".parse().unwrap()), Method::GET);
        assert_eq!(routed(&"m-Search".parse().unwrap()).as_str(), "M-SEARCH");
        assert!(matches!(routed(&Method::POST), Cow::Borrowed(_)));
    }
}
