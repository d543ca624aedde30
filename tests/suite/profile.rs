//! Profile-guided optimisation: what stands between cargo and the compiler adds a profile where it fits, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/profile")
}

/// Release arguments as cargo gives them for the program and the libraries in it.
const RELEASE: &[&str] =
    &["--crate-name", "doorward", "-C", "opt-level=3", "--out-dir", "/x/target/release/deps", "src/lib.rs"];

/// What a compiler is called with that says it is `version`.
fn called_with(version: &str, arguments: &[&str], profile: Option<&str>) -> Vec<String> {
    let work = tempfile::tempdir().unwrap();
    let compiler = work.path().join("rustc");
    let answer = work.path().join("version");
    fs::write(&answer, version).unwrap();
    let script =
        "#!/bin/sh\nif [ \"$1\" = -vV ]; then cat \"$(dirname \"$0\")/version\"; else printf '%s\\n' \"$@\"; fi\n";
    fs::write(&compiler, script).unwrap();
    fs::set_permissions(&compiler, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(folder().join("rustc"));
    command.arg(&compiler).args(arguments).env_remove("DOORWARD_PROFILE");
    if let Some(profile) = profile {
        command.env("DOORWARD_PROFILE", profile);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

#[test]
fn the_profile_is_added_to_release_builds_of_its_own_compiler_only() {
    let ours = fs::read_to_string(folder().join("compiler")).unwrap();
    let added = |version: &str, arguments: &[&str], profile: Option<&str>| {
        let called = called_with(version, arguments, profile);
        let (same, added) = called.split_at(arguments.len());
        assert_eq!(same, arguments);
        added.to_vec()
    };
    let used = added(&ours, RELEASE, None);
    assert_eq!(used.len(), 2, "{used:?}");
    let file = used[0].strip_prefix("-Cprofile-use=").unwrap();
    assert!(fs::metadata(file).unwrap().len() > 0);
    assert_eq!(used[1], "-Cllvm-args=-no-pgo-warn-mismatch");

    assert_eq!(added(&ours, RELEASE, Some("record:/counts")), ["-Cprofile-generate=/counts"]);
    let nothing: [&str; 0] = [];
    assert_eq!(added(&ours, RELEASE, Some("none")), nothing);
    assert_eq!(added(&ours.replace("1.", "2."), RELEASE, None), nothing, "another compiler");
    for other in [
        &["--crate-name", "doorward", "--out-dir", "/x/target/debug/deps", "src/lib.rs"][..],
        &["--crate-name", "build_script_build", "-C", "opt-level=0", "--out-dir", "/x/target/release/build/x"],
        &["--crate-name", "doorward", "-C", "opt-level=3", "--out-dir", "/x/target/profiling/deps"],
        &["--cfg", "fuzzing", "-C", "opt-level=3", "--out-dir", "/x/target/release/deps"],
        &["-", "--crate-name", "___", "--print=file-names"],
    ] {
        for profile in [None, Some("record:/counts")] {
            assert_eq!(added(&ours, other, profile), nothing, "{other:?}");
        }
    }
}

#[test]
fn an_argument_with_spaces_and_a_failure_come_through() {
    let ours = fs::read_to_string(folder().join("compiler")).unwrap();
    let odd = ["--cfg", "feature=\"a b\"", "$HOME", "*"];
    assert_eq!(called_with(&ours, &odd, None), odd);
    let failed = Command::new(folder().join("rustc")).args(["sh", "-c", "exit 7"]).status().unwrap();
    assert_eq!(failed.code(), Some(7));
}

/// The names of our own functions change with any dependency, and a profile of other names is of no use.
#[test]
fn the_profile_is_of_these_dependencies() {
    let lock = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &lock);
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let recorded = fs::read_to_string(folder().join("dependencies")).unwrap();
    assert_eq!(recorded.trim(), digest, "the dependencies have changed: run benches/profile/record");
}
