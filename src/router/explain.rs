//! Why a request takes the route that it takes, for `doorward explain`.
pub fn run_tests(_: &crate::config::Config) -> Vec<String> { Vec::new() }
