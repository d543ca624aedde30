//! The centre's side: every entry encoded once, and one answer's body for each gateway that reads.
//!
//! The newest lines stand in one window that all readers share; a reader is a position in it. So a gateway costs the
//! centre a connection and two numbers, and one that does not keep up costs nothing more.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::sync::watch;

use super::line::{Beat, Hello, Last, Line, VERSION, encode, print};
use crate::clock::Clock;
use crate::store::{Forgotten, LogEntry, LogFollower, Store, StoreError};

/// Lines in the window: what a reader may be behind, and how far back one can resume without reading everything.
const WINDOW: usize = 4096;
/// Entries this much older than the last one, in seconds, are told again to one who resumes: longer than a change can
/// take from its number to its being visible.
const OVERLAP: u64 = 120;
/// How long a whole reading of the log serves all who ask for one.
const KEEP_WHOLE: Duration = Duration::from_secs(10);
/// About so many bytes are one piece of a whole reading.
const PIECE_BYTES: usize = 64 * 1024;

/// The feed of one process. Cheap where nobody reads it.
pub struct Feed {
    clock: Clock,
    origin: Instant,
    state: Mutex<State>,
    whole: tokio::sync::Mutex<Option<Arc<Whole>>>,
    wake: watch::Sender<Wake>,
}

#[derive(Default)]
struct State {
    /// Empty until gateways are expected.
    window: VecDeque<Kept>,
    expects_gateways: bool,
    /// The position after the newest line; positions count lines since the start of the process.
    next: u64,
    head: u64,
    /// Milliseconds.
    behind: u64,
    keys: String,
    forgotten: Forgotten,
    /// The newest sign of life, for all readers.
    beat: Bytes,
}

struct Kept {
    number: u64,
    at: u64,
    line: Bytes,
}

#[derive(Clone, Copy, Default)]
struct Wake {
    next: u64,
    beats: u64,
    closed: bool,
}

/// Every live entry as it was at one position.
struct Whole {
    position: u64,
    made: Instant,
    pieces: Vec<Bytes>,
}

impl Feed {
    /// One that has heard of nothing yet. `expects_gateways`: lines are kept from the start, so that those who followed an
    /// earlier process can resume; otherwise from the first reader on.
    #[must_use]
    pub fn new(clock: Clock, expects_gateways: bool) -> Arc<Self> {
        Arc::new(Self {
            origin: clock.instant(),
            clock,
            state: Mutex::new(State { expects_gateways, ..State::default() }),
            whole: tokio::sync::Mutex::default(),
            wake: watch::Sender::default(),
        })
    }

    /// Gives every reader a sign of life. `behind`: how old this process's own knowledge is; `keys` changes with its
    /// public keys; `forgotten`: what this process knows to be gone.
    pub fn beat(&self, behind: Duration, keys: String, forgotten: Forgotten) {
        let mut state = self.state();
        state.behind = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        state.keys = keys;
        state.forgotten = forgotten;
        state.beat = self.beat_of(&state);
        drop(state);
        self.wake.send_modify(|wake| wake.beats += 1);
        if let Ok(mut whole) = self.whole.try_lock()
            && whole.as_ref().is_some_and(|whole| self.is_old(whole))
        {
            *whole = None;
        }
    }

    /// Ends every answer: the process is on its way out, and whoever reads finds another one.
    pub fn close(&self) {
        self.wake.send_modify(|wake| wake.closed = true);
    }

    /// How many read it.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.wake.receiver_count()
    }

    /// An answer's body for one more reader. `last`: the entry after which he goes on. `store`: where everything is read
    /// for one who can't go on, once for all who come at the same time.
    pub async fn open(self: &Arc<Self>, store: &dyn Store, last: Option<&Last>) -> Result<FeedBody, StoreError> {
        let receiver = self.wake.subscribe();
        self.state().expects_gateways = true;
        let resumed = last.and_then(|last| self.resume(last));
        let (pieces, next) = match resumed {
            Some(resumed) => resumed,
            None => loop {
                let whole = self.whole(store).await?;
                let mut pieces = VecDeque::with_capacity(whole.pieces.len() + 3);
                pieces.push_back(encode(&Line::Hello(Hello { version: VERSION, from: 0 })));
                pieces.extend(whole.pieces.iter().cloned());
                // What was appended while it was read; read once more where the window has moved past it.
                if let Some((since, next)) = self.since(whole.position) {
                    pieces.extend(since);
                    break (pieces, next);
                }
            },
        };
        let beats = receiver.borrow().beats;
        let mut body =
            FeedBody { feed: Arc::clone(self), pieces, next, beats, receiver: Some(receiver), waiting: None };
        // The beat speaks of everything up to now, so everything up to now goes before it. Where that has left the window
        // already, there is no beat, and the body ends at its first look.
        let state = self.state();
        if let Some(missing) = lines(&state, body.next) {
            body.pieces.extend(missing.into_iter().chain([self.beat_of(&state)]));
            body.next = state.next;
        }
        drop(state);
        Ok(body)
    }

    /// The greeting and what came after `last`, where the window still holds that very entry.
    fn resume(&self, last: &Last) -> Option<(VecDeque<Bytes>, u64)> {
        let state = self.state();
        let is_last = |kept: &Kept| kept.number == last.number && print(&kept.line) == last.print;
        let found = state.window.iter().rposition(is_last)?;
        let since = state.window.get(found)?.at.saturating_sub(OVERLAP);
        let mut pieces = VecDeque::from([encode(&Line::Hello(Hello { version: VERSION, from: last.number }))]);
        let again = |(index, kept): &(usize, &Kept)| *index > found || kept.at >= since;
        let told: Vec<&Bytes> = state.window.iter().enumerate().filter(again).map(|(_, kept)| &kept.line).collect();
        pieces.extend(joined(&told));
        Some((pieces, state.next))
    }

    /// Everything, read now or a moment ago.
    async fn whole(&self, store: &dyn Store) -> Result<Arc<Whole>, StoreError> {
        let mut kept = self.whole.lock().await;
        if let Some(whole) = kept.as_ref().filter(|whole| !self.is_old(whole) && self.reaches(whole.position)) {
            return Ok(Arc::clone(whole));
        }
        // Before the log is read, so that nothing falls between the two.
        let (position, head) = {
            let state = self.state();
            (state.next, state.head)
        };
        let mut entries = store.log().await?;
        // What others have just written to the store and this process has not read on to: it is told with the next lines,
        // and a beat that comes before them does not speak of it.
        entries.retain(|entry| entry.number <= head);
        let mut pieces = Vec::new();
        let mut piece = BytesMut::new();
        for (index, entry) in entries.into_iter().enumerate() {
            piece.extend_from_slice(&encode(&Line::Entry(entry)));
            if piece.len() >= PIECE_BYTES {
                pieces.push(piece.split().freeze());
            }
            if index % 1024 == 1023 {
                // The worker has other requests as well.
                tokio::task::yield_now().await;
            }
        }
        pieces.extend((!piece.is_empty()).then(|| piece.freeze()));
        let whole = Arc::new(Whole { position, made: self.clock.instant(), pieces });
        *kept = Some(Arc::clone(&whole));
        Ok(whole)
    }

    fn is_old(&self, whole: &Whole) -> bool {
        self.clock.instant().saturating_duration_since(whole.made) >= KEEP_WHOLE
    }

    fn reaches(&self, position: u64) -> bool {
        position >= self.state().first()
    }

    /// The lines from a position on, and the position after them; `None` where the window does not reach back so far.
    fn since(&self, position: u64) -> Option<(Vec<Bytes>, u64)> {
        let state = self.state();
        lines(&state, position).map(|lines| (lines, state.next))
    }

    fn beat_of(&self, state: &State) -> Bytes {
        let at = self.clock.instant().saturating_duration_since(self.origin).as_millis();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        encode(&Line::Beat(Beat {
            head: state.head,
            at,
            behind: state.behind,
            keys: state.keys.clone(),
            forgotten: state.forgotten,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogFollower for Feed {
    fn extend(&self, entries: &[LogEntry], head: u64) {
        let mut state = self.state();
        // A long log at the start goes through the window without being encoded.
        let most = if state.expects_gateways { WINDOW } else { 0 };
        let (passed, kept) = entries.split_at(entries.len().saturating_sub(most));
        state.next += u64::try_from(passed.len()).unwrap_or(0);
        if !passed.is_empty() {
            state.window.clear();
        }
        for entry in kept {
            if state.window.len() == WINDOW {
                state.window.pop_front();
            }
            let line = encode(&Line::Entry(entry.clone()));
            state.window.push_back(Kept { number: entry.number, at: entry.at, line });
            state.next += 1;
        }
        // Also lower: then the readers notice. But never below an entry that is told here: a change can be told before the
        // log is read on to it, when the reading failed.
        state.head = entries.iter().map(|entry| entry.number).max().map_or(head, |newest| newest.max(head));
        let next = state.next;
        drop(state);
        self.wake.send_modify(|wake| wake.next = next);
    }
}

impl State {
    /// The position of the oldest line in the window.
    fn first(&self) -> u64 {
        self.next - u64::try_from(self.window.len()).unwrap_or(0)
    }
}

fn lines(state: &State, position: u64) -> Option<Vec<Bytes>> {
    let skip = usize::try_from(position.checked_sub(state.first())?).ok()?;
    let told: Vec<&Bytes> = state.window.iter().skip(skip).map(|kept| &kept.line).collect();
    Some(joined(&told))
}

/// One piece of many lines; a single line is not copied.
fn joined(lines: &[&Bytes]) -> Vec<Bytes> {
    match lines {
        [] => Vec::new(),
        [line] => vec![Bytes::clone(line)],
        lines => {
            let mut piece = BytesMut::with_capacity(lines.iter().map(|line| line.len()).sum());
            for line in lines {
                piece.extend_from_slice(line);
            }
            vec![piece.freeze()]
        }
    }
}

/// The body of one reader's answer: never ends by itself but when the process does.
pub struct FeedBody {
    feed: Arc<Feed>,
    /// What is ready to be sent.
    pieces: VecDeque<Bytes>,
    next: u64,
    beats: u64,
    /// Here, or in `waiting`.
    receiver: Option<watch::Receiver<Wake>>,
    waiting: Option<Waiting>,
}

type Waiting = Pin<Box<dyn Future<Output = watch::Receiver<Wake>> + Send>>;

/// The reader did not keep up, and is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reader of the revocation feed did not keep up")]
pub struct TooSlow;

impl FeedBody {
    /// Takes what is new; `false`: nothing is.
    fn gather(&mut self, wake: Wake) -> Result<bool, TooSlow> {
        if wake.next == self.next && wake.beats == self.beats {
            return Ok(false);
        }
        let state = self.feed.state();
        self.pieces.extend(lines(&state, self.next).ok_or(TooSlow)?);
        if wake.beats != self.beats {
            self.pieces.push_back(state.beat.clone());
        }
        self.next = state.next;
        self.beats = wake.beats;
        Ok(!self.pieces.is_empty())
    }
}

impl Body for FeedBody {
    type Data = Bytes;
    type Error = TooSlow;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TooSlow>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if let Some(waiting) = &mut self.waiting {
                let receiver = ready!(waiting.as_mut().poll(task));
                self.waiting = None;
                self.receiver = Some(receiver);
            }
            let Some(mut receiver) = self.receiver.take() else { return Poll::Ready(None) };
            let wake = *receiver.borrow_and_update();
            if wake.closed {
                return Poll::Ready(None);
            }
            match self.gather(wake) {
                Err(too_slow) => return Poll::Ready(Some(Err(too_slow))),
                Ok(true) => self.receiver = Some(receiver),
                Ok(false) => {
                    self.waiting = Some(Box::pin(async move {
                        // The sender lives in the feed, which this body holds.
                        let _ = receiver.changed().await;
                        receiver
                    }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::super::line::Decoder;
    use super::*;
    use crate::store::{Memory, Revocation, SessionId, Write};

    /// A store, and the feed that follows it.
    async fn centre() -> (Clock, Memory, Arc<Feed>) {
        let clock = Clock::manual(1_800_000_000);
        let store = Memory::new(clock.clone());
        let feed = Feed::new(clock.clone(), true);
        store.follow(Arc::<Feed>::clone(&feed)).await.unwrap();
        (clock, store, feed)
    }

    async fn revoke(store: &Memory, clock: &Clock, count: usize) -> Vec<LogEntry> {
        let at = clock.unix_seconds();
        let what = || Revocation::Session { session: SessionId::random() };
        let writes = (0..count).map(|_| Write::Revoke { what: what(), at, expires: at + 1000 }).collect();
        store.apply(writes).await.unwrap().entries
    }

    /// What is there to be read without waiting.
    async fn told(body: &mut FeedBody) -> Vec<Line> {
        let mut decoder = Decoder::default();
        while let Some(frame) = tokio::select! { biased; frame = body.frame() => frame, () = async {} => None } {
            decoder.push(frame.unwrap().data_ref().unwrap());
        }
        let mut lines = Vec::new();
        while let Some(line) = decoder.next_line().unwrap() {
            lines.push(line);
        }
        lines
    }

    fn numbers(lines: &[Line]) -> Vec<u64> {
        lines.iter().filter_map(|line| if let Line::Entry(entry) = line { Some(entry.number) } else { None }).collect()
    }

    fn hello(from: u64) -> Line {
        Line::Hello(Hello { version: VERSION, from })
    }

    #[tokio::test]
    async fn a_reader_is_told_everything_and_then_what_comes() {
        let (clock, store, feed) = centre().await;
        revoke(&store, &clock, 3).await;
        let mut body = feed.open(&store, None).await.unwrap();
        let lines = told(&mut body).await;
        assert_eq!((&lines[0], numbers(&lines)), (&hello(0), vec![1, 2, 3]));
        assert!(matches!(lines.last(), Some(Line::Beat(Beat { head: 3, .. }))));
        revoke(&store, &clock, 2).await;
        assert_eq!(numbers(&told(&mut body).await), [4, 5]);
        feed.beat(Duration::from_millis(7), String::from("k"), Forgotten::default());
        let lines = told(&mut body).await;
        assert!(matches!(&lines[..], [Line::Beat(Beat { head: 5, behind: 7, keys, .. })] if keys == "k"), "{lines:?}");
        assert_eq!(feed.readers(), 1);
        feed.close();
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!(feed.readers(), 0);
    }

    #[tokio::test]
    async fn a_reader_resumes_where_his_entry_is_known_and_what_may_have_come_late_is_told_again() {
        let (clock, store, feed) = centre().await;
        let old = revoke(&store, &clock, 2).await;
        clock.advance(Duration::from_secs(OVERLAP + 1));
        let new = revoke(&store, &clock, 3).await;
        let resumed = |last: Last| {
            let (feed, store) = (&feed, &store);
            async move { told(&mut feed.open(store, Some(&last)).await.unwrap()).await }
        };
        let lines = resumed(Last::of(&new[1])).await;
        assert_eq!((&lines[0], numbers(&lines)), (&hello(4), vec![3, 4, 5]));
        let lines = resumed(Last::of(&old[1])).await;
        assert_eq!((&lines[0], numbers(&lines)), (&hello(2), vec![1, 2, 3, 4, 5]));
        let other = Last { number: 4, print: Last::of(&new[0]).print };
        let lines = resumed(other).await;
        assert_eq!((&lines[0], numbers(&lines)), (&hello(0), vec![1, 2, 3, 4, 5]));
    }

    #[tokio::test]
    async fn a_slow_reader_is_cut_off_and_costs_no_memory() {
        let (clock, store, feed) = centre().await;
        let mut slow = feed.open(&store, None).await.unwrap();
        told(&mut slow).await;
        let first = revoke(&store, &clock, 1).await.remove(0);
        revoke(&store, &clock, WINDOW).await;
        assert_eq!(feed.state().window.len(), WINDOW);
        assert_eq!(slow.frame().await.unwrap().unwrap_err(), TooSlow);
        assert!(slow.frame().await.is_none());
        // His last entry has left the window: he reads everything again.
        let mut again = feed.open(&store, Some(&Last::of(&first))).await.unwrap();
        let lines = told(&mut again).await;
        assert_eq!((&lines[0], numbers(&lines).len()), (&hello(0), WINDOW + 1));
    }

    #[tokio::test]
    async fn a_whole_reading_serves_all_who_come_at_the_same_time_and_misses_nothing() {
        let (clock, store, feed) = centre().await;
        revoke(&store, &clock, 10).await;
        let first = feed.whole(&store).await.unwrap();
        revoke(&store, &clock, 5).await;
        assert!(Arc::ptr_eq(&first, &feed.whole(&store).await.unwrap()));
        let lines = told(&mut feed.open(&store, None).await.unwrap()).await;
        assert_eq!(numbers(&lines), (1..=15).collect::<Vec<_>>());
        // Too old, or behind the window: read anew.
        revoke(&store, &clock, WINDOW).await;
        let second = feed.whole(&store).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        clock.advance(KEEP_WHOLE);
        feed.beat(Duration::ZERO, String::new(), Forgotten::default());
        assert!(feed.whole.lock().await.is_none());
    }

    #[tokio::test]
    async fn what_the_store_holds_and_this_process_has_not_read_yet_comes_as_a_line_of_its_own() {
        let (clock, store, _) = centre().await;
        // With a database it is others who write, and this process reads on a moment later.
        let feed = Feed::new(clock.clone(), true);
        let read = revoke(&store, &clock, 2).await;
        feed.extend(&read, 2);
        let written = revoke(&store, &clock, 1).await;
        let mut body = feed.open(&store, None).await.unwrap();
        let lines = told(&mut body).await;
        assert_eq!(numbers(&lines), [1, 2]);
        assert!(matches!(lines.last(), Some(Line::Beat(Beat { head: 2, .. }))));
        feed.extend(&written, 3);
        assert_eq!(numbers(&told(&mut body).await), [3]);
    }

    #[tokio::test]
    async fn no_beat_is_below_an_entry_that_was_told() {
        let (clock, store, _) = centre().await;
        let feed = Feed::new(clock.clone(), true);
        let entries = revoke(&store, &clock, 3).await;
        feed.extend(&entries[..1], 1);
        let mut body = feed.open(&store, None).await.unwrap();
        told(&mut body).await;
        // What this process wrote and could not read on to.
        feed.extend(&entries[2..], 1);
        feed.beat(Duration::ZERO, String::new(), Forgotten::default());
        let lines = told(&mut body).await;
        assert_eq!(numbers(&lines), [3]);
        assert!(matches!(lines.last(), Some(Line::Beat(Beat { head: 3, .. }))), "{lines:?}");
        feed.extend(&entries[1..], 3);
        assert_eq!(numbers(&told(&mut body).await), [2, 3]);
    }

    #[tokio::test]
    async fn where_no_gateway_is_expected_nothing_is_kept_until_one_comes() {
        let (clock, store, _) = centre().await;
        let feed = Feed::new(clock.clone(), false);
        store.follow(Arc::<Feed>::clone(&feed)).await.unwrap();
        revoke(&store, &clock, 10).await;
        {
            let state = feed.state();
            assert_eq!((state.window.len(), state.next, state.head), (0, 10, 10));
        }
        let mut body = feed.open(&store, None).await.unwrap();
        assert_eq!(numbers(&told(&mut body).await), (1..=10).collect::<Vec<_>>());
        let last = revoke(&store, &clock, 2).await.remove(0);
        assert_eq!(numbers(&told(&mut body).await), [11, 12]);
        drop(body);
        let lines = told(&mut feed.open(&store, Some(&Last::of(&last))).await.unwrap()).await;
        assert_eq!((&lines[0], numbers(&lines)), (&hello(11), vec![11, 12]));
    }

    #[tokio::test]
    async fn a_long_log_at_the_start_passes_through_the_window() {
        let (clock, store, _) = centre().await;
        revoke(&store, &clock, 3 * WINDOW).await;
        let feed = Feed::new(clock.clone(), true);
        store.follow(Arc::<Feed>::clone(&feed)).await.unwrap();
        {
            let state = feed.state();
            assert_eq!((state.next, state.first(), state.head), (3 * 4096, 2 * 4096, 3 * 4096));
        }
        assert_eq!(numbers(&told(&mut feed.open(&store, None).await.unwrap()).await).len(), 3 * WINDOW);
    }
}
