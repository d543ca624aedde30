//! What becomes of a backend's own `Set-Cookie` of our name: none goes on; where the upstream says `adopt_login`, its
//! login is a login here and its deletion a logout.

use std::cell::RefCell;

use http::{HeaderMap, HeaderValue, header};

use super::live::Live;
use super::reject::Chain;
use super::{Core, Known, add_cookie, clear_cookie};
use crate::auth::adoption::NotAdopted;
use crate::auth::{Asker, Verified};
use crate::config::Upstream;
use crate::message::admit::Admitted;
use crate::message::caching;
use crate::message::cookies::{SaidOfOurs, said_of_ours};

/// One answer that spoke of our cookie, and its request.
pub(super) struct Spoken<'a> {
    pub(super) core: &'a Core,
    pub(super) live: &'a Live,
    pub(super) upstream: &'a Upstream,
    pub(super) known: &'a Known,
    pub(super) admitted: &'a Admitted,
    /// The request's.
    pub(super) headers: &'a HeaderMap,
}

impl Spoken<'_> {
    /// Acts on the lines; of several the last counts, as it does in a browser.
    pub(super) async fn act(&self, lines: &RefCell<Vec<HeaderValue>>, answer: &mut HeaderMap) {
        let lines = lines.take();
        if !self.upstream.adopt_login {
            self.dropped();
            return;
        }
        let shared = self.core.shared();
        let (name, now) = (&self.live.config.cookie.name, shared.clock().unix_seconds());
        match lines.iter().filter_map(|line| said_of_ours(line, name, now)).next_back() {
            Some(SaidOfOurs::Set(token)) => self.login(token, answer).await,
            Some(SaidOfOurs::Deleted) => self.logout(answer).await,
            None => self.dropped(),
        }
    }

    async fn login(&self, token: &str, answer: &mut HeaderMap) {
        let (shared, live) = (self.core.shared(), self.live);
        let user_agent = self.headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let client = self.admitted.client;
        let asker = Asker { client, user_agent: user_agent.as_deref().unwrap_or_default(), presented: None };
        let cookies = self.known.valid_cookies();
        let replaces: Vec<&Verified> = cookies.map(|verified| &**verified).collect();
        match shared.sessions().adopt(&live.ring, &live.config, token, asker, &replaces).await {
            Ok(issued) => add_cookie(live, answer, &issued, live.secure_cookie(self.admitted.scheme)),
            Err(NotAdopted::Own) => self.dropped(),
            Err(error) => {
                let error = Chain(&error).to_string();
                let upstream = &self.upstream.name;
                tracing::warn!(upstream, error, "a login of an upstream was not adopted; its Set-Cookie was dropped");
            }
        }
    }

    /// The backend has told the person that they are logged out: the cookie goes, whatever the store says.
    async fn logout(&self, answer: &mut HeaderMap) {
        let (shared, config) = (self.core.shared(), &self.live.config);
        for verified in self.known.valid_cookies() {
            let end = shared.sessions().end(&config.token, verified, None);
            let ended = match tokio::time::timeout(config.store.timeout, end).await {
                Ok(ended) => ended.map_err(|error| Chain(&error).to_string()),
                Err(_) => Err(String::from("the store did not answer in time")),
            };
            if let Err(error) = ended {
                let upstream = &self.upstream.name;
                tracing::warn!(upstream, error, "a logout of an upstream could not be stored; its session lives on");
            }
        }
        clear_cookie(self.live, answer, self.live.secure_cookie(self.admitted.scheme), true);
        caching::make_private(answer);
    }

    fn dropped(&self) {
        let Upstream { name, forward_token, adopt_login, .. } = self.upstream;
        if !self.core.shared().peers().is_new_upstream(name) {
            return;
        }
        let (cookie, cure) = (
            &self.live.config.cookie.name,
            match (forward_token, adopt_login) {
                (_, true) => {
                    "only a token that the application has made itself, in a cookie of exactly that name, is adopted"
                }
                (true, false) => "if it is its own login by the same secret, set adopt_login = true on it",
                (false, false) => "set cookie.name to another name, or let the upstream use another",
            },
        );
        tracing::warn!(
            upstream = name,
            "the upstream {name} tried to set the cookie {cookie}, which is Doorward's own; its Set-Cookie was dropped: {cure}"
        );
    }
}
