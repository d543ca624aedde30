//! A plain `cargo build` is an ordinary build: nothing stands between cargo and the compiler, and nothing has to fit.

use std::path::Path;
use std::process::Command;

use crate::support::gateway::PROGRAM;

fn tracked(pattern: &str) -> String {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "ls-files", "--cached", "--others", "--exclude-standard", pattern])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn nothing_stands_between_cargo_and_the_compiler() {
    assert!(tracked("Cargo.toml").contains("Cargo.toml"), "git lists nothing");
    assert_eq!(tracked(".cargo"), "", "settings that only builds within this folder would have");
    assert_eq!(tracked("*.profdata"), "", "a record that fits one compiler and one Cargo.lock");
    assert!(!Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs").exists());
}

/// The settings stand in the program, so that it has them whoever built it, and where.
#[cfg(target_os = "linux")]
#[test]
fn the_allocator_has_the_settings_of_the_program() {
    let output = Command::new(PROGRAM).arg("--version").env("_RJEM_MALLOC_CONF", "stats_print:true").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    for setting in ["opt.oversize_threshold: 524288", "opt.tcache_nslots_small_min: 128"] {
        assert!(told.contains(setting), "{setting} is not in what jemalloc says:\n{told}");
    }
}
