//! `doorward serve`.

use super::arguments::Place;
use super::output::Output;
use super::{Done, Failure, configuration, operate};
use crate::app::{self, Stopped};
use crate::config::Config;

pub(super) fn run(place: &Place, output: &mut Output) -> Done {
    let config = configuration::load(place)?;
    serve(config, output, |_| {})
}

/// Serves until a signal comes; a drain that ran out is a failure.
pub(super) fn serve(config: Config, _output: &mut Output, ready: impl FnOnce(&[std::net::SocketAddr])) -> Done {
    match app::serve(config, ready) {
        Ok(Stopped::Whole) => Ok(()),
        Ok(Stopped::Cut) => Err(Failure::failed("stopped before everything that ran was finished")),
        Err(error) => Err(operate::start_failure(&error)),
    }
}
