//! A verify-only gateway's centre, put together: who speaks to it, who follows it, and what is known of its keys.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::StartError;
use crate::auth::centre::KeysWanted;
use crate::auth::freshness::Freshness;
use crate::auth::keys::{KeyRing, from_jwks};
use crate::central::{Client, Follower, Keys, Status};
use crate::config::{self, Algorithm, Config};
use crate::gate::Shared;
use crate::secret::Secret;

/// Lives on the control thread.
pub(super) struct Centre {
    client: Arc<Client>,
    wanted: Arc<KeysWanted>,
    status: Arc<Status>,
    /// What is shown to the centre; a reload may change it.
    token: Arc<Mutex<Option<Secret<String>>>>,
    only: Option<Algorithm>,
    document: Rc<RefCell<Option<Bytes>>>,
}

impl Centre {
    /// `None`: the gateway has a store of its own.
    pub(super) fn of(config: &Config) -> Result<Option<Rc<Self>>, StartError> {
        let Some(central) = &config.central else { return Ok(None) };
        let token = Arc::new(Mutex::new(config.token.gateway_secret.clone()));
        let shown = {
            let token = Arc::clone(&token);
            Box::new(move || token.lock().unwrap_or_else(PoisonError::into_inner).clone())
        };
        let status = Arc::<Status>::default();
        Ok(Some(Rc::new(Self {
            client: Client::new(central.clone(), shown, Arc::clone(&status)).map_err(StartError::Centre)?,
            wanted: Arc::default(),
            status,
            token,
            only: central.algorithm,
            document: Rc::default(),
        })))
    }

    /// Makes renewals and logouts.
    pub(super) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// Has its keys read again.
    pub(super) fn wanted(&self) -> Arc<KeysWanted> {
        Arc::clone(&self.wanted)
    }

    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    /// The configuration was read again: the token to show may be another one, and the keys that are known count under
    /// the new rules.
    pub(super) fn reloaded(&self, token: &config::Token) -> KeyRing {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&token.gateway_secret);
        let known = self.document.borrow();
        let ring = known.as_ref().and_then(|document| from_jwks(token, self.only, document).ok());
        ring.unwrap_or_else(|| KeyRing::empty(token))
    }

    /// Follows the feed and the keys from now on.
    pub(super) fn follow(&self, shared: &Arc<Shared>, freshness: &Arc<Freshness>) {
        let rules = Arc::clone(shared);
        let swap = Arc::clone(shared);
        let keys = Keys {
            client: self.client(),
            wanted: self.wanted(),
            status: Arc::clone(&self.status),
            only: self.only,
            known: Rc::clone(&self.document),
            rules: Box::new(move || rules.live().config.token.clone()),
            swap: Box::new(move |ring| swap.replace(swap.live().rekeyed(ring))),
        };
        tokio::task::spawn_local(keys.follow());
        let follower = Follower {
            client: self.client(),
            revocations: Arc::clone(shared.revocations()),
            keys: self.wanted(),
            status: Arc::clone(&self.status),
            clock: shared.clock().clone(),
            metrics: shared.telemetry().metrics.clone(),
            freshness: Arc::clone(freshness),
        };
        tokio::task::spawn_local(follower.follow());
    }
}
