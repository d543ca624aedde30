//! Every target over its seeds and over mutations of them: the same ones each time, so that what fails fails again.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the input that failed is shown beside the failure")]

use std::fs;
use std::path::{Path, PathBuf};

use super::TARGETS;

/// Mutations of each target's seeds; a few seconds in all. `cargo fuzz` tries millions.
const MUTATIONS: usize = 20_000;

fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{}: no seeds", folder.display());
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

fn target(name: &str) -> super::Target {
    TARGETS.iter().find(|(known, _)| *known == name).unwrap().1
}

/// A xorshift generator: no randomness is wanted, only variety.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    /// One small change: a byte, a piece that goes, a piece of this or another seed that comes.
    fn mutate(&mut self, text: &mut Vec<u8>, others: &[(PathBuf, Vec<u8>)]) {
        let at = self.below(text.len() + 1);
        match self.below(5) {
            0 if at < text.len() => text[at] = u8::try_from(self.below(256)).unwrap(),
            1 if at < text.len() => {
                let end = at + 1 + self.below((text.len() - at).min(16));
                text.drain(at..end.min(text.len()));
            }
            2 => {
                let other = &others[self.below(others.len())].1;
                let start = self.below(other.len());
                let end = (start + 1 + self.below(32)).min(other.len());
                text.splice(at..at, other[start..end].iter().copied());
            }
            3 => {
                let signs = b"%./\\;?# \t\"',=:-_&\n\x00\x7f\xc0\xae0aA{}[]$@";
                text.insert(at, signs[self.below(signs.len())]);
            }
            _ if at < text.len() => text[at] ^= 1 << self.below(8),
            _ => text.push(b'/'),
        }
    }
}

fn run(name: &str, mutations: usize) {
    let (target, seeds) = (target(name), seeds(name));
    for (file, seed) in &seeds {
        println!("{}", file.display());
        target(seed);
    }
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for _ in 0..mutations {
        let mut text = seeds[dice.below(seeds.len())].1.clone();
        for _ in 0..=dice.below(6) {
            dice.mutate(&mut text, &seeds);
        }
        // Shown where the target fails: the input that `cargo fuzz run` takes as a file.
        let shown = Shown(&text);
        target(&text);
        std::mem::forget(shown);
    }
}

/// Prints the input when the target panics.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        eprintln!("the input: b\"{}\"", self.0.escape_ascii());
    }
}

#[test]
fn every_target_is_run() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    for folder in ["targets", "seeds"] {
        let entries = fs::read_dir(fuzz.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        found.sort();
        assert_eq!(found, names, "{folder}");
    }
    // `tests/run` does not build the fuzzers themselves, for that takes minutes: they may hold nothing that can break.
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for name in names {
        let body = format!("libfuzzer_sys::fuzz_target!(|data: &[u8]| doorward::fuzzing::{name}(data));");
        assert_eq!(
            fs::read_to_string(fuzz.join(format!("targets/{name}.rs"))).unwrap(),
            format!("#![no_main]\n{body}\n")
        );
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")), "{name}");
    }
}

#[test]
fn the_configurations_that_are_there_to_be_accepted_are() {
    for (file, text) in seeds("config") {
        let problems = super::config::problems(&String::from_utf8(text).unwrap());
        let name = file.file_name().unwrap().to_str().unwrap();
        assert_eq!(problems.is_empty(), !["wrong", "broken"].contains(&name), "{name}: {problems:?}");
    }
}

macro_rules! runs {
    ($($test:ident: $name:literal;)*) => {
        $(#[test]
        fn $test() {
            run($name, if $name == "gate" { MUTATIONS / 100 } else { MUTATIONS });
        })*
    };
}

runs! {
    configurations_keep_their_promises: "config";
    cookies_keep_their_promises: "cookies";
    the_gate_keeps_its_promises: "gate";
    headers_keep_their_promises: "headers";
    hosts_keep_their_promises: "host";
    imports_keep_their_promises: "import";
    logins_keep_their_promises: "login";
    paths_keep_their_promises: "path";
    routes_keep_their_promises: "route";
    tokens_keep_their_promises: "token";
}
