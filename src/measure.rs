//! The steps of the line one by one, for `benches/line.rs`. Only with the feature `measure`; no part of the program.
//!
//! Each step works on a head as it comes out of the HTTP library, with what a whole gateway would hold: two routes, live
//! revocations, a key and one session's token.

use std::cell::RefCell;
use std::net::IpAddr;
use std::path::Path;

use http::request::Parts;
use http::{HeaderValue, Request};

use crate::auth::cache::{DEFAULT_CAPACITY, TokenCache};
use crate::auth::keys::KeyRing;
use crate::auth::revocation::Revocations;
use crate::auth::token::Claims;
use crate::auth::{Identified, identify};
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::message::admit::{Admitted, Edge, Scheme, admit};
use crate::policy::decide;
use crate::router::Router;
use crate::store::{LogEntry, LogFollower as _, Revocation, SessionId};

/// How large a request's head is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// `Host` and the cookie.
    Small,
    /// What a browser sends: 13 fields, 6 cookies.
    Browser,
}

/// Everything that the steps need, made once.
pub struct Line {
    config: Config,
    edge: Edge,
    router: Router,
    ring: KeyRing,
    revocations: Revocations,
    tokens: RefCell<TokenCache>,
    parts: Parts,
    admitted: Admitted,
    identified: Identified,
    clock: Clock,
}

const CONFIG: &str = r#"
data_dir = "/nonexistent"
[upstream.app]
urls = ["http://127.0.0.1:9000"]
[[route]]
path = "/"
upstream = "app"
[[route]]
path = "/public"
access = "public"
upstream = "app"
"#;

const BROWSER: [(&str, &str); 11] = [
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/148.0.0.0 Safari/537.36",
    ),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("accept-language", "en-GB,en;q=0.9,ko;q=0.8"),
    ("cache-control", "max-age=0"),
    ("referer", "https://app.example.com/dashboard/overview?period=week"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
    ("sec-fetch-user", "?1"),
    ("upgrade-insecure-requests", "1"),
];
const CRUMBS: &str = "theme=dark; session_hint=1f0c8a2e9b; consent=analytics%3Dno; last_project=42; locale=en-GB; ";

/// Why the bench can't be set up.
pub type Problem = Box<dyn std::error::Error>;

impl Line {
    /// `revocations`: live entries of the log, none of which concerns the token. `routes`: beside the two.
    pub fn new(head: Head, revocations: u64, routes: usize) -> Result<Self, Problem> {
        let clock = Clock::system();
        let now = clock.unix_seconds();
        let more: String = (0..routes)
            .map(|number| {
                format!("[[route]]\npath = \"/section-{number}/part\"\ngroups = [\"staff\"]\nupstream = \"app\"\n")
            })
            .collect();
        let environment =
            |name: &str| (name == "JWT_SECRET").then(|| String::from("a secret of the benches, of more than 32 bytes"));
        let config = config::parse(&format!("{CONFIG}{more}"), Path::new("bench.toml"), &environment)
            .map_err(|problems| format!("{problems:?}"))?;
        let ring = KeyRing::load(&config.token, &config.data_dir, now)?;
        let log = Revocations::default();
        let entries: Vec<LogEntry> = (1..=revocations)
            .map(|number| {
                let session: SessionId = format!("0193a0c0-0000-7000-8002-{number:012x}").parse()?;
                Ok(LogEntry { number, what: Revocation::Session { session }, at: now, expires: now + 604_800 })
            })
            .collect::<Result<_, Problem>>()?;
        log.extend(&entries, revocations);
        let token = ring.sign(&claims(now, revocations))?;
        let parts = head.parts(&token)?;
        let edge = Edge { trusted_proxies: Vec::new(), scheme: Scheme::Http };
        let admitted = admit(&parts, PEER, &edge).map_err(|malformed| malformed.code())?;
        let mut tokens = TokenCache::new(DEFAULT_CAPACITY);
        let identified = identify(&parts.headers, &config.cookie.name, &ring, &mut tokens, &log, &clock);
        if identified.credential.is_none() {
            return Err("the token of the bench is no login".into());
        }
        Ok(Self {
            edge,
            router: Router::new(&config),
            ring,
            revocations: log,
            tokens: RefCell::new(tokens),
            parts,
            admitted,
            identified,
            clock,
            config,
        })
    }

    /// The first look at the head.
    pub fn admit(&self) -> bool {
        admit(&self.parts, PEER, &self.edge).is_ok()
    }

    /// Its route.
    pub fn resolve(&self) -> bool {
        self.router.resolve(&self.admitted.host, &self.admitted.readings, &self.parts.method).is_ok()
    }

    /// Who sent it, by a token that this worker has seen before.
    pub fn identify_remembered(&self) -> bool {
        self.identify(&mut self.tokens.borrow_mut())
    }

    /// Who sent it, by a token that is new to this worker. The table is made small, so that making it counts little.
    pub fn identify_new(&self) -> bool {
        self.identify(&mut TokenCache::new(4))
    }

    fn identify(&self, tokens: &mut TokenCache) -> bool {
        let name = &self.config.cookie.name;
        let found = identify(&self.parts.headers, name, &self.ring, tokens, &self.revocations, &self.clock);
        found.credential.is_some()
    }

    /// Whether he may.
    pub fn decide(&self) -> bool {
        self.router
            .resolve(&self.admitted.host, &self.admitted.readings, &self.parts.method)
            .is_ok_and(|route| decide(&route.policy, &self.identified.caller).is_ok())
    }
}

const PEER: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

impl Head {
    fn parts(self, token: &str) -> Result<Parts, Problem> {
        let mut request = Request::builder().uri("/dashboard/overview?period=week").header("host", "app.example.com");
        let crumbs = match self {
            Self::Small => "",
            Self::Browser => CRUMBS,
        };
        if self == Self::Browser {
            for (name, value) in BROWSER {
                request = request.header(name, value);
            }
        }
        let cookie = HeaderValue::from_str(&format!("{crumbs}access_token={token}"))?;
        Ok(request.header("cookie", cookie).body(())?.into_parts().0)
    }
}

fn claims(now: u64, seq: u64) -> Claims {
    let id = String::from("0193a0c0-0000-7000-8000-000000000001");
    Claims {
        iss: String::from("doorward"),
        sub: id.clone(),
        id,
        username: String::from("kim"),
        groups: vec![String::from("staff"), String::from("wiki")],
        email: String::new(),
        name: String::new(),
        sid: String::from("0193a0c0-0000-7000-8001-000000000001"),
        version: 0,
        auth_time: now,
        seq,
        iat: now,
        exp: now + 604_800,
    }
}
