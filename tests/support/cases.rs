//! How many hostile cases were tried: each test says its number, and `tests/run` adds them up.

use std::fs;
use std::path::Path;

/// Notes the number of cases of one test. The last run of a test counts.
pub(crate) fn tried(test: &str, count: usize) {
    println!("hostile cases tried: {count} ({test})");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/hostile-cases");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(test), format!("{count}\n")).unwrap();
}
