//! Who asks, what the route demands, and the one place where a request is allowed.
//!
//! [`Pass`] can be made by [`decide`] alone, and forwarding demands one: a request that reached a backend without a
//! decision does not compile.

use std::sync::Arc;

use crate::config::Access;

/// A person, as a verified token or a fresh reading of the account names him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub id: String,
    /// Canonical.
    pub username: String,
    pub groups: Vec<String>,
    pub email: String,
    pub display_name: String,
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Nobody is logged in, and why not.
    Anonymous(Unidentified),
    Person(Arc<Principal>),
}

/// Why nobody is logged in. Each has a stable code for logs and `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unidentified {
    NoCredential,
    InvalidToken,
    ExpiredToken,
    RevokedToken,
    ConflictingTokens,
    UnknownAccount,
    DisabledAccount,
}

impl Unidentified {
    /// The stable reason code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoCredential => "no_credential",
            Self::InvalidToken => "invalid_token",
            Self::ExpiredToken => "expired_token",
            Self::RevokedToken => "revoked_token",
            Self::ConflictingTokens => "conflicting_tokens",
            Self::UnknownAccount => "unknown_account",
            Self::DisabledAccount => "disabled_account",
        }
    }
}

/// What a route demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub access: Access,
    /// Any of these …
    pub groups: Vec<String>,
    /// … or any of these canonical names; both empty: anybody who is logged in.
    pub users: Vec<String>,
}

/// The permission to forward one request. Only [`decide`] makes one.
#[derive(Clone, Debug)]
pub struct Pass {
    person: Option<Arc<Principal>>,
    reason: &'static str,
}

impl Pass {
    /// The person to name to the backend, where one is logged in.
    #[must_use]
    pub fn person(&self) -> Option<&Arc<Principal>> {
        self.person.as_ref()
    }

    /// Why it was allowed: a stable code for logs and `explain`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.reason
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A login would help; carries why the caller counts as nobody.
    LoginRequired(Unidentified),
    /// Logged in, but neither user nor group is on the route's list.
    NotOnList,
    /// The route is closed to everybody.
    Closed,
}

impl Denied {
    /// The stable reason code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::LoginRequired(why) => why.code(),
            Self::NotOnList => "not_on_list",
            Self::Closed => "route_closed",
        }
    }
}

/// Decides one request. A person who is logged in is named on public and optional routes too.
pub fn decide(policy: &Policy, caller: &Caller) -> Result<Pass, Denied> {
    match (policy.access, caller) {
        (Access::Deny, _) => Err(Denied::Closed),
        (Access::Public, Caller::Person(person)) => Ok(Pass { person: Some(Arc::clone(person)), reason: "public" }),
        (Access::Public, Caller::Anonymous(_)) => Ok(Pass { person: None, reason: "public" }),
        (Access::Optional, Caller::Person(person)) => Ok(Pass { person: Some(Arc::clone(person)), reason: "optional" }),
        (Access::Optional, Caller::Anonymous(_)) => Ok(Pass { person: None, reason: "optional" }),
        (Access::Required, Caller::Anonymous(why)) => Err(Denied::LoginRequired(*why)),
        (Access::Required, Caller::Person(person)) => match grant(policy, person) {
            Some(reason) => Ok(Pass { person: Some(Arc::clone(person)), reason }),
            None => Err(Denied::NotOnList),
        },
    }
}

fn grant(policy: &Policy, person: &Principal) -> Option<&'static str> {
    if policy.groups.is_empty() && policy.users.is_empty() {
        Some("logged_in")
    } else if policy.users.contains(&person.username) {
        Some("user_listed")
    } else if policy.groups.iter().any(|group| person.groups.contains(group)) {
        Some("group_listed")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(username: &str, groups: &[&str]) -> Caller {
        Caller::Person(Arc::new(Principal {
            id: String::from("1"),
            username: username.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            email: String::new(),
            display_name: String::new(),
        }))
    }

    fn policy(access: Access, groups: &[&str], users: &[&str]) -> Policy {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Policy { access, groups: own(groups), users: own(users) }
    }

    #[test]
    fn every_access_and_caller_has_its_decision() {
        let nobody = Caller::Anonymous(Unidentified::ExpiredToken);
        let kim = person("kim", &["staff"]);
        for (access, groups, users, caller, expected) in [
            (Access::Required, &[][..], &[][..], &nobody, Err("expired_token")),
            (Access::Required, &[], &[], &kim, Ok(("logged_in", true))),
            (Access::Required, &["staff"], &[], &kim, Ok(("group_listed", true))),
            (Access::Required, &["Staff"], &[], &kim, Err("not_on_list")),
            (Access::Required, &["admin"], &["kim"], &kim, Ok(("user_listed", true))),
            (Access::Required, &[], &["lee"], &kim, Err("not_on_list")),
            (Access::Optional, &[], &[], &nobody, Ok(("optional", false))),
            (Access::Optional, &[], &[], &kim, Ok(("optional", true))),
            (Access::Public, &[], &[], &nobody, Ok(("public", false))),
            (Access::Public, &[], &[], &kim, Ok(("public", true))),
            (Access::Deny, &[], &[], &kim, Err("route_closed")),
            (Access::Deny, &[], &["kim"], &kim, Err("route_closed")),
        ] {
            let decision = decide(&policy(access, groups, users), caller)
                .map(|pass| (pass.reason(), pass.person().is_some()))
                .map_err(Denied::code);
            assert_eq!(decision, expected, "{access:?} {groups:?} {users:?}");
        }
    }
}
