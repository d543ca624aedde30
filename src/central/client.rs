//! HTTP to the centre: one connection for each call. Redirects are not followed: a token goes where the file says.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection};
use hyper_util::rt::TokioIo;

use super::Status;
use crate::auth::centre::{Answered, Asked, Centre, CentreFuture, Unanswered};
use crate::config::{Central, CentralUrl, UpstreamUrl};
use crate::secret::Secret;
use crate::upstream::connect::{self, Stream};
use crate::upstream::tls::{Tls, tls};

/// How long a connection may take, its TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No answer but the feed is longer.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// The token that is shown to the centre. A function, for a reload changes it.
pub type Shown = Box<dyn Fn() -> Option<Secret<String>> + Send + Sync>;

/// Speaks to the centre.
pub struct Client {
    central: Central,
    tls: Option<Tls>,
    shown: Shown,
    status: Arc<Status>,
}

/// Why the centre did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("can't connect to {authority}: {source}")]
    Connect { authority: String, source: io::Error },
    #[error("the connection to the centre broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the centre answered {0}")]
    Status(StatusCode),
    #[error("the centre answered 401: token.revocation_token_file holds another token here than there")]
    WrongToken,
    #[error("the centre's answer can't be read: {0}")]
    Unreadable(Box<dyn std::error::Error + Send + Sync>),
    #[error("the centre did not answer in time")]
    TimedOut,
}

/// An answer that is read piece by piece, with the connection that it comes on.
pub(super) struct Streamed {
    pub(super) body: Incoming,
    _connection: Driven,
}

/// The task that drives a connection; dropped, it closes it.
struct Driven(tokio::task::JoinHandle<()>);

impl Drop for Driven {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Wire = Connection<TokioIo<Stream>, Full<Bytes>>;

impl Client {
    /// Fails where TLS can't be set up.
    pub fn new(central: Central, shown: Shown, status: Arc<Status>) -> io::Result<Arc<Self>> {
        let wants_tls =
            [&central.jwks, &central.revocations].iter().any(|url| matches!(url.server, UpstreamUrl::Https { .. }));
        let tls = wants_tls.then(|| tls(central.ca_file.as_deref(), None)).transpose()?;
        Ok(Arc::new(Self { central, tls, shown, status }))
    }

    /// The centre's public keys, as they came.
    pub(super) async fn jwks(&self) -> Result<Bytes, ClientError> {
        self.exchange(&self.central.jwks, Method::GET, Bytes::new(), false).await
    }

    /// The feed from after `position` on, a query such as `after=7&print=…`, or from the beginning. Call it on a
    /// `LocalSet`.
    pub(super) async fn feed(&self, position: &str) -> Result<Streamed, ClientError> {
        let mut url = self.central.revocations.clone();
        if !position.is_empty() {
            url.path = format!("{}?{position}", url.path);
        }
        let (mut sender, connection) = self.connect(&url).await?;
        let driven = Driven(tokio::task::spawn_local(async move {
            // An error reaches the reader of the body as well.
            let _ = connection.await;
        }));
        let request = self.request(&url, Method::GET, Bytes::new(), true);
        let response = checked(sender.send_request(request).await?)?;
        Ok(Streamed { body: response.into_body(), _connection: driven })
    }

    async fn exchange(
        &self,
        url: &CentralUrl,
        method: Method,
        body: Bytes,
        shows_token: bool,
    ) -> Result<Bytes, ClientError> {
        let (mut sender, connection) = self.connect(url).await?;
        let request = self.request(url, method, body, shows_token);
        let answer = async move {
            let response = checked(sender.send_request(request).await?)?;
            let whole = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            whole.map(http_body_util::Collected::to_bytes).map_err(ClientError::Unreadable)
        };
        // The connection is driven beside the exchange and closed with it, on whichever thread asks.
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                answer.await
            }
        }
    }

    async fn connect(&self, url: &CentralUrl) -> Result<(http1::SendRequest<Full<Bytes>>, Wire), ClientError> {
        let stream = connect::connect(&url.server, self.tls.as_ref(), CONNECT_TIMEOUT)
            .await
            .map_err(|source| ClientError::Connect { authority: url.authority.clone(), source })?;
        Ok(http1::Builder::new().max_buf_size(64 * 1024).handshake(TokioIo::new(stream)).await?)
    }

    fn request(&self, url: &CentralUrl, method: Method, body: Bytes, shows_token: bool) -> Request<Full<Bytes>> {
        let has_body = !body.is_empty();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Both were taken from a URL that was parsed; one that can't be sent is refused by the centre.
        *request.uri_mut() = url.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::try_from(&url.authority).unwrap_or(HeaderValue::from_static("")));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("doorward/", env!("CARGO_PKG_VERSION"))));
        if has_body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let shown = if shows_token { (self.shown)() } else { None };
        if let Some(token) = shown
            && let Ok(mut value) = HeaderValue::try_from(["Bearer ", token.expose()].concat())
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        request
    }

    async fn ask(&self, name: &str, asked: &Asked) -> Result<Bytes, Unanswered> {
        let said = |error: &dyn std::fmt::Display| Unanswered(error.to_string());
        let body = serde_json::to_vec(asked).map_err(|error| said(&error))?;
        let url = self.central.revocations.beside(name);
        self.exchange(&url, Method::POST, body.into(), true).await.map_err(|error| said(&error))
    }
}

fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    match response.status() {
        StatusCode::UNAUTHORIZED => Err(ClientError::WrongToken),
        status if status.is_success() => Ok(response),
        status => Err(ClientError::Status(status)),
    }
}

impl Centre for Client {
    fn renew(&self, asked: Asked) -> CentreFuture<'_, Answered> {
        Box::pin(async move {
            // Where the centre is known to be away nobody's request waits for it.
            if let Some(problem) = self.status.feed_problem() {
                return Err(Unanswered(problem));
            }
            let answer = self.ask("renew", &asked).await?;
            // The parser's own words could quote a token.
            serde_json::from_slice(&answer).map_err(|_| Unanswered(String::from("its answer can't be read")))
        })
    }

    fn end(&self, token: &str) -> CentreFuture<'_, ()> {
        let unspecified = std::net::Ipv4Addr::UNSPECIFIED.into();
        let asked = Asked { token: token.to_owned(), bearer: false, client: unspecified, user_agent: String::new() };
        Box::pin(async move { self.ask("logout", &asked).await.map(drop) })
    }
}
