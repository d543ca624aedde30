//! Paths against web servers that read them differently: nginx, Apache httpd, Python's `http.server`, PHP's built-in
//! server and Node. No spelling fetches a file without the group; with one route, every spelling arrives as it was sent.
//!
//! THREATS 5.C 50 to 62, the path vectors of sections 3 and 4, and every advisory about paths in sections 1 and 2.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use crate::support::file_server::{SERVERS, open_folder, serve};
use crate::support::peer::Peer;
use crate::support::{Builder, Connection, Request, Response, Upstream, cases};

const OF_ADMINS: &str = "for admins only 7f3a";
const OF_MEMBERS: &str = "for members only 91bc";

/// The folder that every server serves.
fn lay_out(files: &Path) {
    for (name, content) in [
        ("admin/secret.txt", OF_ADMINS),
        ("admin/index.html", OF_ADMINS),
        ("private.txt", OF_MEMBERS),
        ("public/open.txt", "for everybody"),
        ("public/index.html", "for everybody"),
    ] {
        write_file(&files.join(name), content);
    }
}

fn write_file(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

/// A generator whose numbers are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % u64::try_from(sides).unwrap()).unwrap()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

/// The spellings that were written about, each once for the closed file. `{host}` stands for the gateway's own name.
const WRITTEN_ABOUT: &[&str] = &[
    "/public/../admin/secret.txt",
    "/public/./../admin/secret.txt",
    "/public/%2e%2e/admin/secret.txt",
    "/public/%2E%2E/admin/secret.txt",
    "/public/.%2e/admin/secret.txt",
    "/public/%2e./admin/secret.txt",
    "/public/%252e%252e/admin/secret.txt",
    "/public/%25%32%65%25%32%65/admin/secret.txt",
    "/public/..%2fadmin/secret.txt",
    "/public/..%252fadmin/secret.txt",
    "/public/..%5cadmin/secret.txt",
    "/public/..%255cadmin/secret.txt",
    "/public/..\\admin\\secret.txt",
    "/public\\..\\admin/secret.txt",
    "/public/..;/admin/secret.txt",
    "/public/..;x=1/admin/secret.txt",
    "/public;/../admin/secret.txt",
    "/public/..%3b/admin/secret.txt",
    "/public/..%00/admin/secret.txt",
    "/public%00/admin/secret.txt",
    "/public%2f..%2fadmin%2fsecret.txt",
    "//admin/secret.txt",
    "///admin///secret.txt",
    "/public//../admin/secret.txt",
    "/public//../../admin/secret.txt",
    "/%2fadmin/secret.txt",
    "/%2f%2fadmin/secret.txt",
    "/.%2fadmin/secret.txt",
    "/ADMIN/secret.txt",
    "/Admin/Secret.TXT",
    "/%61dmin/secret.txt",
    "/%2561dmin/secret.txt",
    "/admin%20/secret.txt",
    "/admin./secret.txt",
    "/admin.../secret.txt",
    "/admin%2e/secret.txt",
    "/admin%09/secret.txt",
    "/admin%2fsecret.txt",
    "/admin%252fsecret.txt",
    "/admin%5csecret.txt",
    "/admin\\secret.txt",
    "\\admin\\secret.txt",
    "/\\admin/secret.txt",
    "/admin/secret.txt/",
    "/admin/./secret.txt",
    "/admin/secret.txt/.",
    "/admin/x/../secret.txt",
    "/admin/secret.txt%00.css",
    "/admin/secret.txt;.css",
    "/admin;a=b/secret.txt",
    "/admin/;a/secret.txt",
    "/;/admin/secret.txt",
    "/admin/secret.txt%3f.css",
    "/admin/secret.txt%253f.css",
    "/admin/secret.txt?x=/public/",
    "/admin/secret.txt?/../../public/open.txt",
    "/admin/secret.txt#/public/",
    "/admin/secret.txt%23/../../public/open.txt",
    "/public/x%23/../../admin/secret.txt",
    "/public%23/../admin/secret.txt",
    "/public/open.txt#/../../admin/secret.txt",
    "/public/open.txt?/../../admin/secret.txt",
    "/public/%c0%ae%c0%ae/admin/secret.txt",
    "/public/%e0%80%ae%e0%80%ae/admin/secret.txt",
    "/public/..%c0%afadmin/secret.txt",
    "/public/..%c1%9cadmin/secret.txt",
    "/public/%u002e%u002e/admin/secret.txt",
    "/public/%uff0e%uff0e/admin/secret.txt",
    "/public/..%u2215admin/secret.txt",
    "/public/%ef%bc%8e%ef%bc%8e/admin/secret.txt",
    "/public/\u{ff0e}\u{ff0e}/admin/secret.txt",
    "/public/%2/../admin/secret.txt",
    "/public/%zz/../../admin/secret.txt",
    "/public/ ../admin/secret.txt",
    "/public/..%20/admin/secret.txt",
    "/public/..%09/admin/secret.txt",
    "/public/..%0a/admin/secret.txt",
    "/public/..%0d%0a/admin/secret.txt",
    "/public/.%09./admin/secret.txt",
    "/public/.\t./admin/secret.txt",
    "/public/..././admin/secret.txt",
    "/public/.../admin/secret.txt",
    "/public../admin/secret.txt",
    "/public%2e%2e/admin/secret.txt",
    "/publicx/../admin/secret.txt",
    "/public/x/../../admin/secret.txt",
    "/x/../public/../admin/secret.txt",
    "/../admin/secret.txt",
    "/../../../admin/secret.txt",
    "/./public/../admin/secret.txt",
    "/%2e%2e/admin/secret.txt",
    "http://{host}/admin/secret.txt",
    "HTTP://{host}/admin/secret.txt",
    "http://{host}//admin/secret.txt",
    "http://{host}/public/../admin/secret.txt",
    "http://{host}:80/admin/secret.txt",
    "http://other.test/admin/secret.txt",
    "http://other.test@{host}/admin/secret.txt",
    "https://{host}/admin/secret.txt",
    "//{host}/admin/secret.txt",
    "http:/admin/secret.txt",
    "http:///admin/secret.txt",
    "/http://{host}/admin/secret.txt",
    "admin/secret.txt",
    "*",
    "/admin",
    "/admin/",
    "/admin/.",
    "/admin/%2e",
    "/admin//",
    "/admin/index.html",
    "/admin/index.html/x",
    "/admin/nothing/of/the/kind",
    "/public/..",
    "/public/../admin",
    "/public/..%2fadmin",
    "/public/%2e%2e%2fadmin/",
    "/.admin/../admin/",
    "/private.txt",
    "/public/../private.txt",
    "/public/..%2fprivate.txt",
    "/public/%2e%2e%2fprivate.txt",
    "/public/..;/private.txt",
    "/public/..%5cprivate.txt",
    "/public\\..\\private.txt",
    "/publicx/../private.txt",
    "/publicity/../private.txt",
    "/PUBLIC/../private.txt",
    "/public%2f../private.txt",
    "/public;/private.txt/../../private.txt",
    "/private.txt?/public",
    "/private.txt%3f/public",
    "/private.txt%23/public",
];

const STARTS: &[&str] = &[
    "/admin/secret.txt",
    "/admin/",
    "/admin",
    "/admin/index.html",
    "/private.txt",
    "/public/../admin/secret.txt",
    "/public/../admin/",
    "/public/../private.txt",
    "/public/x/../../admin/secret.txt",
    "/other/../admin/secret.txt",
    "//admin/secret.txt",
    "/public/open.txt/../../admin/secret.txt",
];

/// What may come between two segments without changing what some server reads.
const BETWEEN: &[&str] = &[
    "/",
    "//",
    "/./",
    "/.//",
    "/x/../",
    "/%2e/",
    "\\",
    "%5c",
    "%2f",
    "%252f",
    "%255c",
    "/;/",
    ";/",
    ";a=b/",
    "%3b/",
    "/%20/",
    "./",
    "%2e/",
    "%20/",
    "/public/../",
    "/..%2f",
    "/%2e%2e/",
    "/.%2e/",
    "/..\\",
    "/..;/",
    "%c0%af",
    "%e2%88%95",
    "/%c0%ae/",
];

const ENDS: &[&str] = &[
    "",
    "/",
    ".",
    "..",
    "%20",
    "%2e",
    ";",
    ";a",
    "%3b",
    "?",
    "?x=/public/",
    "%3f",
    "%3f/public",
    "%253f",
    "%23",
    "#",
    "#/public",
    "/.",
    "/%2e",
    "//",
    "/..",
    "/../secret.txt",
    "~",
    "%00",
    "%2500",
    "%0a",
    "::$DATA",
    ".css",
    "/.css",
    ";.css",
    "%3f.css",
    "\\",
    "%5c",
    "/x/..",
    "%20%20",
    "+",
];

const FRONTS: &[&str] = &[
    "",
    "/",
    "//",
    "/.",
    "/./",
    "/%2e",
    "\\",
    "/\\",
    "/public/..",
    "/public/%2e%2e",
    "/public/..;",
    "/public//..",
    "/public/x/../..",
    "/;",
    "/%2f",
    "%2f",
    "http://{host}",
    "http://{host}/",
    "http://{host}/public/..",
    "/..",
    "/%20",
    "/x/..",
    "/public%2f..",
    "/public/..%2f",
    "/public\\..",
];

/// One more spelling, by some changes on one of the starting ones.
fn mutated(dice: &mut Dice) -> String {
    let mut text = dice.pick(STARTS).to_owned();
    for _ in 0..=dice.roll(3) {
        let slashes: Vec<usize> = text.match_indices('/').map(|(at, _)| at).collect();
        let letters: Vec<usize> = text.char_indices().filter(|(_, sign)| sign.is_ascii()).map(|(at, _)| at).collect();
        if letters.is_empty() {
            return text;
        }
        let at = dice.pick(&letters);
        let byte = text.as_bytes()[at];
        let one = at..=at;
        match dice.roll(12) {
            0 => text.replace_range(one, &format!("%{byte:02x}")),
            1 => text.replace_range(one, &format!("%{byte:02X}")),
            2 => text.replace_range(one, &format!("%25{byte:02x}")),
            3 => text.replace_range(
                one,
                &format!("%25%{:02x}%{:02x}", format!("{byte:02x}").as_bytes()[0], format!("{byte:02x}").as_bytes()[1]),
            ),
            4 => text.replace_range(one, &format!("%2525{byte:02x}")),
            5 => text.replace_range(one, &format!("%u00{byte:02x}")),
            6 => {
                let swapped =
                    if byte.is_ascii_lowercase() { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
                text.replace_range(one, &char::from(swapped).to_string());
            }
            7 | 8 if !slashes.is_empty() => {
                let slash = dice.pick(&slashes);
                text.replace_range(slash..=slash, dice.pick(BETWEEN));
            }
            9 => text.push_str(dice.pick(ENDS)),
            10 => text.insert_str(0, dice.pick(FRONTS)),
            _ if matches!(byte, b'.' | b'/') => {
                let overlong = if byte == b'.' {
                    ["%c0%ae", "%e0%80%ae", "%ef%bc%8e"]
                } else {
                    ["%c0%af", "%e0%80%af", "%ef%bc%8f"]
                };
                text.replace_range(one, dice.pick(&overlong));
            }
            _ => text.insert_str(at, dice.pick(&["%2e", ".", ";", "%3b", "%20", "/", "./", "%09", "\\"])),
        }
    }
    text
}

/// All targets to be tried, each once, the same in every run.
fn spellings(count: usize) -> Vec<String> {
    let mut dice = Dice(0x1d07_0a4d);
    let mut all: Vec<String> = WRITTEN_ABOUT.iter().map(|target| (*target).to_owned()).collect();
    let mut met: BTreeSet<String> = all.iter().cloned().collect();
    while all.len() < count {
        let target = mutated(&mut dice);
        // White space would end the target itself.
        if !target.contains([' ', '\t']) && met.insert(target.clone()) {
            all.push(target);
        }
    }
    all
}

/// Asks on a connection that is used as long as it lasts.
struct Asking {
    address: SocketAddr,
    connection: Option<Connection>,
}

impl Asking {
    fn at(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    fn ask(&mut self, target: &str, host: &str, token: Option<&str>) -> Option<Response> {
        let cookie = token.map_or_else(String::new, |token| format!("Cookie: access_token={token}\r\n"));
        let head = format!("GET {} HTTP/1.1\r\nHost: {host}\r\n{cookie}\r\n", target.replace("{host}", host));
        // A used connection may be at its end.
        for _ in 0..2 {
            let mut connection =
                self.connection.take().unwrap_or_else(|| Connection::to(self.address).with_any_field());
            connection.reader.taken.clear();
            let sent = std::io::Write::write_all(connection.stream(), head.as_bytes());
            if sent.is_ok()
                && let Ok(answer) = connection.try_read("GET", target)
            {
                let over = answer.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"));
                self.connection = Some(connection).filter(|_| !over);
                return Some(answer);
            }
        }
        None
    }
}

fn is_ours(answer: &Response) -> bool {
    answer.field("content-type").as_deref() == Some("application/problem+json")
}

/// Whether an answer holds what the group alone may see.
fn gives_away(answer: &Response, of_members_too: bool) -> bool {
    let text = answer.text();
    text.contains(OF_ADMINS) || (of_members_too && text.contains(OF_MEMBERS))
}

/// The three ways to guard the same files: all open but one folder, all closed but one, and behind a prefix.
const MANNERS: &[&str] = &["but-admin", "but-public", "stripped"];

fn guarded(name: &str, url: &str, mut builder: Builder) -> Builder {
    builder = builder.upstream(name, &[url]);
    let admins = "groups = [\"admins\"]";
    for (manner, path, more) in [
        ("but-admin", "/", "access = \"public\""),
        ("but-admin", "/admin", admins),
        ("but-public", "/", admins),
        ("but-public", "/public", "access = \"public\""),
        ("stripped", "/app", "access = \"public\"\nstrip_prefix = \"/app\""),
        ("stripped", "/app/admin", "groups = [\"admins\"]\nstrip_prefix = \"/app\""),
    ] {
        builder = builder
            .route(&format!("host = \"{manner}.{name}.test\"\npath = \"{path}\"\nupstream = \"{name}\"\n{more}"));
    }
    builder
}

#[test]
fn paths_50_to_58_no_spelling_fetches_the_file_without_the_group() {
    const COUNT: usize = 2_500;
    let files = open_folder();
    lay_out(files.path());
    let mut builder = Builder::new().user("kim", &["admins"]).user("lee", &["staff"]);
    let mut servers: BTreeMap<&str, Vec<Peer>> = BTreeMap::new();
    for name in SERVERS {
        let peers = serve(name, files.path(), builder.folder());
        builder = guarded(name, &peers[0].url(), builder);
        servers.insert(name, peers);
    }
    let gateway = builder.start();
    let (kim, lee) = (gateway.login("kim"), gateway.login("lee"));
    let targets = spellings(COUNT);
    let of_manner = |manner: &str, target: &str| match manner {
        "stripped" if target.starts_with("http") => target.replacen("{host}", "{host}/app", 1),
        "stripped" => format!("/app{target}"),
        _ => target.to_owned(),
    };

    // The routes of every server are the same, so one tells which spellings are passed on at all.
    let mut passed: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut asking = Asking::at(gateway.address);
    for manner in MANNERS {
        let host = format!("{manner}.{}.test", SERVERS[0]);
        for target in &targets {
            let target = of_manner(manner, target);
            let answer = asking.ask(&target, &host, None).unwrap_or_else(|| panic!("no answer to {target}"));
            assert!(!gives_away(&answer, *manner == "but-public"), "{manner}: {target} fetched it: {}", answer.text());
            if !is_ours(&answer) {
                passed.entry(manner).or_default().push(target);
            }
        }
    }
    for (manner, passed) in &passed {
        println!("{manner}: {} of {COUNT} spellings are passed on", passed.len());
    }
    let work = Mutex::new(SERVERS.to_vec());
    let tried = Mutex::new(COUNT * MANNERS.len());
    let one_server = |name: &str| {
        let direct = SocketAddr::from(([127, 0, 0, 1], servers[name][0].port));
        let mut count = 0;
        // What the spellings are worth: asked directly, this server gives the file for so many of them.
        let mut asking = Asking::at(direct);
        let hits = targets
            .iter()
            .filter(|target| asking.ask(target, "files.test", None).is_some_and(|answer| gives_away(&answer, true)))
            .count();
        println!("{name}: {hits} of {COUNT} spellings fetch a guarded file where nothing is in front");
        assert!(hits >= 40, "{name}: the spellings try nothing");
        let mut asking = Asking::at(gateway.address);
        for manner in MANNERS {
            let host = format!("{manner}.{name}.test");
            let plain = of_manner(manner, "/admin/secret.txt");
            // The control: with the group it comes, without a login or the group it does not.
            assert!(gives_away(&asking.ask(&plain, &host, Some(&kim)).unwrap(), false), "{host}");
            assert_eq!(asking.ask(&plain, &host, None).unwrap().status, 401, "{host}");
            assert_eq!(asking.ask(&plain, &host, Some(&lee)).unwrap().status, 403, "{host}");
            for target in &passed[manner] {
                let token = if count % 2 == 0 { None } else { Some(&*lee) };
                if let Some(answer) = asking.ask(target, &host, token) {
                    assert!(!gives_away(&answer, *manner == "but-public"), "{host}: {target}: {}", answer.text());
                }
                count += 1;
            }
        }
        *tried.lock().unwrap() += count;
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(name) = { work.lock().unwrap().pop() } {
                    one_server(name);
                }
            });
        }
    });
    cases::tried("paths against servers", *tried.lock().unwrap());
}

/// Whether a NUL comes to light when this is decoded up to twice. Written apart from the product's rule.
fn hides_nul(target: &str) -> bool {
    let path = target.split('?').next().unwrap();
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..3 {
        let overlong = bytes.windows(2).any(|pair| pair == [0xc0, 0x80])
            || bytes.windows(3).any(|three| three == [0xe0, 0x80, 0x80]);
        if overlong || bytes.contains(&0) {
            return true;
        }
        bytes = percent_encoding::percent_decode(&bytes).collect();
    }
    path.to_ascii_lowercase().contains("%u0000")
}

#[test]
fn paths_54_with_one_route_every_path_arrives_byte_for_byte() {
    const COUNT: usize = 6_000;
    const PIECES: &[&str] = &[
        "/",
        "/",
        "/",
        "%00",
        "%09",
        "%0d%0a",
        "a",
        "b.css",
        "Admin",
        ".",
        "..",
        "/./",
        "/../",
        "//",
        "\\",
        ";",
        ";jsessionid=1",
        "%20",
        "%2f",
        "%2F",
        "%5c",
        "%2e",
        "%2E%2e",
        "%25",
        "%252e",
        "%25252e",
        "%3f",
        "%23",
        "%3b",
        "%ff",
        "%fe%80",
        "%c3%a9",
        "%C3%A9",
        "%EA%B9%80",
        "%zz",
        "%",
        "%4",
        "100%",
        "~",
        "!",
        "$",
        "&",
        "'",
        "(",
        ")",
        "*",
        "+",
        ",",
        "=",
        ":",
        "@",
        "[",
        "]",
        "{",
        "}",
        "|",
        "^",
        "\"",
        "_",
        "-",
        "%61",
        "%7E",
        "%u0061",
        "%u2215",
        "%c0%af",
        "%ef%bc%8e",
        "é",
        "김",
        "evil.test",
        ":80",
        "@host",
        "http://x/",
        "%2525",
        "...",
        "%20.",
        ". ",
        "index.php/x",
    ];
    const QUERIES: &[&str] = &[
        "",
        "",
        "",
        "?",
        "?a=b",
        "?x=/../admin",
        "?%00",
        "?%0d%0aX:y",
        "?a=%zz&b={}",
        "??",
        "?a?b",
        "?'",
        "?/..//",
        "?é",
    ];
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .start();
    let mut dice = Dice(0x5eed);
    let mut asking = Asking::at(gateway.address);
    let (mut arrived, mut controls) = (0, 0);
    let mut met = BTreeSet::new();
    while arrived < COUNT {
        let mut target = String::from("/");
        let length = 1 + dice.roll(if arrived % 100 == 0 { 1500 } else { 12 });
        for _ in 0..length {
            target.push_str(dice.pick(PIECES));
        }
        target = target.replace(' ', "%20");
        target.push_str(dice.pick(QUERIES));
        if target.len() > 16_000 || !met.insert(target.clone()) {
            continue;
        }
        let before = upstream.count();
        let answer = asking.ask(&target, "app.test", None).unwrap_or_else(|| panic!("no answer to {target}"));
        if hides_nul(&target) {
            assert_eq!((answer.status, upstream.count()), (400, before), "{target}");
            controls += 1;
            continue;
        }
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        let seen = upstream.last();
        assert_eq!(seen.target, target);
        assert_eq!(seen.field("host").as_deref(), Some("app.test"), "{target}");
        arrived += 1;
    }
    println!("{arrived} targets arrived as they were sent, {controls} with a hidden NUL were refused");
    assert!(controls > 10, "no NUL was tried");
    cases::tried("paths byte for byte", arrived + controls);
}

#[test]
fn paths_what_a_server_gives_for_an_odd_name_comes_through_as_well() {
    const NAMES: &[&str] = &[
        "a b.txt",
        "ümlaut.txt",
        "김.txt",
        "100%.txt",
        "%41.txt",
        "%2e%2e",
        "semi;colon.txt",
        "hash#tag.txt",
        "q?mark.txt",
        "plus+sign.txt",
        "at@sign.txt",
        "..dots.txt",
        "trailing.",
        "...",
        "quote'\".txt",
        "a&b=c.txt",
        "back\\slash.txt",
        "UPPER.TXT",
        "~tilde",
        "x:y",
        "comma,.txt",
        "[br].txt",
        "{cb}.txt",
        "a|b",
        "caret^",
        "dollar$",
        "(round)",
        "excl!",
        "star*",
        "trailing ",
        "index.html",
        "deep/er/er.txt",
        "deep;x/p.txt",
        "pct%2fslash",
        "login",
        "check.txt",
    ];
    let files = open_folder();
    for name in NAMES {
        write_file(&files.path().join(name), &format!("the file {name}"));
    }
    let mut builder = Builder::new();
    let mut servers = Vec::new();
    for name in SERVERS.iter().filter(|name| **name != "node-lax") {
        let peers = serve(name, files.path(), builder.folder());
        builder = builder
            .set("portal.prefix", "\"/_auth\"")
            .upstream(name, &[&peers[0].url()])
            .route(&format!("host = \"{name}.test\"\npath = \"/\"\naccess = \"public\"\nupstream = \"{name}\""));
        servers.push((name, peers));
    }
    let gateway = builder.start();
    let hexadecimal = |text: &str, keep: fn(u8) -> bool, upper: bool| -> String {
        text.bytes()
            .map(|byte| match (keep(byte), upper) {
                (true, _) => char::from(byte).to_string(),
                (false, true) => format!("%{byte:02X}"),
                (false, false) => format!("%{byte:02x}"),
            })
            .collect()
    };
    let mut targets = BTreeSet::new();
    for name in NAMES {
        let careful = hexadecimal(name, |byte| byte.is_ascii_alphanumeric() || byte == b'/', true);
        let sparing = hexadecimal(name, |byte| byte.is_ascii_graphic() && !b"%?#<>`".contains(&byte), false);
        let everything = hexadecimal(name, |_| false, false);
        let raw = hexadecimal(name, |byte| byte.is_ascii_graphic() && !b"?#<>`".contains(&byte), true);
        for spelled in [&careful, &sparing, &everything, &raw] {
            for front in ["/", "//", "/./", "/deep/../", "/deep/%2e%2e/"] {
                targets.insert(format!("{front}{spelled}"));
                targets.insert(format!("{front}{spelled}?x=1"));
            }
        }
    }
    let (mut served, mut tried) = (0, 0);
    for (name, peers) in &servers {
        let mut direct = Asking::at(SocketAddr::from(([127, 0, 0, 1], peers[0].port)));
        let mut through = Asking::at(gateway.address);
        let host = format!("{name}.test");
        let mut of_this = 0;
        for target in &targets {
            tried += 1;
            let Some(wanted) = direct.ask(target, &host, None).filter(|answer| answer.status == 200) else { continue };
            let found = through.ask(target, &host, None).unwrap_or_else(|| panic!("{name}: no answer to {target}"));
            assert_eq!((found.status, found.text()), (200, wanted.text()), "{name}: {target}");
            of_this += 1;
        }
        assert!(of_this > 100, "{name} serves {of_this} of {} names", targets.len());
        served += of_this;
    }
    println!("{served} of {tried} odd names are served, and all of these through the gateway");
    cases::tried("odd names", tried);
}

/// No URI holds these bytes (RFC 3986 section 2), and clients send them: they go on as they came, decided as their encoded
/// form is. A blank and a `#` would make another target of it.
#[test]
fn paths_55_bytes_that_no_uri_holds_go_on_as_they_came() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .route("path = \"/admin\"\naccess = \"deny\"")
        .start();
    let sent = |bytes: &[u8]| {
        let mut connection = gateway.connect();
        connection.write(&[b"GET /", bytes, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        connection.read("GET", "raw bytes")
    };
    for byte in [b'<', b'>', b'`', b'"', b'{', b'|', b'^', b'\\', 0xff, 0xc0, 0x80] {
        for target in [[b"a", &[byte][..], b"b"].concat(), [b"a?q=", &[byte][..], b"b"].concat()] {
            sent(&target).expect(200);
            let raw = upstream.last().raw;
            assert!(raw.starts_with(&[b"GET /", &*target, b" HTTP/1.1\r\n"].concat()), "{}", raw.escape_ascii());
        }
        let encoded = format!("/a%{byte:02X}b");
        gateway.get(&encoded).expect(200);
        assert_eq!(upstream.last().target, encoded);
    }
    for byte in [b' ', b'#'] {
        let before = upstream.count();
        sent(&[b"a", &[byte][..], b"b"].concat()).expect(400);
        sent(&[b"a?q=", &[byte][..], b"b"].concat()).expect(400);
        gateway.get(&format!("/a?q=%{byte:02X}b")).expect(200);
        assert_eq!(upstream.count(), before + 1);
    }
    // Raw and encoded lead to the same route.
    for closed in [
        &b"\xef\xbd\x81dmin"[..],
        b"%EF%BD%81dmin",
        b"\xc1\xa1dmin/\"",
        b"%C1\xa1dmin",
        b"<>/..\\admin",
        // Two decodings behind a reading that needs none.
        b"\xc0\xa52561dmin",
    ] {
        let status = sent(closed).status;
        assert!(status == 403 || status == 400, "{status}: {}", closed.escape_ascii());
    }
    for byte in (0..0x20).chain([0x7f]) {
        let before = upstream.count();
        for target in [format!("/a%{byte:02x}b"), format!("/a%25{byte:02x}b"), format!("/a%25{byte:02X}")] {
            gateway.get(&target).expect(if byte == 0 { 400 } else { 200 });
        }
        let before = if byte == 0 { before } else { before + 3 };
        if byte != b'\n' && byte != b'\r' {
            let mut connection = gateway.connect();
            connection.write(&[b"GET /a", &[byte][..], b"b HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
            connection.read("GET", "/a").expect(400);
        }
        assert_eq!(upstream.count(), before, "{byte:#x}");
    }
}

#[test]
fn paths_62_no_spelling_of_a_host_leads_to_a_laxer_route() {
    let upstream = Upstream::plain();
    let gateway = Builder::new()
        .upstream("app", &[&upstream.url])
        .route("path = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .route("host = \"*.example.test\"\npath = \"/\"\naccess = \"public\"\nupstream = \"app\"")
        .route("host = \"app.example.test\"\npath = \"/\"\nupstream = \"app\"")
        .route("host = \"[::1]\"\npath = \"/\"\nupstream = \"app\"")
        .route("host = \"xn--bcher-kva.test\"\npath = \"/\"\nupstream = \"app\"")
        .start();
    let asked = |host: &str| {
        let mut connection = gateway.connect();
        connection.write(format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        connection.read("GET", host).status
    };
    for host in [
        "app.example.test",
        "APP.EXAMPLE.TEST",
        "App.Example.Test.",
        "app.example.test:80",
        "app.example.test:443",
        "app.example.test.:8080",
        "app.example.test:",
        "[::1]",
        "[0:0::0:1]",
        "[::1]:8080",
        "XN--BCHER-KVA.test",
    ] {
        assert_eq!(asked(host), 401, "{host}");
    }
    let before = upstream.count();
    for host in [
        "app.example.test@evil.test",
        "evil.test@app.example.test",
        "app.example.test:80:80",
        "app.example.test,other.test",
        "app%2eexample.test",
        "app.example.test/",
        "app.example.test\\",
        "app.example.test..",
        ".app.example.test",
        "app..example.test",
        "app.example.test#",
        "app.example.test?",
        "app.example.test;",
        "app.example.test:0x50",
        "[::1%25lo]",
        "[::1%lo]",
        "[::ffff:127.0.0.1",
        "::1",
        "b\u{fc}cher.test",
        "app.example.test\u{3002}",
        "*",
        "*.example.test",
    ] {
        assert_eq!(asked(host), 400, "{host}");
    }
    assert_eq!(upstream.count(), before);
    // Forwarding headers take no part.
    for name in [
        "X-Forwarded-Host",
        "X-Host",
        "Forwarded",
        "X-Original-URL",
        "X-Forwarded-Uri",
        "X-Rewrite-URL",
        "X-Forwarded-Prefix",
    ] {
        let request = Request::get("/x").field("Host", "app.example.test");
        gateway.send(&request.field(name, "other.test").field(name, "/public")).expect(401);
    }
    // Nor does who the client says it is.
    for agent in ["GoogleHC/1.0", "kube-probe/1.31", "ELB-HealthChecker/2.0", "Blackbox Exporter/0.25"] {
        let request = Request::get("/x").field("Host", "app.example.test").field("User-Agent", agent);
        gateway.send(&request).expect(401);
        gateway.send(&Request::get("/check").field("User-Agent", agent)).expect(401);
    }
    assert_eq!(asked("other.example.test"), 200);
}
