//! Sessions and renewals, with the races between them and their ends.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use super::*;
use crate::auth::renewal::Refreshed;
use crate::auth::testing::{DAY, Fixture, NOW, SECRET, account, limits};
use crate::auth::{Identified, Source};
use crate::policy::{Caller, Unidentified};
use crate::store::Forgotten;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn refresh(fixture: &Fixture, identified: &Identified) -> Refreshed {
    let Fixture { ring, token_config, sessions, .. } = fixture;
    let asker = crate::auth::Asker { client: CLIENT, user_agent: "browser", presented: None };
    sessions.refresh(ring, token_config, &limits(), identified, asker).await
}

async fn start(fixture: &Fixture, name: &str, replaces: Option<&Verified>) -> (Issued, Arc<Verified>) {
    let Fixture { ring, token_config, sessions, clock, store, .. } = fixture;
    let head = store.log_head().await.unwrap();
    let account = account(name, &["staff"]);
    let replaces: Vec<&Verified> = replaces.into_iter().collect();
    let issued = sessions.start(ring, token_config, &account, head, CLIENT, "browser", &replaces).await.unwrap();
    let verified = ring.verify(issued.token.expose(), clock.unix_seconds()).unwrap();
    (issued, Arc::new(verified))
}

fn cookie(fixture: &Fixture, verified: &Arc<Verified>) -> Identified {
    fixture.identified(Arc::clone(verified), Source::Cookie)
}

fn groups(refreshed: &Refreshed) -> Vec<String> {
    match &refreshed.caller {
        Caller::Person(person) => person.groups.clone(),
        Caller::Anonymous(why) => vec![why.code().to_owned()],
    }
}

/// A token such as a backend that shares the secret makes.
fn foreign(fixture: &Fixture, name: &str) -> Arc<Verified> {
    let claims =
        serde_json::json!({ "_id": format!("id-{name}"), "username": name, "iat": NOW - 5 * DAY, "exp": NOW + DAY });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    Arc::new(fixture.ring.verify(&token, NOW).unwrap())
}

async fn change(fixture: &Fixture, name: &str, groups: &[&str]) {
    fixture.store.put(account(name, groups));
    let what = Revocation::Changed { account: format!("id-{name}").parse().unwrap() };
    let revoke = Write::Revoke { what, at: fixture.clock.unix_seconds(), expires: NOW + 99 * DAY };
    fixture.store.apply(vec![revoke]).await.unwrap();
}

/// Lets other tasks of this thread run until the store was read that often.
async fn until_read(fixture: &Fixture, times: usize) {
    while fixture.store.reads() < times {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_cookie_is_renewed_below_half_of_its_life_and_a_bearer_token_never() {
    let fixture = Fixture::new();
    let needs = |issued_at, source| {
        let identified = fixture.identified(fixture.verified("kim", issued_at), source);
        fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW)
    };
    assert!(!needs(NOW - 34 * DAY / 10, Source::Cookie), "3.6 days are left");
    assert!(!needs(NOW - 35 * DAY / 10, Source::Cookie), "exactly half is left");
    assert!(needs(NOW - 36 * DAY / 10, Source::Cookie), "3.4 days are left");
    assert!(!needs(NOW - 36 * DAY / 10, Source::Bearer));
    let nobody = Identified {
        caller: Caller::Anonymous(Unidentified::NoCredential),
        credential: None,
        standing: Standing::Current,
        other_cookies: Vec::new(),
        stale_cookie: false,
        own_bearer: false,
        unknown_key: false,
    };
    assert!(!fixture.sessions.needs_refresh(&fixture.token_config, &nobody, NOW));
}

#[test]
fn where_nothing_is_gained_nothing_is_renewed() {
    let mut fixture = Fixture::new();
    let mut claims = crate::auth::testing::claims("kim", NOW - 2 * DAY);
    claims.auth_time = NOW - 29 * DAY;
    let verified = Arc::new(fixture.ring.verify(&fixture.ring.sign(&claims).unwrap(), NOW).unwrap());
    assert_eq!(verified.expires, NOW + DAY, "the end of `max_lifetime`");
    let identified = cookie(&fixture, &verified);
    assert!(!fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW));
    fixture.token_config.refresh_below = Duration::from_secs(90 * DAY);
    let fresh = fixture.verified("kim", NOW - 1);
    let identified = cookie(&fixture, &fresh);
    assert!(!fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW), "not at every request");
}

#[tokio::test]
async fn a_renewal_is_the_same_session_with_the_present_groups() {
    let fixture = Fixture::new();
    let (first, old) = start(&fixture, "kim", None).await;
    fixture.clock.advance(Duration::from_secs(4 * DAY));
    fixture.store.put(account("kim", &["admin"]));
    let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
    assert_eq!(groups(&refreshed), ["admin"]);
    let issued = refreshed.issued.unwrap();
    let new = fixture.ring.verify(issued.token.expose(), NOW + 4 * DAY).unwrap();
    assert_eq!((new.session.as_ref(), new.auth_time), (Some(&first.session), NOW));
    assert_eq!((new.issued_at, new.expires, issued.max_age), (NOW + 4 * DAY, NOW + 11 * DAY, 7 * DAY));
    assert_eq!(new.principal.email, "kim@example.com");
    let [session] = &fixture.store.stored()[..] else { panic!("one session") };
    assert_eq!((session.created, session.renewed, session.expires), (NOW, NOW + 4 * DAY, NOW + 11 * DAY));
    assert_eq!((&*session.address, &*session.user_agent), ("127.0.0.1", "browser"));
}

#[tokio::test]
async fn daily_use_ends_at_max_lifetime() {
    let fixture = Fixture::new();
    let (_, mut verified) = start(&fixture, "kim", None).await;
    for _ in 0..40 {
        fixture.clock.advance(Duration::from_secs(DAY));
        let now = fixture.clock.unix_seconds();
        if now >= verified.expires {
            break;
        }
        let identified = cookie(&fixture, &verified);
        if fixture.sessions.needs_refresh(&fixture.token_config, &identified, now) {
            let issued = refresh(&fixture, &identified).await.issued.unwrap();
            verified = Arc::new(fixture.ring.verify(issued.token.expose(), now).unwrap());
        }
    }
    assert_eq!(verified.expires, NOW + 30 * DAY);
    assert_eq!(fixture.clock.unix_seconds(), NOW + 30 * DAY);
}

#[tokio::test]
async fn every_check_of_a_login_is_made_again() {
    for (change, why) in [
        (0, Unidentified::UnknownAccount),
        (1, Unidentified::DisabledAccount),
        (2, Unidentified::RevokedToken),
        (3, Unidentified::ExpiredToken),
    ] {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        let mut kim = account("kim", &["staff"]);
        match change {
            0 => fixture.store.remove(&kim.id),
            1 => kim.disabled = true,
            2 => kim.version += 1,
            _ => fixture.clock.advance(Duration::from_secs(30 * DAY)),
        }
        if change != 0 {
            fixture.store.put(kim);
        }
        for source in [Source::Cookie, Source::Bearer] {
            let mut identified = fixture.identified(Arc::clone(&old), source);
            identified.standing = Standing::Changed { since: 9 };
            let refreshed = refresh(&fixture, &identified).await;
            if source == Source::Cookie || change != 3 {
                assert_eq!(groups(&refreshed), [why.code()]);
            }
            assert!(refreshed.issued.is_none());
        }
    }
}

#[test]
fn a_hundred_requests_on_four_threads_read_the_account_once() {
    let fixture = Arc::new(Fixture::new());
    let old = fixture.verified("kim", NOW - 4 * DAY);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let held = runtime().block_on(fixture.store.hold.write());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (fixture, old) = (Arc::clone(&fixture), Arc::clone(&old));
            std::thread::spawn(move || {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime(), async {
                    let tasks: Vec<_> = (0..25)
                        .map(|_| {
                            let (fixture, old) = (Arc::clone(&fixture), Arc::clone(&old));
                            tokio::task::spawn_local(async move {
                                refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap()
                            })
                        })
                        .collect();
                    let mut tokens = Vec::new();
                    for task in tasks {
                        tokens.push(task.await.unwrap().token.expose().clone());
                    }
                    tokens
                })
            })
        })
        .collect();
    while fixture.store.reads() == 0 {
        std::thread::yield_now();
    }
    drop(held);
    let mut tokens: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(tokens.len(), 100);
    tokens.dedup();
    assert_eq!(tokens.len(), 1, "all get the same token");
    assert_eq!(fixture.store.reads(), 1);
}

#[tokio::test]
async fn a_straggler_gets_the_same_token_for_a_while() {
    let fixture = Fixture::new();
    let (_, old) = start(&fixture, "kim", None).await;
    fixture.clock.advance(Duration::from_secs(4 * DAY));
    let first = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
    fixture.clock.advance(Duration::from_secs(29));
    let second = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
    assert_eq!(first.token.expose(), second.token.expose());
    assert_eq!(fixture.store.reads(), 1);
    fixture.clock.advance(Duration::from_secs(1));
    let third = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
    assert_ne!(first.token.expose(), third.token.expose());
    // And none at all once the groups have changed, or the session has ended.
    change(&fixture, "kim", &["admin"]).await;
    assert_eq!(groups(&refresh(&fixture, &cookie(&fixture, &old)).await), ["admin"]);
    fixture.sessions.end(&fixture.token_config, &old, None).await.unwrap();
    let late = refresh(&fixture, &cookie(&fixture, &old)).await;
    assert_eq!((groups(&late), late.issued.is_none()), (vec![String::from("revoked_token")], true));
}

#[tokio::test]
async fn what_is_ended_during_a_renewal_stays_ended() {
    for way in 0..4 {
        let fixture = Fixture::new();
        let token = &fixture.token_config;
        let (_, old) = start(&fixture, "kim", None).await;
        fixture.clock.advance(Duration::from_secs(4 * DAY));
        let identified = cookie(&fixture, &old);
        let held = fixture.store.hold.write().await;
        let end = async {
            until_read(&fixture, 1).await;
            match way {
                0 => fixture.sessions.end(token, &old, None).await.unwrap(),
                1 => assert!(fixture.sessions.revoke(token, old.session.as_ref().unwrap()).await.unwrap()),
                2 => fixture.sessions.revoke_account(token, &old.account).await.unwrap(),
                _ => fixture.sessions.revoke_all(token).await.unwrap(),
            }
            drop(held);
        };
        let (refreshed, ()) = tokio::join!(refresh(&fixture, &identified), end);
        assert_eq!(groups(&refreshed), ["revoked_token"]);
        assert!(refreshed.issued.is_none());
        assert!(fixture.store.stored().is_empty(), "nothing brings a session back");
    }
}

#[tokio::test]
async fn a_change_during_a_renewal_is_seen_by_the_next_request_even_while_the_first_still_runs() {
    let fixture = Fixture::new();
    let (_, old) = start(&fixture, "kim", None).await;
    fixture.clock.advance(Duration::from_secs(4 * DAY));
    let first = cookie(&fixture, &old);
    let held = fixture.store.hold.write().await;
    let second = async {
        until_read(&fixture, 1).await;
        change(&fixture, "kim", &["admin"]).await;
        let second = cookie(&fixture, &old);
        assert!(matches!(second.standing, Standing::Changed { .. }));
        let ((), refreshed) = tokio::join!(async { drop(held) }, refresh(&fixture, &second));
        refreshed
    };
    let (_, second) = tokio::join!(refresh(&fixture, &first), second);
    assert_eq!(groups(&second), ["admin"]);
}

#[tokio::test]
async fn who_leaves_in_the_middle_takes_nobody_with_him() {
    let fixture = Fixture::new();
    let old = fixture.verified("kim", NOW - 4 * DAY);
    let identified = cookie(&fixture, &old);
    let held = fixture.store.hold.write().await;
    let mut leader = Box::pin(refresh(&fixture, &identified));
    assert!(futures_poll(&mut leader).await);
    until_read(&fixture, 1).await;
    let mut follower = Box::pin(refresh(&fixture, &identified));
    assert!(futures_poll(&mut follower).await);
    drop(leader);
    drop(held);
    assert!(follower.await.issued.is_some());
}

/// Polls once; true where it is not ready.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending()))
        .await
}

#[tokio::test]
async fn with_the_store_down_the_old_token_serves_on() {
    let fixture = Fixture::new();
    let (_, old) = start(&fixture, "kim", None).await;
    fixture.clock.advance(Duration::from_secs(4 * DAY));
    fixture.store.is_down.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
        assert_eq!(groups(&refreshed), ["staff"]);
        assert!(refreshed.issued.is_none() && !refreshed.unavailable);
        fixture.clock.advance(Duration::from_hours(1));
    }
    fixture.store.is_down.store(false, Ordering::SeqCst);
    assert!(refresh(&fixture, &cookie(&fixture, &old)).await.issued.is_some(), "it recovers by itself");
}

#[tokio::test]
async fn a_changed_account_that_can_not_be_read_keeps_its_groups_until_max_staleness() {
    for source in [Source::Cookie, Source::Bearer] {
        let fixture = Fixture::new();
        let (_, old) = start(&fixture, "kim", None).await;
        change(&fixture, "kim", &["admin"]).await;
        fixture.store.is_down.store(true, Ordering::SeqCst);
        let try_once = async || {
            let refreshed = refresh(&fixture, &fixture.identified(Arc::clone(&old), source)).await;
            assert!(refreshed.issued.is_none());
            (groups(&refreshed), refreshed.unavailable)
        };
        assert_eq!(try_once().await, (vec![String::from("staff")], false));
        fixture.clock.advance(Duration::from_millis(9_999));
        assert_eq!(try_once().await, (vec![String::from("staff")], false));
        fixture.clock.advance(Duration::from_millis(1));
        assert!(try_once().await.1);
        fixture.store.is_down.store(false, Ordering::SeqCst);
        fixture.clock.advance(Duration::from_secs(1));
        let refreshed = refresh(&fixture, &fixture.identified(Arc::clone(&old), source)).await;
        assert_eq!((groups(&refreshed), refreshed.unavailable), (vec![String::from("admin")], false));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_nobody_up_for_longer_than_its_timeout() {
    let fixture = Fixture::new();
    let (_, old) = start(&fixture, "kim", None).await;
    fixture.clock.advance(Duration::from_secs(4 * DAY));
    let _held = fixture.store.hold.write().await;
    let before = tokio::time::Instant::now();
    let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
    assert!(before.elapsed() < limits().timeout + Duration::from_secs(1));
    assert_eq!((groups(&refreshed), refreshed.unavailable), (vec![String::from("staff")], false));
}

#[tokio::test]
async fn a_changed_bearer_token_is_read_once_until_it_changes_again() {
    let fixture = Fixture::new();
    let (_, old) = start(&fixture, "kim", None).await;
    for (groups_now, reads) in [("admin", 1), ("guests", 2)] {
        change(&fixture, "kim", &[groups_now]).await;
        for _ in 0..3 {
            let identified = fixture.identified(Arc::clone(&old), Source::Bearer);
            assert!(fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW));
            let refreshed = refresh(&fixture, &identified).await;
            assert_eq!(groups(&refreshed), [groups_now]);
            assert!(refreshed.issued.is_none());
        }
        assert_eq!(fixture.store.reads(), reads);
    }
}

#[tokio::test]
async fn a_foreign_token_becomes_one_of_ours() {
    let fixture = Fixture::new();
    let old = foreign(&fixture, "kim");
    let identified = cookie(&fixture, &old);
    assert!(fixture.sessions.needs_refresh(&fixture.token_config, &identified, NOW));
    let refreshed = refresh(&fixture, &identified).await;
    assert_eq!(groups(&refreshed), ["staff"]);
    let issued = refreshed.issued.unwrap();
    let new = fixture.ring.verify(issued.token.expose(), NOW).unwrap();
    assert_eq!((new.auth_time, new.version, new.seq), (NOW - 5 * DAY, Some(0), Some(5)));
    assert_eq!(fixture.store.stored()[0].id, issued.session);
    // Logging out with the old one ends the session that was just made of it, too.
    fixture.sessions.end(&fixture.token_config, &old, None).await.unwrap();
    assert_eq!(fixture.revocations.standing(&old), Standing::Revoked);
    assert_eq!(fixture.revocations.standing(&new), Standing::Revoked);
    assert!(fixture.store.stored().is_empty());
    let stranger = foreign(&fixture, "nobody");
    let refreshed = refresh(&fixture, &cookie(&fixture, &stranger)).await;
    assert_eq!(groups(&refreshed), ["unknown_account"]);
}

#[tokio::test]
async fn a_foreign_token_that_is_ended_during_its_renewal_leaves_no_session() {
    let fixture = Fixture::new();
    let old = foreign(&fixture, "kim");
    let identified = cookie(&fixture, &old);
    let held = fixture.store.hold.write().await;
    let end = async {
        until_read(&fixture, 1).await;
        fixture.sessions.end(&fixture.token_config, &old, None).await.unwrap();
        drop(held);
    };
    let (refreshed, ()) = tokio::join!(refresh(&fixture, &identified), end);
    assert_eq!(groups(&refreshed), ["revoked_token"]);
    assert!(fixture.store.stored().is_empty());
}

#[tokio::test]
async fn a_foreign_clock_ahead_of_ours_brings_nothing_back() {
    let fixture = Fixture::new();
    fixture.clock.advance(Duration::from_secs(4 * DAY));
    let old = foreign(&fixture, "kim");
    let mut ahead = foreign(&fixture, "kim");
    Arc::get_mut(&mut ahead).unwrap().issued_at = fixture.clock.unix_seconds() + 20;
    let identified = cookie(&fixture, &ahead);
    let held = fixture.store.hold.write().await;
    let end = async {
        until_read(&fixture, 1).await;
        fixture.sessions.revoke_account(&fixture.token_config, &old.account).await.unwrap();
        drop(held);
    };
    let (refreshed, ()) = tokio::join!(refresh(&fixture, &identified), end);
    assert_eq!(groups(&refreshed), ["revoked_token"]);
    assert!(fixture.store.stored().is_empty());
    fixture.sessions.end(&fixture.token_config, &ahead, None).await.unwrap();
    assert_eq!(fixture.revocations.standing(&ahead), Standing::Revoked);
}

#[tokio::test]
async fn a_login_ends_the_session_whose_cookie_came_with_it() {
    let fixture = Fixture::new();
    let (_, old) = start(&fixture, "kim", None).await;
    let (second, new) = start(&fixture, "kim", Some(&old)).await;
    assert_eq!(fixture.revocations.standing(&old), Standing::Revoked);
    assert_eq!(fixture.revocations.standing(&new), Standing::Current);
    assert_eq!(fixture.store.stored().iter().map(|session| &session.id).collect::<Vec<_>>(), [&second.session]);
}

#[tokio::test]
async fn a_login_that_a_revocation_overtook_is_none() {
    let fixture = Fixture::new();
    let Fixture { ring, token_config, sessions, store, .. } = &fixture;
    let kim = account("kim", &[]);
    let head = store.log_head().await.unwrap();
    sessions.revoke_account(token_config, &kim.id).await.unwrap();
    let result = sessions.start(ring, token_config, &kim, head, CLIENT, "", &[]).await;
    assert!(matches!(result, Err(StoreError::Conflict)));
    assert!(store.stored().is_empty());
}

#[tokio::test]
async fn a_logout_is_remembered_as_long_as_any_token_of_the_session_can_live() {
    let fixture = Fixture::new();
    let (_, old) = start(&fixture, "kim", None).await;
    fixture.clock.advance(Duration::from_secs(4 * DAY));
    let issued = refresh(&fixture, &cookie(&fixture, &old)).await.issued.unwrap();
    fixture.sessions.end(&fixture.token_config, &old, None).await.unwrap();
    assert!(fixture.store.log_entries()[0].expires >= issued.expires, "the renewed one lives longer than the old");
    // One that was never stored is ended all the same, and ending twice is no error.
    let lost = fixture.verified("lee", NOW);
    for _ in 0..2 {
        fixture.sessions.end(&fixture.token_config, &lost, None).await.unwrap();
    }
    let entry = fixture.store.log_entries().pop().unwrap();
    assert!(entry.expires >= NOW + 11 * DAY, "and so does one that is being renewed right now");
    let until = Forgotten { until: lost.expires - 1, ..Forgotten::default() };
    fixture.revocations.forget(until, &fixture.clock);
    assert_eq!(fixture.revocations.standing(&lost), Standing::Revoked);
}

#[tokio::test]
async fn only_a_stored_session_can_be_revoked_by_id() {
    let fixture = Fixture::new();
    let (issued, verified) = start(&fixture, "kim", None).await;
    let Fixture { token_config, sessions, .. } = &fixture;
    assert!(!sessions.revoke(token_config, &SessionId::random()).await.unwrap());
    assert_eq!(sessions.list(None).await.unwrap().len(), 1);
    assert!(sessions.revoke(token_config, &issued.session).await.unwrap());
    assert!(!sessions.revoke(token_config, &issued.session).await.unwrap());
    assert_eq!(fixture.revocations.standing(&verified), Standing::Revoked);
    assert!(sessions.list(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn nothing_is_promised_when_the_store_takes_nothing() {
    let fixture = Fixture::new();
    let (_, verified) = start(&fixture, "kim", None).await;
    fixture.store.is_down.store(true, Ordering::SeqCst);
    let Fixture { ring, token_config, sessions, .. } = &fixture;
    assert!(sessions.end(token_config, &verified, None).await.is_err());
    assert!(sessions.revoke_account(token_config, &verified.account).await.is_err());
    assert!(sessions.revoke_all(token_config).await.is_err());
    assert!(sessions.start(ring, token_config, &account("kim", &[]), 5, CLIENT, "", &[]).await.is_err());
    assert_eq!(fixture.revocations.standing(&verified), Standing::Current);
}

#[tokio::test]
async fn a_token_that_no_browser_would_keep_is_not_issued() {
    let fixture = Fixture::new();
    let Fixture { ring, token_config, sessions, store, .. } = &fixture;
    let names: Vec<_> = (0..100).map(|number| format!("a-group-with-a-rather-long-name-{number}")).collect();
    let crowd: Vec<&str> = names.iter().map(String::as_str).collect();
    let result = sessions.start(ring, token_config, &account("kim", &crowd), 5, CLIENT, "", &[]).await;
    assert!(matches!(result, Err(StoreError::TooLarge { .. })));
    assert!(store.stored().is_empty());
    // A renewal goes on with the old cookie, and the new groups count.
    let (_, old) = start(&fixture, "lee", None).await;
    change(&fixture, "lee", &crowd).await;
    let refreshed = refresh(&fixture, &cookie(&fixture, &old)).await;
    assert_eq!((groups(&refreshed).len(), refreshed.issued.is_none()), (100, true));
}

#[tokio::test]
async fn a_token_for_a_script_has_a_session_and_no_longer_life_than_can_be_accepted() {
    let fixture = Fixture::new();
    let Fixture { ring, token_config, sessions, .. } = &fixture;
    for (asked, days) in [(None, 7), (Some(90 * DAY), 30), (Some(DAY), 1)] {
        let lifetime = asked.map(Duration::from_secs);
        let issued = sessions.issue_for_script(ring, token_config, &account("kim", &[]), 5, lifetime).await.unwrap();
        let verified = ring.verify(issued.token.expose(), NOW).unwrap();
        assert_eq!((verified.expires, issued.max_age), (NOW + days * DAY, days * DAY));
    }
    assert_eq!(sessions.list(None).await.unwrap().len(), 3);
}

#[test]
fn a_fresh_token_does_not_show_itself() {
    let fixture = Fixture::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (issued, _) = runtime.block_on(start(&fixture, "kim", None));
    assert!(!format!("{issued:?}").contains(issued.token.expose()));
    fixture.revocations.extend(&[], 6);
    assert_eq!(fixture.revocations.head(), 6);
}

#[test]
fn every_call_can_be_awaited_on_any_runtime() {
    fn any_thread<T: Send>(_: T) {}
    let fixture = Fixture::new();
    let Fixture { ring, token_config, sessions, .. } = &fixture;
    let verified = fixture.verified("kim", NOW);
    let kim = account("kim", &[]);
    any_thread(sessions.end(token_config, &verified, None));
    any_thread(sessions.revoke_account(token_config, &kim.id));
    any_thread(sessions.start(ring, token_config, &kim, 5, CLIENT, "", &[&verified]));
    let identified = cookie(&fixture, &verified);
    any_thread(refresh(&fixture, &identified));
}
