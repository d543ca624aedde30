//! `store copy`: everything from one store into another, with nobody logged out; or nothing.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::gateway::{Finished, run, write_private};
use crate::support::postgres::Cluster;
use crate::support::token;
use crate::support::{Builder, Gateway, Request, Upstream};

/// Makes a configuration's store one of some kind.
type Kind = (&'static str, fn(Builder) -> Builder);

/// Every kind of store. A copy goes from each to each.
const KINDS: &[Kind] = &[("sled", |builder| builder), ("postgres", in_postgres)];

/// A database of its own, empty.
fn in_postgres(builder: Builder) -> Builder {
    builder.on_postgres(&Cluster::shared().database().url())
}

fn guarding(upstream: &Upstream, kind: Kind) -> Builder {
    kind.1(Builder::guarding(upstream)).set("store.timeout", "\"1m\"")
}

/// The same without accounts.
fn empty(upstream: &Upstream, kind: Kind) -> Builder {
    let builder = Builder::new().upstream("app", &[&upstream.url]).route("path = \"/\"\nupstream = \"app\"");
    kind.1(builder).set("store.timeout", "\"1m\"")
}

fn copy(from: &Path, to: &Path) -> Finished {
    run(&["store", "copy", "--from", from.to_str().unwrap(), "--to", to.to_str().unwrap()])
}

/// Every record, as a dump tells it: without the time of the dump, the count of changes, and their checksum.
fn records(gateway: &Gateway) -> (Value, Vec<String>) {
    let dump = gateway.command(&["store", "dump"]).expect(0).stdout;
    let mut lines: Vec<String> = dump.lines().map(str::to_owned).collect();
    let mut header: Value = serde_json::from_str(&lines.remove(0)).unwrap();
    for once in ["made", "sequence"] {
        header.as_object_mut().unwrap().remove(once);
    }
    // What every store adds by itself while it is open: the time that has passed.
    header["forgotten"].as_object_mut().unwrap().remove("settled");
    let end: Value = serde_json::from_str(&lines.pop().unwrap()).unwrap();
    assert!(end.get("end").is_some(), "{end}");
    (header, lines)
}

/// A gateway with something of every kind in its store; serving.
struct Lived {
    gateway: Gateway,
    good: String,
    gone: Vec<String>,
}

fn lived(upstream: &Upstream, kind: Kind) -> Lived {
    let gateway = guarding(upstream, kind).user("lee", &["wiki"]).user("ann", &[]).start();
    let (good, logged_out) = (gateway.login("kim"), gateway.login("kim"));
    let (disabled, changed) = (gateway.login("lee"), gateway.login("ann"));
    gateway.send(&Request::post("/logout").cookie(&logged_out)).expect(204);
    gateway.command(&["user", "disable", "lee"]).expect(0);
    gateway.command(&["user", "set-groups", "ann", "staff"]).expect(0);
    gateway.command(&["session", "revoke", token::claims(&changed)["sid"].as_str().unwrap()]).expect(0);
    Lived { gateway, good, gone: vec![logged_out, disabled, changed] }
}

#[test]
fn a_copy_is_the_same_store_and_logs_nobody_out() {
    let upstream = Upstream::plain();
    for (from, to, running) in
        KINDS.iter().flat_map(|from| KINDS.iter().flat_map(move |to| [(*from, *to, false), (*from, *to, true)]))
    {
        let what = format!("{} to {}, running: {running}", from.0, to.0);
        let Lived { gateway: mut source, good, gone } = lived(&upstream, from);
        if !running {
            assert!(source.stop().success());
        }
        let mut target = empty(&upstream, to).prepare();
        let copied = copy(&source.config, &target.config).expect(0);
        assert!(copied.stdout.starts_with("copied 3 accounts, 1 sessions, "), "{what}: {}", copied.stdout);
        assert_eq!(copied.stderr.contains("still runs"), running, "{what}: {}", copied.stderr);
        assert_eq!(records(&source), records(&target), "{what}");
        if running {
            source.get_with("/check", &good).expect(200);
            assert!(source.stop().success());
        }
        target.serve();
        let check = target.get_with("/check", &good).expect(200);
        assert_eq!(check.json()["username"], "kim", "{what}");
        for token in &gone {
            assert_eq!(target.get_with("/check", token).status, 401, "{what}");
        }
        // The log goes on where it was: what is revoked now covers what was issued before, and nothing issued after.
        let head = token::claims(&target.login("ann"))["seq"].as_u64().unwrap();
        assert!(head >= token::claims(&good)["seq"].as_u64().unwrap());
        target.command(&["session", "revoke", "--user", "kim"]).expect(0);
        target.get_with("/check", &good).expect(401);
        target.get_with("/check", &target.login("kim")).expect(200);
        // And back again, where it came from is not empty.
        assert!(target.stop().success());
        let before = records(&source);
        let refused = copy(&target.config, &source.config).expect(1);
        assert!(refused.stderr.contains("not empty"), "{what}: {}", refused.stderr);
        assert_eq!(records(&source), before, "{what}");
    }
}

#[test]
fn there_and_back_is_the_same_store() {
    let upstream = Upstream::plain();
    for (here, there) in KINDS.iter().flat_map(|here| KINDS.iter().map(move |there| (*here, *there))) {
        let mut source = lived(&upstream, here).gateway;
        assert!(source.stop().success());
        let (middle, end) = (empty(&upstream, there).prepare(), empty(&upstream, here).prepare());
        copy(&source.config, &middle.config).expect(0);
        copy(&middle.config, &end.config).expect(0);
        assert_eq!(records(&source), records(&end), "{} to {} and back", here.0, there.0);
    }
}

#[test]
fn a_target_that_is_used_or_is_the_source_is_refused_and_left_alone() {
    let upstream = Upstream::plain();
    let source = lived(&upstream, KINDS[0]).gateway;
    for kind in KINDS {
        // It runs.
        let mut target = empty(&upstream, *kind).prepare();
        target.serve();
        let refused = copy(&source.config, &target.config).expect(1);
        assert!(refused.stderr.contains("a server runs on the target"), "{}: {}", kind.0, refused.stderr);
        assert_eq!(target.command(&["user", "list", "--json"]).expect(0).json(), json!([]));
        // It is in use, by one account or by what was revoked alone.
        target.stop();
        let one = guarding(&upstream, *kind).prepare();
        let before = records(&one);
        let refused = copy(&source.config, &one.config).expect(1);
        assert!(refused.stderr.contains("not empty"), "{}: {}", kind.0, refused.stderr);
        assert_eq!(records(&one), before);
        let revoked = empty(&upstream, *kind).prepare();
        revoked.command(&["session", "revoke", "--all"]).expect(0);
        copy(&source.config, &revoked.config).expect(1);
        // Nothing comes of nothing.
        let refused = copy(&target.config, &empty(&upstream, *kind).prepare().config).expect(1);
        assert!(refused.stderr.contains("empty") || refused.stderr.contains("no store"), "{}", refused.stderr);
    }
    // The same store, also by another way to it.
    let refused = copy(&source.config, &source.config).expect(2);
    assert!(refused.stderr.contains("the same store"), "{}", refused.stderr);
    let detour = source.folder().join("detour");
    std::os::unix::fs::symlink(source.data(), &detour).unwrap();
    let text = fs::read_to_string(&source.config).unwrap();
    let data = source.data();
    let other = source.folder().join("other.toml");
    write_private(&other, text.replace(data.to_str().unwrap(), detour.to_str().unwrap()).as_bytes());
    let refused = copy(&source.config, &other).expect(2);
    assert!(refused.stderr.contains("the same store"), "{}", refused.stderr);
}

#[test]
fn a_source_that_is_not_there_or_damaged_is_refused_and_makes_nothing() {
    let upstream = Upstream::plain();
    let (nothing, target) = (empty(&upstream, KINDS[0]).prepare(), empty(&upstream, KINDS[0]).prepare());
    let refused = copy(&nothing.config, &target.config).expect(1);
    assert!(refused.stderr.contains("no store in"), "{}", refused.stderr);
    assert!(!nothing.data().exists() && !target.data().exists());
    copy(Path::new("/no/such/file"), &target.config).expect(2);

    let mut damaged = lived(&upstream, KINDS[0]).gateway;
    assert!(damaged.stop().success());
    let mark = damaged.data().join("store").join("doorward");
    fs::remove_file(mark).unwrap();
    let refused = copy(&damaged.config, &target.config).expect(1);
    assert!(refused.stderr.contains("the source can't be opened"), "{}", refused.stderr);
    assert!(!target.data().join("store").exists());
}

#[test]
fn a_target_that_does_not_accept_the_tokens_is_told_of() {
    let upstream = Upstream::plain();
    let mut source = lived(&upstream, KINDS[0]).gateway;
    assert!(source.stop().success());
    let other = empty(&upstream, KINDS[0]).set("token.issuer", "\"elsewhere\"").prepare();
    let copied = copy(&source.config, &other.config).expect(0);
    assert!(copied.stderr.contains("does not accept the source's tokens"), "{}", copied.stderr);
    let same = empty(&upstream, KINDS[0]).prepare();
    let copied = copy(&source.config, &same.config).expect(0);
    assert!(!copied.stderr.contains("tokens"), "{}", copied.stderr);
}
