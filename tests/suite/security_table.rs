//! The written promises of SECURITY.md and docs/security, held against the source: a test that is named there exists, a
//! fault that is planted there fits the code, and no secret is compared or shown in passing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of `src` and `tests`, by its path below the project's folder.
pub(crate) fn sources() -> BTreeMap<String, String> {
    fn read(folder: &Path, below: &str, sources: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{below}/{name}");
            if entry.file_type().unwrap().is_dir() {
                read(&entry.path(), &path, sources);
            } else if path.ends_with(".rs") {
                sources.insert(path, fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    for folder in ["src", "tests"] {
        read(&root().join(folder), folder, &mut found);
    }
    assert!(found.len() > 80, "the sources were not found: {}", found.len());
    found
}

/// The source before the unit tests at its end. The declaration of a file of tests, which may stand anywhere, ends nothing.
pub(crate) fn without_tests(source: &str) -> &str {
    let starts = ["mod tests {", "pub(crate) mod tests {"];
    let ends = starts.iter().filter_map(|start| source.find(&format!("\n#[cfg(test)]\n{start}")));
    &source[..ends.min().unwrap_or(source.len())]
}

/// `suite::check::a_name` or `lib::auth::token::a_name` for every test there is.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, source) in sources() {
        let Some(module) = module_of(&path) else { continue };
        let lines: Vec<&str> = source.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let rest = line.strip_prefix("async ").unwrap_or(line);
            let Some(name) = rest.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next()) else { continue };
            let is_test = lines[..at]
                .iter()
                .rev()
                .take_while(|line| line.starts_with("#[") || line.starts_with("///") || line.ends_with(")]"))
                .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
            if is_test {
                found.insert(format!("{module}::{name}"));
            }
        }
    }
    assert!(found.len() > 400, "the tests were not found: {}", found.len());
    found
}

/// Tests that stand in a file of their own count for the file that takes them in.
fn module_of(path: &str) -> Option<String> {
    let (start, rest) = match path.split_once('/')? {
        ("src", rest) => ("lib", rest),
        ("tests", rest) => ("suite", rest.strip_prefix("suite/")?),
        _ => return None,
    };
    let rest = rest.strip_suffix(".rs")?;
    let rest = ["/mod", "/tests", "_tests"].iter().find_map(|end| rest.strip_suffix(end)).unwrap_or(rest);
    Some(format!("{start}::{}", rest.replace('/', "::")))
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The names of tests in a text, by their form: a whole path; the file of a test and the beginning of its name, also as
/// `room/file::name` or with what was left out shown as `…`; or words that are too many for anything else.
fn named(text: &str) -> Vec<String> {
    let is_plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let files = suite_files();
    let is_name = |word: &str| {
        let (first, last) = (word.split("::").next().unwrap_or_default(), word.rsplit("::").next().unwrap_or_default());
        let in_a_file = word.contains("::") && (first.contains('/') || files.iter().any(|file| file == first));
        let is_path = word.starts_with("suite::") || word.starts_with("lib::");
        word.split("::").flat_map(|part| part.split('/')).all(is_plain)
            && (is_path || in_a_file || last.matches('_').count() >= 4)
    };
    quoted(text)
        .into_iter()
        .flat_map(alternatives)
        .map(|word| word.trim_matches('…').to_owned())
        .filter(|word| is_name(word))
        .collect()
}

/// `a_{b,c}` is `a_b` and `a_c`.
fn alternatives(word: &str) -> Vec<String> {
    match word.split_once('{').and_then(|(start, rest)| Some((start, rest.split_once('}')?))) {
        Some((start, (middle, end))) => middle.split(',').map(|choice| format!("{start}{choice}{end}")).collect(),
        None => vec![word.to_owned()],
    }
}

/// The files of `tests/suite`.
fn suite_files() -> Vec<String> {
    let names = fs::read_dir(root().join("tests/suite")).unwrap();
    names.filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".rs").map(str::to_owned)).collect()
}

/// Whether there is such a test: under its whole path, or beginning so where the path is cut short.
fn exists(tests: &BTreeSet<String>, name: &str) -> bool {
    if name.starts_with("suite::") || name.starts_with("lib::") {
        return tests.contains(name);
    }
    let part = format!("::{}", name.replace('/', "::"));
    tests.iter().any(|test| test.contains(&part))
}

fn documents() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    found.insert(String::from("SECURITY.md"), fs::read_to_string(root().join("SECURITY.md")).unwrap());
    for entry in fs::read_dir(root().join("docs/security")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let name = format!("docs/security/{}", path.file_name().unwrap().to_str().unwrap());
            found.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
    assert!(found.len() >= 5, "{:?}", found.keys());
    found
}

#[test]
fn every_test_that_a_security_document_names_exists() {
    let tests = tests();
    let mut count = 0;
    let mut missing = Vec::new();
    for (document, text) in documents() {
        for name in named(&text) {
            count += 1;
            if !exists(&tests, &name) {
                missing.push(format!("{document}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
    assert!(count > 200, "only {count} tests are named");
}

#[test]
fn every_row_of_a_security_table_has_a_test_or_says_why_not() {
    // The last column of a table that promises tests: a test, or in words that nothing holds it yet or needs to.
    let mut bad = Vec::new();
    let mut rows = 0;
    for (document, text) in documents() {
        let mut promises = false;
        for line in text.lines() {
            if !line.starts_with('|') {
                promises = false;
                continue;
            }
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let last = cells.last().copied().unwrap_or_default();
            if last.eq_ignore_ascii_case("test") || last.eq_ignore_ascii_case("held by") {
                promises = true;
            } else if promises && !line.starts_with("|-") && !line.starts_with("| -") {
                rows += 1;
                let excused = ["not yet", "gap", "does not apply", "by design", "the same"]
                    .iter()
                    .any(|word| last.starts_with(word));
                // "B 43": the row of that number in the table of family B. Fuzzing has its own tests of its targets.
                let words: Vec<&str> = last.split_whitespace().collect();
                let elsewhere = words.windows(2).any(|pair| {
                    pair[0].len() == 1
                        && pair[0].starts_with(|sign: char| sign.is_ascii_uppercase())
                        && pair[1].starts_with(|sign: char| sign.is_ascii_digit())
                });
                if named(last).is_empty() && !excused && !elsewhere && !last.contains("`fuzz/") {
                    bad.push(format!("{document}: {line:.120}"));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(rows > 100, "only {rows} rows");
}

#[test]
fn every_planted_fault_fits_the_code_in_one_place() {
    let text = fs::read_to_string(root().join("tests/planted-faults/faults.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let faults = table["fault"].as_array().unwrap();
    let mut names = BTreeSet::new();
    let mut bad = Vec::new();
    for fault in faults {
        let part = |key: &str| fault[key].as_str().unwrap_or_else(|| panic!("{fault}: {key}"));
        assert!(names.insert(part("name")), "{} is there twice", part("name"));
        assert!(part("put").contains("PLANTED"), "{} does not say when", part("name"));
        assert!(!part("rule").is_empty() && !fault["tests"].as_array().unwrap().is_empty());
        let source = fs::read_to_string(root().join(part("file"))).unwrap_or_default();
        let count = without_tests(&source).matches(part("find")).count();
        if count != 1 {
            bad.push(format!("{}: {} places in {}", part("name"), count, part("file")));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(names.len() >= 40, "only {} faults", names.len());
}

#[test]
fn no_secret_is_compared_or_formatted_where_it_is_exposed() {
    // `Secret` has neither `==` nor anything that prints it. What it lends out must not be used so either.
    let suspicious = [
        "==",
        "!=",
        "format!",
        "println!",
        "write!",
        "{:?}",
        "tracing::",
        "assert",
        "to_string()",
        ".eq(",
        "starts_with(SECRET",
    ];
    let mut found = Vec::new();
    let mut looked_at = 0;
    for (path, source) in sources() {
        if !path.starts_with("src/")
            || path.ends_with("tests.rs")
            || path.ends_with("testing.rs")
            || path.ends_with("conformance.rs")
        {
            continue;
        }
        for (number, line) in without_tests(&source).lines().enumerate() {
            if line.contains(".expose()") {
                looked_at += 1;
                if suspicious.iter().any(|sign| line.contains(sign)) {
                    found.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    let known = [
        // A password that was made up just now, shown once to the person who asked for it.
        "output.line(&format!(\"password: {}\", password.expose()))",
        "output.note(&format!(\"  Password   {}   (shown only this once)\", password.expose()));",
        // What is compared there is no secret: the kind of a key, of a body, the name of a field.
        "if !is_pem(bytes.expose()) || pem_algorithm(bytes.expose()) != Ok(algorithm) {",
        "current.expose().is_empty() || new.expose().is_empty() || (kind == Kind::Form",
        "find(|(field, _)| *field == name).map(|(_, value)| value.expose().as_str())",
    ];
    found.retain(|line| !known.iter().any(|reason| line.contains(reason)));
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(looked_at > 20, "only {looked_at} places expose a secret: was the name changed?");
}

#[test]
fn every_exception_of_the_supply_chain_has_its_reason_and_unsafe_code_is_forbidden() {
    let deny: toml::Table = fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    for skip in deny["bans"]["skip"].as_array().unwrap() {
        assert!(skip["reason"].as_str().is_some_and(|reason| reason.len() > 8), "{skip}");
        // A version is named, so that the next one is looked at anew.
        assert!(skip["crate"].as_str().unwrap().contains('@'), "{skip}");
    }
    for ignored in deny["advisories"].get("ignore").and_then(toml::Value::as_array).into_iter().flatten() {
        assert!(
            ignored.get("reason").and_then(toml::Value::as_str).is_some_and(|reason| reason.len() > 20),
            "{ignored}"
        );
    }
    for (key, value) in [("multiple-versions", "deny"), ("wildcards", "deny")] {
        assert_eq!(deny["bans"][key].as_str(), Some(value));
    }
    let cargo: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    // Forbidden in the library; the program beside it has one exception, the name of a symbol.
    assert_eq!(cargo["lints"]["rust"]["unsafe_code"].as_str(), Some("deny"));
    let source = |name: &str| fs::read_to_string(root().join("src").join(name)).unwrap();
    assert!(source("lib.rs").contains("\n#![forbid(unsafe_code)]\n"));
    assert_eq!(source("main.rs").matches("expect(unsafe_code").count(), 1);
    // The oldest versions without a known flaw of those that have had one, and no RSA at all (RUSTSEC-2023-0071).
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let version =
        |text: &str| -> Vec<u64> { text.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect() };
    let floors = [
        ("hyper", "1.12"),
        ("bcrypt", "0.19.2"),
        ("bytes", "1.11.1"),
        ("h2", "0.4.16"),
        ("tokio-postgres", "0.7.18"),
        ("rustls", "0.23.18"),
        ("crossbeam-epoch", "0.9.20"),
        ("rustls-webpki", "0.103.13"),
        ("time", "0.3.47"),
    ];
    let mut seen = 0;
    for package in lock["package"].as_array().unwrap() {
        let (name, found) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        assert_ne!(name, "rsa", "its private operations leak their time");
        if let Some((_, floor)) = floors.iter().find(|(floored, _)| *floored == name) {
            seen += 1;
            assert!(version(found) >= version(floor), "{name} {found} is older than {floor}");
        }
    }
    assert!(seen >= 3, "{seen}");
}

#[test]
fn the_check_sees_a_missing_test_and_a_row_without_one() {
    assert_eq!(
        named("`suite::check::a_test`, `lib::x`, `Lib::y`, `a == b`, `lib::auth::token::b`"),
        ["suite::check::a_test", "lib::x", "lib::auth::token::b"]
    );
    assert_eq!(module_of("src/message/return_to/tests.rs").as_deref(), Some("lib::message::return_to"));
    assert_eq!(module_of("src/portal/pages_tests.rs").as_deref(), Some("lib::portal::pages"));
    assert_eq!(module_of("src/auth/mod.rs").as_deref(), Some("lib::auth"));
    assert_eq!(module_of("tests/suite/check.rs").as_deref(), Some("suite::check"));
    assert_eq!(module_of("tests/support/mod.rs"), None);
    for (name, there) in [
        ("suite::check::a_test", false),
        ("lib::secret::a_secret_does_not_show_itself", true),
        ("suite::secret::a_secret_does_not_show_itself", false),
        ("secret::a_secret_does_not_show_itself", true),
        ("a_secret_does_not_show_itself", true),
        ("a_secret_does_not_show_anything", false),
        ("check::a_token_with_one", true),
        ("check::a_token_with_two", false),
        ("store/record::names_have", true),
        ("store/record::names_lack", false),
    ] {
        assert_eq!((named(&format!("`{name}`")), exists(&tests(), name)), (vec![name.to_owned()], there));
    }
    assert_eq!(named("`check::check_{says,does}…`"), ["check::check_says", "check::check_does"]);
    assert_eq!(named("`policy::decide`, `upstream/mod.rs::frame`, `message/path`"), Vec::<String>::new());
    assert!(named("`max_header_bytes`, `sec-fetch-site`, `X_Forwarded_User_Or_Other`").is_empty());
}
