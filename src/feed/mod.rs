//! The revocation feed: how a centre tells its verify-only gateways what is over.
//!
//! One long-lived HTTP answer for each gateway, made of the lines in [`line`]. A centre encodes each entry once, for all
//! of them ([`Feed`]); a gateway takes the lines in with a [`Reader`].
//!
//! - A gateway says where it was by the last entry that it read and that entry's print. Only where the centre still
//!   knows that very entry does it read on from there; otherwise it reads everything again.
//! - Numbers can become visible late (two transactions on a shared store), so entries from shortly before the last one
//!   are sent once more. Reading an entry twice changes nothing.
//! - Nobody waits for a slow reader: one that falls out of the window is cut off, and resumes.

pub mod line;
mod publish;
mod read;

pub use line::{Beat, Decoder, Last};
pub use publish::{Feed, FeedBody};
pub use read::{FeedError, Reader, Step};

use std::time::Duration;

/// How often a centre gives a sign of life.
pub const BEAT_EVERY: Duration = Duration::from_secs(2);
