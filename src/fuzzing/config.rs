//! The configuration file: every problem has its place, and what is accepted can be served.

use std::path::Path;

use crate::config::{Config, Problem, parse};
use crate::router::Router;
use crate::router::explain::run_tests;

/// Stands in for a secret of the environment.
const CANARY: &str = "hV7q2ZcX9mB4nK1sD8fG5jL0pR3tY6wE";

/// The text of a file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // The files that a text names are read, too: not those that never end.
    if ["/dev", "/proc", "/sys", "/run"].iter().any(|folder| text.contains(folder)) || text.contains("\\u") {
        return;
    }
    let lines = text.split('\n').count();
    match (read(text), read(text)) {
        (Ok(first), Ok(second)) => {
            let shown = format!("{first:?}");
            assert_eq!(shown, format!("{second:?}"), "read twice, it means two things");
            assert!(!shown.contains(CANARY), "the secret shows");
            served(&first);
        }
        (Err(first), Err(second)) => {
            assert_eq!(first, second, "read twice, it is wrong in two ways");
            assert!(!first.is_empty(), "refused without a reason");
            for problem in &first {
                assert!((1..=lines).contains(&problem.line), "{problem} is outside the file of {lines} lines");
                assert!(problem.column >= 1 && !problem.message.is_empty(), "{problem}");
                let line = text.split('\n').nth(problem.line - 1).unwrap_or_default();
                assert!(problem.column <= line.chars().count() + 1, "{problem} is outside its line");
                assert!(!problem.to_string().contains(CANARY), "the secret shows");
            }
        }
        _ => panic!("read twice, it is once right and once wrong"),
    }
}

fn read(text: &str) -> Result<Config, Vec<Problem>> {
    let origin = Path::new("/nonexistent/config.toml");
    parse(text, origin, &|name| (name == "JWT_SECRET").then(|| CANARY.to_owned()))
}

#[cfg(test)]
pub(super) fn problems(text: &str) -> Vec<Problem> {
    read(text).err().unwrap_or_default()
}

/// What is accepted can be put in force.
fn served(config: &Config) {
    assert!(!config.routes.is_empty() && !config.server.listen.is_empty());
    assert!(config.token.refresh_below <= config.token.lifetime, "{:?}", config.token);
    let router = Router::new(config);
    for route in &config.routes {
        assert!(route.path.starts_with('/'), "{route:?}");
        assert!(route.upstream.as_ref().is_none_or(|name| router.upstreams().contains(name)), "{route:?}");
        assert!(route.upstream.is_some() || route.access == crate::config::Access::Deny, "{route:?}");
    }
    // May fail, but not fall over.
    let _ = run_tests(config);
}
