//! Generates the events of one session: requests and plays of the exposed items, and plays from the library.

use crate::HOUR_MS;
use crate::catalogue::{Cell, GENRES, SimulatedCatalogue};
use crate::listener::{Listeners, SESSIONS_MAX, Taste};
use crate::random::{Purpose, Random, key};
use crate::settings::DAYS_MAX;

/// Maximum length of a session, in milliseconds.
pub(crate) const SESSION_MS_MAX: i64 = 2 * HOUR_MS;
/// Maximum requests and library visits in a session.
const BLOCKS_MAX: usize = 12;
/// Items that a request exposes.
const EXPOSED: usize = 10;
/// Maximum events of a session: a play is one event, a like of it another. An event's number in its session fits eight bits.
const EVENTS_MAX: usize = BLOCKS_MAX * EXPOSED * 2;
const _: () = assert!(EVENTS_MAX <= 1 << 8 && SESSIONS_MAX < 1 << 6 && DAYS_MAX <= 1 << 12);

/// Probability that a session continues after a request.
const GO_ON: f64 = 0.62;
/// Probability that the user looks at the next exposed item, too.
const LOOK_ON: f64 = 0.75;
/// Share of library visits, which have no request.
const LIBRARY_SHARE: f64 = 0.1;
/// Probability that a request has the theme of the previous one.
const SAME_THEME: f64 = 0.7;
/// Favourites of a user, in the library.
const FAVOURITES: f64 = 24.0;

/// The action of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Play,
    Like,
    Skip,
}

impl Action {
    /// The action's name in the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Play => "play",
            Self::Like => "like",
            Self::Skip => "skip",
        }
    }
}

/// The retrieval request that exposed an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    /// Unique in the log; written in hexadecimal.
    pub(crate) id: u64,
    /// Time at which it was served, in epoch milliseconds.
    pub(crate) ts: i64,
}

/// One event of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SimulatedEvent {
    /// Unique in the log; written in hexadecimal.
    pub(crate) id: u64,
    pub(crate) user: u32,
    pub(crate) item: u32,
    /// Epoch milliseconds.
    pub(crate) ts: i64,
    pub(crate) request: Option<Request>,
    pub(crate) action: Action,
    /// Tenths of a second listened; none for a like.
    pub(crate) listened: Option<u32>,
}

/// A session's place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) user: u32,
    pub(crate) day: u32,
    pub(crate) ordinal: u32,
}

impl SessionId {
    /// A number for the `nth` event or request of this session, unique among all sessions.
    pub(crate) fn place(self, nth: usize) -> u64 {
        let Self { user, day, ordinal } = self;
        u64::from(user) << 26 | u64::from(day) << 14 | u64::from(ordinal) << 8 | nth as u64
    }
}

/// Plays sessions.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) catalogue: &'a SimulatedCatalogue,
    pub(crate) listeners: &'a Listeners,
    session_key: u64,
    favourite_key: u64,
    event_key: u64,
    request_key: u64,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(seed: u64, catalogue: &'a SimulatedCatalogue, listeners: &'a Listeners) -> Self {
        Self {
            catalogue,
            listeners,
            session_key: key(seed, Purpose::Session),
            favourite_key: key(seed, Purpose::Favourite),
            event_key: key(seed, Purpose::EventId),
            request_key: key(seed, Purpose::RequestId),
        }
    }

    /// Appends the events of the session that begins at `start` (epoch milliseconds), in the order of their
    /// times.
    pub(crate) fn play(&self, id: SessionId, start: i64, events: &mut Vec<SimulatedEvent>) {
        let taste = self.listeners.taste(id.user, id.day);
        let mut session = Session {
            stage: self,
            id,
            random: Random::at(self.session_key, id.place(0)),
            now: start,
            end: start + SESSION_MS_MAX,
            first: events.len(),
            events,
        };
        let mut theme = taste.cell(&mut session.random);
        for block in 0..session.random.run_length(GO_ON, BLOCKS_MAX) {
            session.now += session.random.between(200, 5_000);
            if session.random.chance(LIBRARY_SHARE) {
                session.visit_library();
                continue;
            }
            if block > 0 && !session.random.chance(SAME_THEME) {
                theme = taste.cell(&mut session.random);
            }
            session.request(block, theme, &taste);
        }
    }
}

struct Session<'a> {
    stage: &'a Stage<'a>,
    id: SessionId,
    random: Random,
    /// The current time in the session.
    now: i64,
    end: i64,
    /// Index of the session's first event in `events`.
    first: usize,
    events: &'a mut Vec<SimulatedEvent>,
}

impl Session<'_> {
    fn push(
        &mut self,
        item: u32,
        ts: i64,
        request: Option<Request>,
        action: Action,
        listened_ms: Option<i64>,
    ) {
        if ts >= self.end {
            return;
        }
        // The finalizer of SplitMix64 is a bijection, so different places give different ids.
        let place = self.id.place(self.events.len() - self.first);
        self.events.push(SimulatedEvent {
            id: schemas::hash::mix64(self.stage.event_key, place),
            user: self.id.user,
            item,
            ts,
            request,
            action,
            listened: listened_ms.map(|ms| (ms / 100) as u32),
        });
    }

    /// A request about `theme`, and the plays of the items that it exposes, one after the other.
    fn request(&mut self, block: usize, theme: Cell, taste: &Taste) {
        let id = schemas::hash::mix64(self.stage.request_key, self.id.place(block));
        let request = Some(Request { id, ts: self.now });
        let mut seen = [0; EXPOSED];
        for nth in 0..self.random.run_length(LOOK_ON, EXPOSED) {
            let (item, on_theme) = self.exposed(theme, taste, &seen[..nth]);
            seen[nth] = item;
            self.now += self.random.between(300, 3_000);
            if self.random.chance(if on_theme { 0.12 } else { 0.4 }) {
                let listened = self.random.between(500, 20_000);
                self.push(item, self.now, request, Action::Skip, Some(listened));
                self.now += listened;
            } else {
                self.listen(item, request);
            }
        }
    }

    /// An item of the theme or of a related cell that is not in the request yet (in a small catalogue, it may
    /// repeat).
    fn exposed(&mut self, theme: Cell, taste: &Taste, seen: &[u32]) -> (u32, bool) {
        const TRIES_MAX: usize = 3;
        let mut offer = (0, false);
        for _ in 0..TRIES_MAX {
            let which = self.random.unit();
            let cell = if which < 0.7 {
                theme
            } else if which < 0.9 {
                let step = if which < 0.8 { 1 } else { GENRES.len() - 1 };
                Cell { genre: (theme.genre + step) % GENRES.len(), ..theme }
            } else {
                taste.cell(&mut self.random)
            };
            let item = self.stage.catalogue.pick(cell, self.id.day as i32, &mut self.random);
            offer = (item, cell == theme);
            if !seen.contains(&item) {
                break;
            }
        }
        offer
    }

    /// Plays of the user's favourites, without a request.
    fn visit_library(&mut self) {
        for _ in 0..self.random.run_length(LOOK_ON, EXPOSED) {
            let nth = FAVOURITES.powf(self.random.unit()) as u64;
            let mut random = Random::at(self.stage.favourite_key, u64::from(self.id.user) << 8 | nth);
            let cell = self.stage.listeners.taste(self.id.user, 0).lasting_cell();
            let item = self.stage.catalogue.pick(cell, 0, &mut random);
            self.now += self.random.between(300, 3_000);
            self.listen(item, None);
        }
    }

    /// A play, mostly to the end, and sometimes a like.
    fn listen(&mut self, item: u32, request: Option<Request>) {
        let length = self.stage.catalogue.length_ms(item);
        let listened = if self.random.chance(0.7) { length } else { self.random.between(length / 4, length) };
        self.push(item, self.now, request, Action::Play, Some(listened));
        if self.random.chance(0.06) {
            let liked = self.now + self.random.between(3_000, listened);
            self.push(item, liked, request, Action::Like, None);
        }
        self.now += listened;
    }
}
