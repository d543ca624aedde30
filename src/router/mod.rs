//! Host, path and method to a route. The most specific wins, whatever its place in the file.

pub mod explain;

use crate::config::Config;
use crate::message::admit::Host;
use crate::message::path::Readings;
use crate::policy::Policy;

/// One of the portal's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Login,
    Check,
    Logout,
    Account,
    /// `POST PREFIX/account/password`
    AccountPassword,
    /// `POST PREFIX/account/sessions` (end one, or all others: "sign out everywhere")
    AccountSessions,
    Jwks,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Portal(Endpoint),
    /// Index into [`Router::upstreams`]. A closed route has none.
    Upstream(Option<usize>),
}

/// One route as the gate needs it.
#[derive(Clone, Debug)]
pub struct Route {
    /// For logs, metrics and `explain`.
    pub name: String,
    pub policy: Policy,
    pub target: Target,
    /// Never redirect to the login page.
    pub api: bool,
    pub strip_prefix: String,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// 404.
    NotFound,
    /// The readings of the path lead to different routes: 400.
    Ambiguous,
}

/// All routes of one configuration.
#[derive(Debug)]
pub struct Router {}

impl Router {
    #[must_use]
    pub fn new(_config: &Config) -> Self {
        todo!("helper: config")
    }

    /// Names of upstreams, in the order of [`Target::Upstream`].
    #[must_use]
    pub fn upstreams(&self) -> &[String] {
        todo!()
    }

    /// Finds the route of a request.
    pub fn resolve(&self, _host: &Host, _readings: &Readings, _method: &http::Method) -> Result<&Route, NoRoute> {
        todo!()
    }

    /// Whether some routes name methods.
    #[must_use]
    pub fn methods_matter(&self) -> bool {
        todo!()
    }
}
