//! Reading the centre's revocation feed, for as long as the process runs.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;

use super::client::{ClientError, Streamed};
use super::keys::spread;
use super::{Client, Status, note};
use crate::auth::centre::KeysWanted;
use crate::auth::freshness::Freshness;
use crate::auth::revocation::Revocations;
use crate::clock::Clock;
use crate::feed::{BEAT_EVERY, Beat, Decoder, FeedError, Last, Reader, Step};
use crate::store::{LogEntry, LogFollower as _};
use crate::telemetry::metrics::Metrics;

/// Nothing for so long, and the connection is dead, whatever TCP believes of it.
const SILENCE: Duration = BEAT_EVERY.saturating_mul(3);
/// The pause before the next try, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long the numbers have to have gone back before that is believed: a replica that is a moment behind catches up,
/// a log with another history does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause between two looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Reads the feed again and again.
pub struct Follower {
    pub client: Arc<Client>,
    pub revocations: Arc<Revocations>,
    pub keys: Arc<KeysWanted>,
    pub status: Arc<Status>,
    pub clock: Clock,
    pub metrics: Metrics,
    /// Told of each sign of life, as old as the knowledge behind it is.
    pub freshness: Arc<Freshness>,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error("the centre ended the feed")]
    Ended,
    #[error("the centre has been silent for {} s", SILENCE.as_secs())]
    Silent,
}

impl Follower {
    /// Runs as long as the process.
    pub async fn follow(self) {
        let mut reader = Reader::default();
        let mut pause = RETRY.0;
        let mut went_back: Option<Instant> = None;
        loop {
            let mut alive = false;
            let broken = self.read(&mut reader, &mut alive).await;
            let now = self.clock.instant();
            match &broken {
                Broken::Feed(error) => {
                    let is_back = matches!(error, FeedError::WentBack { .. });
                    went_back = if is_back { went_back.or(Some(now)) } else { None };
                    reader.start_over();
                }
                _ if alive => went_back = None,
                _ => {}
            }
            if went_back.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE) {
                reader.yield_to_lower_numbers();
                went_back = None;
            }
            note(&self.status.feed, "the revocation feed", Some(broken.to_string()));
            pause = if alive { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            // While numbers that went back are looked at again and again, each look is a whole reading.
            let rest = if went_back.is_some() { LOOK_AGAIN } else { pause };
            tokio::time::sleep(spread(rest)).await;
        }
    }

    /// One connection to its end. `alive`: whether it has given a sign of life.
    async fn read(&self, reader: &mut Reader, alive: &mut bool) -> Broken {
        let position = reader.begin().map(|Last { number, print }| format!("after={number}&print={print}"));
        let feed = self.client.feed(position.as_deref().unwrap_or_default());
        let mut feed = match in_time(feed).await {
            Ok(Ok(feed)) => feed,
            Ok(Err(error)) => return error.into(),
            Err(silent) => return silent,
        };
        let mut decoder = Decoder::default();
        let mut pulse = Pulse::default();
        loop {
            match in_time(next_piece(&mut feed)).await {
                Ok(Ok(piece)) => decoder.push(&piece),
                Ok(Err(broken)) | Err(broken) => return broken,
            }
            // What is whole counts, also where what follows it is not.
            let mut news = Vec::new();
            let outcome = self.take_lines(&mut decoder, reader, &mut news, &mut pulse, alive);
            self.tell(&mut news);
            if let Err(error) = outcome {
                return error.into();
            }
        }
    }

    fn take_lines(
        &self,
        decoder: &mut Decoder,
        reader: &mut Reader,
        news: &mut Vec<LogEntry>,
        pulse: &mut Pulse,
        alive: &mut bool,
    ) -> Result<(), FeedError> {
        while let Some(line) = decoder.next_line()? {
            let beat = match reader.take(line)? {
                Step::Wait => continue,
                Step::Extend(entry) => {
                    news.push(entry);
                    continue;
                }
                Step::Replace { entries, beat } => {
                    self.metrics.revocations(entries.len());
                    self.revocations.start_over(&entries, beat.head);
                    beat
                }
                Step::Alive(beat) => {
                    self.tell(news);
                    self.revocations.extend(&[], beat.head);
                    beat
                }
            };
            *alive = true;
            self.revocations.forget(beat.forgotten, &self.clock);
            note(&self.status.feed, "the revocation feed", None);
            let now = self.clock.instant();
            let age = pulse.late(&beat, now).saturating_add(Duration::from_millis(beat.behind));
            // Older than this machine's clock is no news.
            if let Some(at) = now.checked_sub(age) {
                self.freshness.heard(at);
            }
            if pulse.keys_changed(&beat) {
                self.keys.want();
            }
        }
        Ok(())
    }

    /// Many at once cost one new state of the set.
    fn tell(&self, news: &mut Vec<LogEntry>) {
        if !news.is_empty() {
            self.metrics.revocations(news.len());
            let newest = news.iter().map(|entry| entry.number).max().unwrap_or(0);
            self.revocations.extend(news, newest.max(self.revocations.head()));
            news.clear();
        }
    }
}

/// The next piece of the feed.
async fn next_piece(feed: &mut Streamed) -> Result<bytes::Bytes, Broken> {
    loop {
        match feed.body.frame().await {
            None => return Err(Broken::Ended),
            Some(Err(error)) => return Err(ClientError::Broken(error).into()),
            Some(Ok(frame)) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(piece);
                }
            }
        }
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Broken> {
    tokio::time::timeout(SILENCE, work).await.map_err(|_| Broken::Silent)
}

/// Tells a beat that lay in a buffer from a fresh one: the centre's clock and ours run equally fast, so the beat that
/// took the least time shows how far they are apart.
#[derive(Default)]
struct Pulse {
    /// Of our clock, and the centre's milliseconds then.
    fastest: Option<(Instant, u64)>,
    keys: Option<String>,
}

impl Pulse {
    /// How long ago the beat was sent, beyond the time of the fastest.
    fn late(&mut self, beat: &Beat, now: Instant) -> Duration {
        let Some((then, at)) = self.fastest else {
            self.fastest = Some((now, beat.at));
            return Duration::ZERO;
        };
        let (ours, theirs) = (now.saturating_duration_since(then), Duration::from_millis(beat.at.saturating_sub(at)));
        ours.checked_sub(theirs).unwrap_or_else(|| {
            self.fastest = Some((now, beat.at));
            Duration::ZERO
        })
    }

    fn keys_changed(&mut self, beat: &Beat) -> bool {
        let changed = self.keys.as_ref() != Some(&beat.keys);
        if changed {
            self.keys = Some(beat.keys.clone());
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Forgotten;

    #[test]
    fn a_beat_that_lay_in_a_buffer_is_as_old_as_it_is() {
        let clock = Clock::manual(0);
        let beat = |at| Beat { head: 0, at, behind: 0, keys: String::new(), forgotten: Forgotten::default() };
        let mut pulse = Pulse::default();
        assert_eq!(pulse.late(&beat(1_000_000), clock.instant()), Duration::ZERO);
        clock.advance(Duration::from_secs(2));
        assert_eq!(pulse.late(&beat(1_002_000), clock.instant()), Duration::ZERO);
        // Stopped for twenty seconds; ten beats came meanwhile.
        clock.advance(Duration::from_secs(20));
        for number in 1..=10_u64 {
            let late = pulse.late(&beat(1_002_000 + number * 2000), clock.instant());
            assert_eq!(late, Duration::from_secs(20 - 2 * number));
        }
        // One that was faster than the first sets the measure.
        clock.advance(Duration::from_secs(1));
        assert_eq!(pulse.late(&beat(1_024_000), clock.instant()), Duration::ZERO);
        clock.advance(Duration::from_secs(2));
        assert_eq!(pulse.late(&beat(1_025_000), clock.instant()), Duration::from_secs(1));
    }

    #[test]
    fn keys_are_asked_for_when_they_are_others() {
        let beat =
            |keys: &str| Beat { head: 0, at: 0, behind: 0, keys: keys.to_owned(), forgotten: Forgotten::default() };
        let mut pulse = Pulse::default();
        let changed: Vec<bool> = ["a", "a", "b", "b"].iter().map(|keys| pulse.keys_changed(&beat(keys))).collect();
        assert_eq!(changed, [true, false, true, false]);
    }
}
