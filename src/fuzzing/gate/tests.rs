//! The play itself: that people are let in, and that the checks see what they are there to see.

use super::*;

/// What the backends saw of a play, and the answers' status codes.
fn played(text: &str) -> (Vec<Seen>, Vec<String>) {
    RUNTIME.with(|runtime| {
        LocalSet::new().block_on(runtime, async {
            let folder = Folder::new();
            let mut world = World::new(&folder).await;
            let (mut all, mut statuses) = (Vec::new(), Vec::new());
            for step in script::read(text.as_bytes()) {
                match step {
                    Step::Peer(_) => {}
                    Step::Event(event) => world.happen(&event).await,
                    Step::Request(request) => {
                        let bytes = request.written(world.sent.len(), &world.people);
                        let mut connection = world.connect(None);
                        connection.bytes.extend_from_slice(&bytes);
                        let tokens = world.people.tokens_in(&bytes);
                        world.sent.push(Sent { peer: None, bytes: bytes.clone() });
                        let answer = connection.ask(&bytes, &world.seen).await;
                        statuses.push(String::from_utf8_lossy(answer.get(9..12).unwrap_or_default()).into_owned());
                        let seen: Vec<Seen> = world.seen.borrow_mut().drain(..).collect();
                        world.seen.borrow_mut().extend(seen.iter().map(Seen::clone));
                        world.check(&connection, &answer, request.is_logout(), &tokens);
                        all.extend(seen);
                        world.check_tasks().await;
                    }
                }
            }
            (all, statuses)
        })
    })
}

#[test]
fn people_are_let_in_where_they_may_and_nowhere_else() {
    let (seen, statuses) = played(
        "GET /staff\nCookie: access_token=$3\n\nGET /staff\nCookie: access_token=$4\n\nGET /staff/kim\nAuthorization: Bearer $3\n\n\
         GET /any\n\nPOST /any\nCookie: access_token=$4\n.body\n\nGET /api/x\nCookie: access_token=$9\n\n\
         GET /maybe\nCookie: access_token=$0\n\nGET /closed\nCookie: access_token=$3\n\nGET /\nHost: admin.test\n\n\
         GET /any\nCookie: access_token=$8\n\nGET /any\nCookie: access_token=$2\n\nGET /any\nCookie: access_token=$6\n\n\
         GET /public/../staff\nCookie: access_token=$3",
    );
    let expected =
        ["200", "403", "200", "401", "200", "200", "200", "403", "401", "401", "401", "200", "400"].map(String::from);
    assert_eq!(statuses, expected);
    let paths: Vec<&str> = seen.iter().map(|seen| seen.target.as_str()).collect();
    assert_eq!(paths, ["/staff", "/staff/kim", "/any", "/x", "/maybe", "/any"]);
}

#[test]
fn what_is_over_is_over_and_what_changed_counts() {
    // Each change of groups renews the cookie: $a and $c; each login gives another token: $c and $d.
    let (_, statuses) = played(
        "GET /staff\nCookie: access_token=$3\n\n#g00\nGET /staff\nCookie: access_token=$3\n\n#g01\nGET /staff\nCookie: access_token=$3\n\n\
         #r3\nGET /staff\nCookie: access_token=$3\n\n#i0\nGET /staff\nCookie: access_token=$c\n\n#d0\nGET /staff\nCookie: access_token=$c\n\n\
         #e0\n#i0\nGET /any\nCookie: access_token=$d\n\n#t6\n#t0\nGET /any\nCookie: access_token=$d\n\n\
         POST /logout\nCookie: access_token=$d\n\nGET /any\nCookie: access_token=$d",
    );
    assert_eq!(statuses, ["200", "403", "200", "401", "200", "401", "200", "200", "204", "401"].map(String::from));
}

#[test]
fn a_socket_stays_open_until_its_session_is_ended() {
    let socket = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13";
    let steps = script::read(format!("GET /any\nCookie: access_token=$3\n{socket}\n\n#g01\n#r4\n#r3").as_bytes());
    RUNTIME.with(|runtime| {
        LocalSet::new().block_on(runtime, async {
            let folder = Folder::new();
            let mut world = World::new(&folder).await;
            let mut open = Vec::new();
            for step in steps {
                match step {
                    Step::Request(request) => {
                        let bytes = request.written(0, &world.people);
                        let mut connection = world.connect(None);
                        let answer = connection.ask(&bytes, &world.seen).await;
                        assert!(answer.starts_with(b"HTTP/1.1 101 ") && request.demands_a_person());
                        world.tunnels.push(Tunnel { socket: connection.socket, token: 3 });
                    }
                    Step::Event(event) => {
                        world.happen(&event).await;
                        open.push(world.tunnels.len());
                    }
                    Step::Peer(_) => {}
                }
            }
            assert_eq!(open, [1, 1, 0]);
        });
    });
}

#[test]
fn a_renewal_goes_out_with_a_refusal_as_well() {
    let (_, statuses) = played(
        "#g02\nGET /staff\nCookie: access_token=$3\n\nGET /any\nCookie: access_token=$a\n\nGET /api\nCookie: access_token=$a",
    );
    assert_eq!(statuses, ["403", "200", "200"].map(String::from));
}

#[test]
#[should_panic(expected = "may not do that")]
fn a_request_that_should_not_have_come_is_noticed() {
    check_one("/staff", &[("x-forwarded-user", "lee"), ("x-forwarded-groups", "ops")], 4);
}

#[test]
#[should_panic(expected = "nobody may do that")]
fn a_request_of_nobody_is_noticed() {
    check_one("/any", &[], 4);
}

#[test]
#[should_panic(expected = "no right to that name")]
fn a_name_without_a_token_is_noticed() {
    check_one("/staff", &[("x-forwarded-user", "kim"), ("x-forwarded-groups", "staff")], 0);
}

#[test]
#[should_panic(expected = "is not ours")]
fn a_header_of_the_clients_is_noticed() {
    check_one("/", &[("x_forwarded.user", "root")], 4);
}

#[test]
#[should_panic(expected = "a way around")]
fn a_way_around_a_route_is_noticed() {
    check_one("/x/..%2fstaff", &[], 4);
}

/// Puts a request before the checks as if the backend had seen it while that token was sent.
fn check_one(target: &str, identity: &[(&str, &str)], token: usize) {
    RUNTIME.with(|runtime| {
        LocalSet::new().block_on(runtime, async {
            let folder = Folder::new();
            let world = World::new(&folder).await;
            let mut connection = world.connect(None);
            connection.bytes = world.people.tokens[token].text.clone().into_bytes();
            let way = [("host", "gw.test"), ("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")];
            let more = [("x-forwarded-proto", "http"), ("x-forwarded-host", "gw.test"), ("x-request-id", "1")];
            let named = |identity: &[(&str, &str)]| -> Vec<(&'static str, String)> {
                let user = identity.iter().find(|(name, _)| *name == "x-forwarded-user");
                user.map(|(_, name)| vec![("x-forwarded-email", format!("{name}@example.com"))]).unwrap_or_default()
            };
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
            let mut headers: Vec<_> = way.iter().chain(&more).chain(identity).map(own).collect();
            headers.extend(named(identity).into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())));
            let seen = Seen { upstream: "app", method: Method::GET, target: target.to_owned(), headers };
            world.check_request(&connection, &seen);
        });
    });
}
