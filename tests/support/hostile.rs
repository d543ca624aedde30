//! How much that was hostile has been tried.

/// Says it where `tests/run` adds it up.
pub(crate) fn tried(cases: usize, what: &str) {
    assert!(cases > 0, "nothing was tried: {what}");
    println!("hostile cases: {cases} {what}");
}
