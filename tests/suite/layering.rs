//! Who may import whom: the table of ARCHITECTURE.md, held against the source.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Each room and the rooms that it may use, beside itself.
const TABLE: &[(&str, &[&str])] = &[
    ("address", &[]),
    ("clock", &[]),
    ("secret", &[]),
    ("tcp", &[]),
    ("config", &["secret"]),
    ("message", &["address", "config", "policy"]),
    ("policy", &["config"]),
    ("router", &["config", "message", "policy"]),
    ("telemetry", &["address", "clock", "config", "policy"]),
    ("store", &["clock", "config", "secret"]),
    ("feed", &["clock", "store"]),
    ("accounts", &["clock", "config", "secret", "store", "policy", "telemetry"]),
    ("auth", &["clock", "config", "secret", "store", "policy", "message", "telemetry"]),
    ("context", &["clock", "config", "message", "policy", "telemetry"]),
    ("upstream", &["context", "clock", "config", "message", "policy", "tcp", "telemetry"]),
    (
        "portal",
        &[
            "context",
            "accounts",
            "auth",
            "message",
            "policy",
            "router",
            "feed",
            "config",
            "clock",
            "secret",
            "store",
            "telemetry",
        ],
    ),
    ("central", &["auth", "clock", "config", "feed", "secret", "store", "telemetry", "upstream"]),
    (
        "gate",
        &[
            "context",
            "feed",
            "message",
            "router",
            "policy",
            "auth",
            "portal",
            "upstream",
            "telemetry",
            "clock",
            "config",
        ],
    ),
    ("server", &["gate", "accounts", "auth", "message", "config", "clock", "tcp", "telemetry"]),
    ("admin", &["gate", "accounts", "auth", "message", "config", "clock", "secret", "store", "telemetry"]),
];

/// The rooms at the top: they may use everything below them.
const TOP: &[&str] = &["app", "cli", "fuzzing", "lib", "main", "measure"];

/// The source without comments, strings and the unit tests at its end.
fn code(source: &str) -> String {
    let source = source.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut code = String::new();
    for line in source.lines() {
        let mut in_string = false;
        let mut characters = line.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if in_string => {
                    characters.next();
                }
                '"' => in_string = !in_string,
                '/' if !in_string && characters.peek() == Some(&'/') => break,
                other if !in_string => code.push(other),
                _ => {}
            }
        }
        code.push('\n');
    }
    code
}

/// The rooms that a piece of source uses. `depth` is how many modules it is below the crate's root.
fn imports(source: &str, depth: usize) -> Vec<String> {
    let code = code(source);
    let mut starts: Vec<usize> = code
        .match_indices("crate::")
        .filter(|(at, _)| !code[..*at].ends_with('$'))
        .map(|(at, found)| at + found.len())
        .collect();
    let climb = "super::".repeat(depth);
    if depth > 0 {
        let preceded = |at: usize| code[..at].ends_with("super::");
        starts.extend(code.match_indices(&climb).filter(|(at, _)| !preceded(*at)).map(|(at, found)| at + found.len()));
    }
    let mut names = Vec::new();
    for start in starts {
        let rest = code[start..].trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            // The first word of every member at the outermost level.
            let mut level = 1;
            let mut member = String::new();
            for character in group.chars() {
                match character {
                    '{' => level += 1,
                    '}' => level -= 1,
                    _ => {}
                }
                if level == 0 || (level == 1 && character == ',') {
                    names.push(first_word(&member));
                    member.clear();
                    if level == 0 {
                        break;
                    }
                } else {
                    member.push(character);
                }
            }
        } else {
            names.push(first_word(rest));
        }
    }
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

fn first_word(text: &str) -> String {
    text.trim_start().chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

/// What is wrong with a tree of sources, given as path below `src` and text.
fn violations(sources: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, source) in sources {
        let segments: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
        let room = segments[0];
        // Tests that a file takes in by `#[path]` stand one module deeper than their place tells.
        if TOP.contains(&room) || path.ends_with("_tests.rs") {
            continue;
        }
        let Some((_, allowed)) = TABLE.iter().find(|(name, _)| *name == room) else {
            found.push(format!("{path}: the room {room} is not in the table"));
            continue;
        };
        let depth = if segments.last() == Some(&"mod") { segments.len() - 1 } else { segments.len() };
        for name in imports(source, depth) {
            if name != room && !allowed.contains(&name.as_str()) {
                found.push(format!("{path}: {room} may not use {name}"));
            }
        }
    }
    found
}

fn read_tree(folder: &Path, below: &str, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_tree(&entry.path(), &format!("{name}/"), sources);
        } else if Path::new(&name).extension().is_some_and(|extension| extension == "rs") {
            sources.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

#[test]
fn every_room_imports_only_what_the_table_allows() {
    let mut sources = BTreeMap::new();
    read_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    assert!(sources.len() > 30, "the sources were not found: {}", sources.len());
    let found = violations(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_check_finds_an_import_upwards_in_every_form() {
    for (path, line) in [
        ("policy/mod.rs", "use crate::gate::Live;"),
        ("policy/mod.rs", "use crate::{config::Access, store};"),
        ("policy/mod.rs", "fn f() { crate::portal::pages(); }"),
        ("policy/rules/deep.rs", "use super::super::super::auth::Verified;"),
        ("clock.rs", "use super::config;"),
        ("auth/token.rs", "pub use crate::accounts::Accounts as A;"),
        ("novelty/mod.rs", "fn f() {}"),
    ] {
        let planted = BTreeMap::from([(path.to_owned(), line.to_owned())]);
        assert_eq!(violations(&planted).len(), 1, "{path}: {line}");
    }
    for (path, line) in [
        ("policy/mod.rs", "use crate::{config::{Access, Route}, policy::x};"),
        ("policy/mod.rs", "// use crate::gate::Live;"),
        ("policy/mod.rs", "const TEXT: &str = \"crate::gate\";"),
        ("auth/token.rs", "use super::keys::KeyRing;"),
        ("policy/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::gate; }"),
        ("app.rs", "use crate::gate;"),
    ] {
        let fine = BTreeMap::from([(path.to_owned(), line.to_owned())]);
        assert_eq!(violations(&fine), Vec::<String>::new(), "{path}: {line}");
    }
}

#[test]
fn the_table_has_no_circle() {
    // Every room stands below those that use it: taking out the rooms that need nothing more must empty the table.
    let mut left: BTreeMap<&str, &[&str]> = TABLE.iter().copied().collect();
    while !left.is_empty() {
        let free: Vec<&str> = left
            .iter()
            .filter(|(_, uses)| uses.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| *name)
            .collect();
        assert!(!free.is_empty(), "a circle among {:?}", left.keys());
        for name in free {
            left.remove(name);
        }
    }
}
